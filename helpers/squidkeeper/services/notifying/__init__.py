"""Telling people that questions wait."""
