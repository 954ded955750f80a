"""What editors need to know of the language (floor 4)."""
