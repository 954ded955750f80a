"""One policy for many gateways (floor 7): pulled from git or as a signed bundle, judged, and put in place."""
