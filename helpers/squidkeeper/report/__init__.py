"""`squidkeeper report`: a span of the record as figures, and these as a page (floor 5)."""
