"""Upkeep of what surrounds Squid (floor 5): one process beside it, with one module for each task."""
