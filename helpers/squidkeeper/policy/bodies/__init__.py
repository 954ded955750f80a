"""Bodies of requests: whether a rule's `body:` holds for one.

Pure: bytes in, an outcome out.
"""
