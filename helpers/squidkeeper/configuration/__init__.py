"""Squid's configuration: its lines, pages and log formats, and the reader of it."""
