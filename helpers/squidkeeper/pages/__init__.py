"""Parts that the status page and the report share (floor 6)."""
