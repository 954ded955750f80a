"""A demonstration on one machine without internet: an origin, a stand-in for a VM, and
the gateway.
"""
