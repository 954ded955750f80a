"""The policy on disk: read, watched, compiled, stored (floor 4)."""
