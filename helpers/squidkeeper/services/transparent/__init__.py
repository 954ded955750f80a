"""The ports for clients without proxy settings: what comes to port 443 or 80 of the
gateway goes to Squid.
"""
