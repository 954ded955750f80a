"""The access log, and what its lines say (floor 5)."""
