"""Requests over time, in steps that grow with the period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.report import figures

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_M, _H, _D = 60, 3600, 86400
STEPS_SECONDS: Final = (
    *(1, 5, 15, 30, _M, 5 * _M, 15 * _M, 30 * _M),
    *(_H, 3 * _H, 6 * _H, 12 * _H, _D, 7 * _D, 28 * _D, 364 * _D),
)
_STEPS_SHOWN = 96

_REQUESTS: Final = """
    SELECT (epoch_ms(time) - ?) // ?, CASE WHEN denied THEN rule END, count(*)
    FROM reported GROUP BY ALL
"""
_NEW_HOSTS: Final = "SELECT (epoch_ms(first) - ?) // ?, count(*) FROM new_hosts GROUP BY ALL"


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of equal length; `first` is the start of the first one, in seconds since 1970."""

    seconds: int
    first: int
    number: int

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None) -> Steps:
        """Choose the shortest steps of which a period has 96 at most; no steps for a period that is open."""
        if since is None or until is None:
            return cls(STEPS_SECONDS[0], 0, 0)
        start, end = since.timestamp(), until.timestamp()
        seconds = next((step for step in STEPS_SECONDS if (end - start) / step <= _STEPS_SHOWN), STEPS_SECONDS[-1])
        first = int(start // seconds) * seconds
        return cls(seconds, first, max(0, int(end - first) // seconds + 1))

    def starts(self) -> Iterator[datetime]:
        """Give the start of each step."""
        for place in range(self.number):
            yield datetime.fromtimestamp(self.first + place * self.seconds, UTC)

    def counts(self, found: Iterable[tuple[int, int]]) -> tuple[int, ...]:
        """Put counts, each with the place of its step, into the order of the steps; of one place, add them."""
        counts = [0] * self.number
        for place, count in found:
            counts[place] += count
        return tuple(counts)


def timeline(
    connection: DuckDBPyConnection, steps: Steps
) -> tuple[figures.TimelineFigures, dict[str, tuple[int, ...]]]:
    """Return the requests of each step, and the denials of each rule in each step."""
    if not steps.number:
        return figures.TimelineFigures(steps.seconds, ()), {}
    parameters = [steps.first * 1000, steps.seconds * 1000]
    found = connection.execute(_REQUESTS, parameters).fetchall()
    allowed = steps.counts((place, count) for place, rule, count in found if rule is None)
    denied = steps.counts((place, count) for place, rule, count in found if rule is not None)
    new = steps.counts(connection.execute(_NEW_HOSTS, parameters).fetchall())
    rows = zip(steps.starts(), allowed, denied, new, strict=True)
    of_rules = {
        rule: steps.counts((place, count) for place, of, count in found if of == rule)
        for rule in {rule for _, rule, _ in found if rule is not None}
    }
    return figures.TimelineFigures(steps.seconds, tuple(figures.TimelineStep(*row) for row in rows)), of_rules
