"""Requests from the access log."""
