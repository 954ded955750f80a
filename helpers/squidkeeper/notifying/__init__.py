"""Telling people that questions wait (floor 8)."""
