"""Several gateways behind one address."""
