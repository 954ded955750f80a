"""From what was used to the rules that allow it."""
