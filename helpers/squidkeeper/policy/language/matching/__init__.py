"""How two entries compare by their matching fields, for what checks and compares
policies.

No helper that decides loads it: whether a field holds is in `policy/engine/fields.py`.
"""
