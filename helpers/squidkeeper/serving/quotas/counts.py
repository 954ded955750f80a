"""The counts of quotas: whose count a request belongs to, in the helpers and in the
log; what every store does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, Self
from urllib.parse import quote

from squidkeeper.base.client_network import client_network
from squidkeeper.policy.language.quotas import (
    Counted,
    Quota,
    QuotaUnit,
    Window,
    answer_share,
)
from squidkeeper.policy.language.roles import Session

# a lease is at most this part of what is left, so that the last units are given one by
# one
SHARE = 16
LEASE_AT_MOST = 32
LARGEST: Final = 2**53  # a count goes no higher: a number in Lua is exact up to here


@dataclass(frozen=True, slots=True)
class QuotaCount:
    """One count: of a quota, for one holder.

    Another unit or window of the quota has another count.
    """

    quota: str
    unit: QuotaUnit
    window: Window
    holder: str

    @classmethod
    def of(cls, quota: Quota, holder: str) -> Self:
        """Name the count of a quota for a holder."""
        return cls(quota.name, quota.unit, quota.window, holder)

    @classmethod
    def parse(cls, quota: str, unit: str, every: str, holder: str) -> Self:
        """Read a count as a store keeps it; ValueError for a unit or a window that is
        unknown.
        """
        return cls(quota, QuotaUnit(unit), Window(every), holder)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a store has given of a count, what is used of it and left, that included,
    and when the window ends.

    `left` goes by the limit that held: this gateway's part where the store of all
    gateways is away. `ends_in` is in seconds.
    """

    given: int
    used: int
    left: int
    ends_in: float


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """How much of a count is used in its window, for people."""

    count: QuotaCount
    used: int
    ends_in: float


class CountStore(Protocol):
    """Keeps counts.

    Every method raises `CountsUnavailable` where it cannot, within a quarter of a
    second or so.
    """

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        """Hand out up to so many units of what is left, in one step for all who ask.

        None asked: say what is used.
        """

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already."""


# How much to hold of what is free, beside so many other requests; none refuses the
# request.
Choice = Callable[[int, int], int]
_FEW: Final = 4  # requests


def exactly(size: int) -> Choice:
    """Hold a size."""
    return lambda free, _: size if size <= free else 0


def at_most(size: int) -> Choice:
    """Hold a size, or what is left."""
    return lambda free, _: min(size, free)


def share_of_answer(free: int, others: int) -> int:
    """Hold for an answer of unknown length what leaves others some."""
    return min(answer_share(free // (2 if others < _FEW else 16)), free)


class HoldingStore(CountStore, Protocol):
    """Holds what requests are about to send or to get, on this gateway."""

    def hold(
        self, request: str, count: QuotaCount, limit: int, choose: Choice
    ) -> Taken:
        """Hold what `choose` says until the request has ended, in place of what the
        request holds already.

        None given: it is more than is left.
        """

    def release(self, requests: Iterable[str]) -> None:
        """Hold nothing any more for these requests."""


def share(limit: int, used: int, asked: int) -> int:
    """Return how many units somebody gets: what was asked, less where little is left,
    and never more than is left.
    """
    left = limit - used
    return min(asked, max(1, left // SHARE)) if left > 0 else 0


_EVERYONE: Final = "all"


def held_counts(
    quotas: Iterable[Quota],
    address: str,
    user: str | None,
    rule: str,
    session: Session | None,
) -> list[tuple[Quota, str]]:
    """List the quotas that count a request, each with whose count it is."""
    counts = ((quota, holder(quota, address, user, rule, session)) for quota in quotas)
    return [(quota, named) for quota, named in counts if named is not None]


def holder(
    quota: Quota,
    address: str,
    user: str | None,
    rule: str,
    session: Session | None = None,
) -> str | None:
    """Name whose count of a quota a request belongs to; None where it has none.

    `user` is the proxy user as the access log has it, in percent-encoding: who logs in
    has one count, from whichever address. None without a login. A session counts as
    itself or by a label, also as a client: it inherits no count of its name or address.
    """
    match quota.per:
        case Counted.LABEL:
            return None if session is None else _labelled(session, quota.label or "")
        case Counted.SESSION | Counted.CLIENT if session is not None:
            return of_session(session.number)
        case Counted.SESSION:
            return None
        case Counted.CLIENT:
            return client_network(address) if user is None else f"user:{user}"
        case Counted.RULE:
            return f"rule:{rule}"
        case Counted.ALL:
            return _EVERYONE


def of_session(number: int | str) -> str:
    """Name the count of a session, by its number, which no other one ever has."""
    return f"session:{number}"


def _labelled(session: Session, label: str) -> str:
    """Name the count of a label's value, of one orchestrator. Its sessions without the
    label have one count together, so that nobody passes a quota by leaving it out.
    """
    value = session.labels.get(label)
    whose = f"label:{session.orchestrator}:{label}"
    return whose if value is None else f"{whose}={quote(value, safe='')}"
