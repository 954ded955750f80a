"""What a quota counts: how much, of what, for whom and in which time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Location
from squidkeeper.base.formatting import byte_size, quantity
from squidkeeper.policy.language.prices import MILLIONTHS

# of `bytes_in`, in bytes: held for an answer from when its request begins
SMALL_ANSWER: Final = 16_384
DEFAULT_RULE: Final = "default"  # in `rules`: what no rule decides
# in `found` of a record: how a quota that could not be counted is named
UNCOUNTED: Final = "quota-unavailable"
LARGEST_COUNT: Final = (
    999_999_999  # YAML of a policy takes longer numbers as text alone
)
LARGEST_SIZE: Final = 10**15  # bytes; a number in Lua is exact up to nine times that
_SIZE = re.compile(r"([1-9][0-9]{0,15})(KB|MB|GB|TB)")
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class QuotaUnit(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TUNNELS = "tunnels"
    TICKETS = "tickets"
    BYTES_OUT = "bytes_out"
    BYTES_IN = "bytes_in"
    TOKENS_IN = "tokens_in"
    TOKENS_OUT = "tokens_out"
    TOKENS = "tokens"
    COST = "cost"

    @property
    def is_size(self) -> bool:
        """Whether it is counted at the end of a request, in bytes."""
        return self in (QuotaUnit.BYTES_OUT, QuotaUnit.BYTES_IN)

    @property
    def is_tokens(self) -> bool:
        """Whether `squidkeeper bodies` counts it, of requests that a rule with `meter`
        allows.

        A cost is counted in millionths of the currency.
        """
        return self in (
            QuotaUnit.TOKENS_IN,
            QuotaUnit.TOKENS_OUT,
            QuotaUnit.TOKENS,
            QuotaUnit.COST,
        )


class Counted(StrEnum):
    """For whom one count is kept."""

    CLIENT = "client"
    RULE = "rule"
    ALL = "all"
    SESSION = "session"
    LABEL = "label"

    @property
    def is_of_sessions(self) -> bool:
        """Whether sessions alone are counted."""
        return self in (Counted.SESSION, Counted.LABEL)


class Window(StrEnum):
    """The time after which a count begins again: by the clock, in UTC. A week begins on
    a Monday.
    """

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    def begin(self, at: float) -> int:
        """Return when the window of a time began; times are seconds from 1970 on."""
        if self is Window.MONTH:
            day = datetime.fromtimestamp(at, UTC)
            return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())
        return (
            int((at - _FIRST_MONDAY) // _SECONDS[self]) * _SECONDS[self] + _FIRST_MONDAY
        )

    def end(self, at: float) -> int:
        """Return when the window of a time ends, which is when the next one begins."""
        began = self.begin(at)
        return (
            self.begin(began + _MORE_THAN_A_MONTH)
            if self is Window.MONTH
            else began + _SECONDS[self]
        )


@dataclass(frozen=True, slots=True)
class Quota:
    """A quota.

    `rules` and `clients` name what it is for: the rule that allowed, and who asked.
    None: all. One for each session or `label` has roles as `clients`.
    """

    name: str
    location: Location
    unit: QuotaUnit
    limit: int
    window: Window
    per: Counted
    rules: frozenset[str] | None = None
    clients: frozenset[str] | None = None
    label: str | None = None

    def holds_for(self, clients: tuple[str, ...]) -> bool:
        """Whether it is for a request of these clients."""
        return self.clients is None or not self.clients.isdisjoint(clients)

    def counts(self, rule: str) -> bool:
        """Whether it is for what a rule allows; rules of no policy of its own are named
        as they are recorded.
        """
        return self.rules is None or rule in self.rules

    @property
    def text(self) -> str:
        """The quota as people read it: `600 requests a minute for each client`."""
        return (
            f"{self.amount} {_EVERY[self.window]} {_FOR[self.per].format(self.label)}"
        )

    @property
    def amount(self) -> str:
        """The limit with its unit."""
        return shown_amount(self.unit, self.limit)


def largest_answer(quotas: Iterable[Quota]) -> int | None:
    """Return how much an answer of unknown length may have at most, where bytes of
    answers count; None where they do not.
    """
    limits = [quota.limit for quota in quotas if quota.unit is QuotaUnit.BYTES_IN]
    return answer_share(max(limits)) if limits else None


def answer_share(size: int) -> int:
    """Return the largest share of an answer up to a size: a power of two, and
    `SMALL_ANSWER` at least.
    """
    return max(1 << size.bit_length() >> 1, SMALL_ANSWER)


def shown_amount(unit: QuotaUnit, count: int) -> str:
    """Write how much of a unit was used: `12 requests`, `1.5 GB out`."""
    if unit.is_size:
        return f"{byte_size(count)} {'out' if unit is QuotaUnit.BYTES_OUT else 'in'}"
    if unit is QuotaUnit.COST:
        return f"{shown_cost(count)} of cost"
    if unit.is_tokens:
        return f"{quantity(count, 'token')}{_DIRECTION.get(unit, '')}"
    return quantity(count, unit.removesuffix("s"))


def shown_cost(count: int) -> str:
    """Write millionths of the currency: `12.50`, `0.000003`."""
    whole, part = divmod(count, MILLIONTHS)
    return f"{whole:,}.{f'{part:06}'.rstrip('0').ljust(2, '0')}"


def parse_counted(text: str) -> tuple[Counted, str | None]:
    """Parse `per` of a quota: what one count is kept for, and which label."""
    if (match := _LABEL.fullmatch(text)) is not None:
        return Counted.LABEL, match[1]
    if text in _NAMED_ALONE:
        return Counted(text), None
    raise PatternError("expected one of client, rule, all, session, label:NAME")


def parse_size(text: str) -> int:
    """Parse a number of bytes, such as 500MB; `PatternError` with the bounds."""
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * _BYTES[match[2]] if match else 0
    if not 0 < size <= LARGEST_SIZE:
        raise PatternError(
            f"{text!r} is not a size of at most 1000TB, expected one such as 500KB, 20MB or 1GB"
        )
    return size


_NAMED_ALONE: Final = frozenset(Counted) - {Counted.LABEL}
_LABEL: Final = re.compile(r"label:([a-z][a-z0-9_.-]{0,62})")
_EVERY = {
    Window.MINUTE: "a minute",
    Window.HOUR: "an hour",
    Window.DAY: "a day",
    Window.WEEK: "a week",
    Window.MONTH: "a month",
}
_SECONDS = {
    Window.MINUTE: 60,
    Window.HOUR: 3_600,
    Window.DAY: 86_400,
    Window.WEEK: 604_800,
}
_FIRST_MONDAY = 4 * 86_400  # 1970-01-05
_MORE_THAN_A_MONTH = 32 * 86_400
_DIRECTION = {QuotaUnit.TOKENS_IN: " in", QuotaUnit.TOKENS_OUT: " out"}
_FOR = {
    Counted.CLIENT: "for each client",
    Counted.RULE: "for each rule",
    Counted.ALL: "for all together",
    Counted.SESSION: "for each session",
    Counted.LABEL: "for each {} of sessions",
}
