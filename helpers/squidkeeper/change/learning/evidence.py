"""Evidence: how often something was used, when, and by which machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from functools import reduce
from typing import TypeVar

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a rule. `machines` has the addresses that used it, `senders` the logins, or addresses without."""

    count: int
    first: datetime
    last: datetime
    days: frozenset[date]
    machines: frozenset[str]
    senders: frozenset[str]

    @property
    def clients(self) -> int:
        """How many clients it was at least: one machine may have several logins, and one login several machines."""
        return min(len(self.machines), len(self.senders))

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.count + other.count,
            min(self.first, other.first),
            max(self.last, other.last),
            self.days | other.days,
            self.machines | other.machines,
            self.senders | other.senders,
        )


def add_to(found: dict[K, Evidence], key: K, evidence: Evidence) -> None:
    """Add evidence to what is known under a key."""
    found[key] = found[key] + evidence if key in found else evidence


def total(evidence: Iterable[Evidence]) -> Evidence:
    """Add up; there has to be one."""
    return reduce(Evidence.__add__, evidence)


def without_loudest(evidence: Iterable[Evidence]) -> int:
    """Count what is left without what one machine alone speaks for, whichever has most of it.

    So no single machine makes a pattern wider for the others. What one machine alone has used is counted whole: it is
    wider for that machine only.
    """
    machines = [one.machines for one in evidence]
    if len(frozenset().union(*machines)) <= 1:
        return len(machines)
    alone: dict[frozenset[str], int] = {}
    for some in machines:
        if len(some) == 1:
            alone[some] = alone.get(some, 0) + 1
    return len(machines) - max(alone.values(), default=0)
