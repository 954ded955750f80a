"""The maintenance process beside Squid, with one module for each task."""
