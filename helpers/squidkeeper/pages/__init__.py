"""What the status page and the report have in common (floor 5)."""
