"""`squidkeeper doctor`: what is wrong with an installed gateway, in one table of
checks.
"""
