"""How much of each quota is used: the counts, and who takes from them."""
