"""Certificates: the CA of a gateway, and what it signs."""
