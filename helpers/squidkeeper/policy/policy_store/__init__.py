"""The policy on disk: read, watched, compiled, stored."""
