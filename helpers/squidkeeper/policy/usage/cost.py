"""The cost of tokens, in whole millionths of the currency."""

from __future__ import annotations

from squidkeeper.policy.usage.tokens import Usage


def cost_of(usage: Usage, prices: object) -> int:
    """Return the cost of a usage, in millionths of the currency, rounded up."""
    del usage, prices
    return 0
