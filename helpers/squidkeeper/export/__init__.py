"""Records to a SIEM (floor 7): in its format, at least once, and with a record of what was lost."""
