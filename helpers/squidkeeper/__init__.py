"""squidkeeper: the helpers that turn Squid with SSL-bump into the egress gateway of AI
agents.
"""
