"""What model APIs report of the tokens that a request used.

Pure: bytes in, numbers out.
"""
