"""Sessions: who is known for a while, by an address, a token or both, and as which
role.

A service writes them to one file, and the helpers read them.
"""
