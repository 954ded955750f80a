"""The difference of meaning between two policies.

Pure: policies in, differences out.
"""
