"""The difference of meaning between two policies (floor 4). Pure: policies in, differences out."""
