"""The helpers that Squid starts, what they answer with, and the state that
they share.
"""
