"""One policy for many gateways: pulled from git or as a signed bundle, judged, and put
in place.
"""
