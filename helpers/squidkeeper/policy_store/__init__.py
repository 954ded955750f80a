"""The policy on disk: read, watched, compiled, kept (floor 4)."""
