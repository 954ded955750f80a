"""The programs that Squid starts."""
