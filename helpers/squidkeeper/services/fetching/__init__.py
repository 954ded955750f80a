"""The process beside Squid that fetches secrets."""
