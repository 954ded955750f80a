"""The policy language: YAML with positions, the checked model, the frozen `Policy`,
every fault at once.
"""
