"""The failures among records, newest first, grouped by cause."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from squidkeeper.record.log.record import Record
from squidkeeper.record.log.urls import host_of
from squidkeeper.record.why.causes import KnownCause, facts_of, judge

GROUPS_LIMIT: Final = 10_000  # that are counted; what comes after is counted in one number
NEWEST_LIMIT: Final = 3  # requests of a group that are kept
_CLIENTS_LIMIT: Final = 100


class Failure(NamedTuple):
    """A request that failed, and its cause."""

    record: Record
    cause: KnownCause


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


def failures_among(records: Iterable[Record]) -> Iterator[Failure]:
    """Find the requests that failed."""
    return (Failure(record, cause) for record in records if (cause := judge(record)))


def group(failures: Iterable[Failure]) -> tuple[list[FailureGroup], int]:
    """Group failures by cause, sentence and host, the newest group first; count those of groups beyond the limit."""
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    beyond = 0
    for failure in failures:
        facts = facts_of(failure.record)
        key = (failure.cause.code, failure.cause.say(facts), host_of(failure.record.url).text)
        found = groups.get(key)
        if found is None and len(groups) >= GROUPS_LIMIT:
            beyond += 1
            continue
        if found is None:
            found = groups[key] = FailureGroup(failure.cause, facts)
        found.add(failure)
    return sorted(groups.values(), key=lambda one: one.last, reverse=True), beyond
