"""The processes beside Squid, and their settings and status."""
