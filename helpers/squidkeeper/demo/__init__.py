"""A demonstration on one machine without internet (floor 8): an origin, a stand-in for a VM, and the gateway."""
