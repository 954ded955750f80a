"""The ICAP service that Squid asks about the bodies of requests."""
