"""What a rule with `meter` counts, and what tokens cost: by the model that an answer
names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.globs import ANYTHING, glob_matcher
from squidkeeper.policy.language.unquoted import Unquoted

# of the currency: costs and prices are whole numbers of these
MILLIONTHS: Final = 10**6
RESERVE: Final = (
    4_096  # tokens of an answer, where neither the request nor the rule names a number
)
_AMOUNT: Final = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class Metering:
    """`meter: tokens` of a rule.

    `reserve` is how many tokens an answer is taken for until it tells its own number.

    `ask_usage` has streams of OpenAI's chat API asked for their usage.
    """

    reserve: int = RESERVE
    ask_usage: bool = False

    def __str__(self) -> str:
        """Write it for people: `tokens, reserve 4,096`."""
        return f"tokens, reserve {self.reserve:,}{', asks for usage' if self.ask_usage else ''}"


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens of some models cost, in millionths of the currency.

    In `model`, `*` is any characters.

    `tokens_in` is for the tokens that are neither read from a cache (`cached_in`) nor
    written to one (`cache_write`).
    """

    model: str
    tokens_in: int
    tokens_out: int
    cached_in: int
    cache_write: int
    location: Location = field(default=Location(""), compare=False, kw_only=True)

    def is_for(self, model: str) -> bool:
        """Whether it is the price of a model."""
        return glob_matcher(tuple(re.split(r"(\*)", self.model)), {"*": ANYTHING})(
            model
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a policy. The first whose glob a model matches is the model's."""

    entries: tuple[Price, ...] = ()

    def find(self, model: str) -> Price | None:
        """Return the price of a model; None where no entry is for it."""
        return next((price for price in self.entries if price.is_for(model)), None)

    @property
    def dearest(self) -> Price:
        """What an unknown model costs: the dearest of each price.

        Without prices nothing costs anything.
        """
        return Price(
            "*",
            *(
                self._most(name)
                for name in ("tokens_in", "tokens_out", "cached_in", "cache_write")
            ),
        )

    def _most(self, name: str) -> int:
        return max((getattr(price, name) for price in self.entries), default=0)


NO_PRICES: Final = Prices()


def parse_amount(value: object) -> int:
    """Parse an amount of the currency, as YAML writes a number, into millionths;
    `PatternError` where it is none.
    """
    text = (
        value.text
        if isinstance(value, Unquoted)
        else ""
        if isinstance(value, bool)
        else str(value)
    )
    match = _AMOUNT.fullmatch(text) if isinstance(value, int | Unquoted) else None
    if match is None:
        raise PatternError(
            "expected a number below 1,000,000,000 with six decimals at most (without quotes), such as 25 or 0.075"
        )
    return int(match[1]) * MILLIONTHS + int((match[2] or "").ljust(6, "0"))
