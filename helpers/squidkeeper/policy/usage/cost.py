"""The cost of tokens, in whole millionths of the currency."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from squidkeeper.policy.language.prices import Prices
from squidkeeper.policy.usage.tokens import Usage

_PRICED: Final = 10**6  # tokens, whose price a policy names


def cost_of(usage: Usage, prices: Prices) -> int:
    """Return the cost of a usage, in millionths of the currency, rounded up.

    A model of no price has the dearest.
    """
    price = prices.find(usage.model) or prices.dearest
    uncached = usage.tokens_in - usage.cached_in - usage.cache_write
    cost = (
        uncached * price.tokens_in
        + usage.cached_in * price.cached_in
        + usage.cache_write * price.cache_write
        + usage.tokens_out * price.tokens_out
    )
    return -(-cost // _PRICED)


def dearest_of(usages: Iterable[Usage], prices: Prices) -> Usage:
    """Return the usage that costs most; the first of equal ones."""
    return max(usages, key=lambda usage: cost_of(usage, prices))
