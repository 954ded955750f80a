"""Several gateways behind one address (floor 8)."""
