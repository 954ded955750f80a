"""The process beside Squid that fetches secrets (floor 5)."""
