"""What metered requests have used: tokens and cost, in the ledger that `squidkeeper
bodies` writes.
"""
