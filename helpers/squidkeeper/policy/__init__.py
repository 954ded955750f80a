"""The policy language (floor 2): YAML with positions, the checked model, the frozen `Policy`, every fault at once."""
