"""Requests from the access log (floor 5)."""
