"""The programs that Squid starts (floor 5)."""
