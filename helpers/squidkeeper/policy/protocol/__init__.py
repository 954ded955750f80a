"""Squid's helper lines, and the requests in them."""
