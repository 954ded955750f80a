"""The failures among records, newest first, grouped by cause (floor 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from squidkeeper.record.events import (
    QUEUED_RECORDS_LIMIT,
    WAIT,
    ConnectionKey,
    Fold,
    connection_key,
    fold,
    is_answered_inside,
    is_served,
)
from squidkeeper.record.record import Record, parse_time
from squidkeeper.record.urls import host_of
from squidkeeper.why.causes import Case, KnownCause, facts_of, judge

GROUPS_LIMIT: Final = 10_000  # that are counted; what comes after is counted in one number
NEWEST_LIMIT: Final = 3  # requests of a group that are kept
_CLIENTS_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed, and its cause."""

    case: Case
    cause: KnownCause

    @property
    def record(self) -> Record:
        """The record of the request."""
        return self.case.record


@dataclass(slots=True)
class FailureGroup:
    """Failures with one cause, one sentence and one host."""

    cause: KnownCause
    facts: dict[str, str]
    count: int = 0
    first: str = ""
    last: str = ""
    newest: list[Failure] = field(default_factory=list)
    clients: dict[str, None] = field(default_factory=dict)

    def add(self, failure: Failure) -> None:
        """Count a failure; they come in the order of time."""
        self.count += 1
        self.first = self.first or failure.record.time
        self.last = failure.record.time
        self.newest = [failure, *self.newest[: NEWEST_LIMIT - 1]]
        if len(self.clients) < _CLIENTS_LIMIT:
            self.clients[failure.record.client] = None


class Failures:
    """Finds the failures among all records of a log, in the order of time.

    Squid answers a denied or failed CONNECT inside its tunnel. Both records are one failure as they are one event
    (`record/events.py`), with the cause of the CONNECT. Where the request inside is withheld, the failure is the
    CONNECT, with the time, status and request ID of the page that the client saw.
    """

    def __init__(self) -> None:
        self._waiting: dict[ConnectionKey, Record] = {}  # the oldest first

    def feed(self, records: Iterable[Record]) -> Iterator[Failure]:
        """Take records; yield the failures. A CONNECT waits for the request inside."""
        for record in records:
            connect = None if is_served(record) else self._waiting.pop(connection_key(record), None)
            yield from self._end_waits(record)
            cases = _cases(connect, record) if connect else [Case(record)]
            if is_answered_inside(record):
                self._waiting[connection_key(record)] = record
                cases.pop()
            for case in cases:
                yield from _failure(case)

    def _end_waits(self, now: Record) -> Iterator[Failure]:
        while self._waiting:
            key, connect = next(iter(self._waiting.items()))
            if len(self._waiting) <= QUEUED_RECORDS_LIMIT and not _is_late(connect, now):
                return
            del self._waiting[key]
            yield from _failure(Case(connect))

    def flush(self) -> Iterator[Failure]:
        """Yield the CONNECTs without a request inside: no more records come."""
        for connect in self._waiting.values():
            yield from _failure(Case(connect))
        self._waiting.clear()


def group(failures: Iterable[Failure]) -> tuple[list[FailureGroup], int]:
    """Group failures by cause, sentence and host, the newest group first; count those of groups beyond the limit."""
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    beyond = 0
    for failure in failures:
        facts = facts_of(failure.case)
        key = (failure.cause.code, failure.cause.say(facts), host_of(failure.case.asked.url).text)
        found = groups.get(key)
        if found is None and len(groups) >= GROUPS_LIMIT:
            beyond += 1
            continue
        if found is None:
            found = groups[key] = FailureGroup(failure.cause, facts)
        found.add(failure)
    return sorted(groups.values(), key=lambda one: one.last, reverse=True), beyond


def _cases(connect: Record, record: Record) -> list[Case]:
    """Make the cases of a CONNECT that has waited and the next record of its connection."""
    match fold(connect, record):
        case Fold.REQUEST:
            return [Case(record, connect)]
        case Fold.CONNECT:
            seen = {"time": record.time, "status": record.status, "request_id": record.request_id, "page": record.page}
            return [Case(msgspec.structs.replace(connect, **seen), connect)]
        case Fold.NEITHER:
            return [Case(connect), Case(record)]


def _failure(case: Case) -> Iterator[Failure]:
    cause = judge(case)
    if cause:
        yield Failure(case, cause)


def _is_late(connect: Record, record: Record) -> bool:
    return parse_time(record) > parse_time(connect) + WAIT
