"""The access log, and what shows it."""
