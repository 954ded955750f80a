"""The lines of an archive compared with Squid's own counter of requests.

Squid counts a request when it logs it, so between two samples of one run it has counted
as many as there are lines, without those of connections that ended before a request
(`error:transaction-end-before-headers`). A sample is taken between two times, and a
line has Squid's own time: what was logged within a second of a sample may be on either
side of it. That is the tolerance, and there is no other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import Final

from squidkeeper.base.formatting import utc_seconds
from squidkeeper.base.squid_counters import SquidSample
from squidkeeper.record.chain.chain import Chain
from squidkeeper.record.chain.entries import ArchivedPart, ChainEntry
from squidkeeper.record.chain.places import ArchivePlace
from squidkeeper.record.chain.verification import ArchiveFault, ArchiveFaultCode

TOLERANCE_SECONDS: Final = 1
_DAY_SECONDS: Final = 86400
_MEMORY_LIMIT: Final = "512MB"
_COUNT: Final = """
SELECT bound, count(*) FROM (SELECT CAST(floor(epoch(time)) AS BIGINT) AS second FROM read_parquet(?)
WHERE time IS NOT NULL AND url IS DISTINCT FROM 'error:transaction-end-before-headers') AS lines
ASOF JOIN (SELECT unnest(?::BIGINT[]) AS bound) AS bounds ON lines.second >= bounds.bound GROUP BY bound
"""


@dataclass(frozen=True, slots=True)
class Span:
    """From one sample of a run to the next, in seconds: the lines that belong to it,
    and those that may.
    """

    first: SquidSample
    last: SquidSample

    @property
    def certain(self) -> tuple[int, int]:
        """From which second on, up to which one, exclusive, every line was counted in
        between.
        """
        begin = int(self.first.answered) + 1 + TOLERANCE_SECONDS
        return begin, max(begin, int(self.last.asked) - TOLERANCE_SECONDS)

    @property
    def possible(self) -> tuple[int, int]:
        """From which second on, up to which one, exclusive, a line may have been
        counted in between.
        """
        return int(self.first.asked) - TOLERANCE_SECONDS, int(
            self.last.answered
        ) + 1 + TOLERANCE_SECONDS

    @property
    def days(self) -> set[str]:
        """The UTC days that it touches."""
        begin, end = self.possible
        days = range(begin // _DAY_SECONDS, end // _DAY_SECONDS + 1)
        return {
            f"{datetime.fromtimestamp(day * _DAY_SECONDS, UTC):%Y-%m-%d}"
            for day in days
        }

    @property
    def requests(self) -> int:
        """How many requests Squid counted in between."""
        return self.last.requests - self.first.requests


def samples_for(
    chain: Chain, samples: Iterable[SquidSample], last_line: str
) -> tuple[SquidSample, ...]:
    """Choose the samples that the entry of a log takes along: those after the last
    entry's, up to its last line.
    """
    known = [
        sample.asked
        for entry in chain.entries
        if entry.source
        for sample in entry.source.squid or ()
    ]
    after, until = (
        max(known, default=0.0),
        datetime.fromisoformat(last_line).timestamp() if last_line else 0.0,
    )
    return tuple(
        sample
        for sample in samples
        if after < sample.asked and sample.answered <= until
    )


def compare_lines(
    place: ArchivePlace, entries: tuple[ChainEntry, ...], broken: Iterable[str] = ()
) -> Iterator[ArchiveFault]:
    """Compare the lines of each run of Squid with its counter; OSError or duckdb.Error
    if a part is unreadable.

    `broken` are the paths of parts that are missing or changed: their days are not
    compared, and no removed day is.
    """
    chain, faulty = Chain(entries), set(broken)
    parts = {path: part for path, part in chain.parts.items() if path not in faulty}
    skipped = {part.day for path, part in chain.named.items() if path not in parts}
    begins = min((part.first for part in parts.values() if part.first), default="")
    spans = [span for span in _spans(entries, begins) if not span.days & skipped]
    if spans:
        yield from _compare(spans, _Lines(place, parts.values(), spans))


def _spans(entries: tuple[ChainEntry, ...], begins: str) -> Iterator[Span]:
    """List the spans between samples; the first one of a run begins at its start, if
    the archive reaches back to it.
    """
    found = {
        sample
        for entry in entries
        if entry.source
        for sample in entry.source.squid or ()
    }
    samples = sorted(found, key=lambda sample: sample.asked)
    earliest = datetime.fromisoformat(begins).timestamp() if begins else float("inf")
    for before, sample in pairwise([None, *samples]):
        if sample is None:
            continue
        if before and before.run == sample.run:
            yield Span(before, sample)
        elif sample.started > earliest:
            yield Span(_start(sample), sample)


def _start(sample: SquidSample) -> SquidSample:
    return SquidSample(
        run=sample.run, asked=sample.started, answered=sample.started, requests=0
    )


def _compare(spans: Iterable[Span], lines: _Lines) -> Iterator[ArchiveFault]:
    for span in spans:
        most, least = lines.between(*span.possible), lines.between(*span.certain)
        place = (
            f"from {utc_seconds(span.first.answered)} to {utc_seconds(span.last.asked)}"
        )
        counted = f"Squid counted {span.requests:,} requests"
        if span.requests > most:
            text = (
                f"{counted}, and the archive has {most:,} lines of them: {span.requests - most:,} or more are missing,"
                " or a rotated log of that time is not archived yet"
            )
            yield ArchiveFault(ArchiveFaultCode.LINES_MISSING, place, text)
        elif span.requests < least:
            text = f"{counted}, and the archive has {least:,} lines or more: it holds lines that Squid did not count"
            yield ArchiveFault(ArchiveFaultCode.LINES_SURPLUS, place, text)


class _Lines:
    def __init__(
        self, place: ArchivePlace, parts: Iterable[ArchivedPart], spans: Iterable[Span]
    ) -> None:
        import duckdb

        self._bounds = sorted(
            {0, *(bound for span in spans for bound in (*span.certain, *span.possible))}
        )
        found: Counter[int] = Counter()
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": 1,
            "memory_limit": _MEMORY_LIMIT,
        }
        with duckdb.connect(config=config) as connection:
            for part in parts:
                with place.open(part) as file:
                    # what was opened, whatever has its name by now
                    path = f"/proc/self/fd/{file.fileno()}"
                    found.update(
                        dict(
                            connection.execute(_COUNT, [path, self._bounds]).fetchall()
                        )
                    )
        self._before = [0, *accumulate(found[bound] for bound in self._bounds)]

    def between(self, begin: int, end: int) -> int:
        """Count the lines from one bound on, up to another, exclusive."""
        return (
            self._before[bisect_left(self._bounds, end)]
            - self._before[bisect_left(self._bounds, begin)]
        )
