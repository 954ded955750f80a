"""`squidkeeper sessions`: the calls by which programs make sessions, and end them."""
