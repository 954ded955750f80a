"""The installation: its plan, its transaction, and the templates of `squid/`."""
