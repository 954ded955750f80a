"""`squidkeeper report`: a period of the access log as figures, and these as a page."""
