"""The maintenance process beside Squid (floor 5), with one module for each task."""
