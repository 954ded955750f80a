"""Records to a SIEM: in its format, at least once, and with a record of what
was lost.
"""
