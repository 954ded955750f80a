"""The failures among records, grouped by cause, and which are asked about: by ID,
client, user, host, URL and time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NamedTuple

from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.filters import Filter
from squidkeeper.record.log.record import (
    NONE,
    Record,
    decode_field,
    endpoint_of,
    host_of,
    parse_time,
    redacted_url,
)
from squidkeeper.record.why.causes import KnownCause, facts_of, judge

GROUPS_LIMIT: Final = (
    10_000  # that are counted; what comes after is counted in one number
)
NEWEST_LIMIT: Final = 3  # requests of a group that are kept
_CLIENTS_LIMIT: Final = 100
_LOGIN_REFUSED: Final = "login-refused"


class Failure(NamedTuple):
    """A request that failed, and its cause."""

    record: Record
    cause: KnownCause


@dataclass(slots=True)
class FailureGroup:
    """Failures with one cause, one sentence and one host.

    `facts`, `newest` and `clients` are of the groups that are shown.
    """

    cause: KnownCause
    facts: dict[str, str] | None
    count: int = 0
    first: str = ""
    last: str = ""
    newest: list[Failure] = field(default_factory=list)
    clients: dict[str, None] = field(default_factory=dict)

    def add(self, failure: Failure) -> None:
        """Count a failure; the newest comes first."""
        self.count += 1
        self.first = failure.record.time
        self.last = self.last or failure.record.time
        if self.facts is None:
            return
        if len(self.newest) < NEWEST_LIMIT:
            self.newest.append(failure)
        if len(self.clients) < _CLIENTS_LIMIT:
            self.clients[failure.record.client] = None


def failures_among(records: Iterable[Record]) -> Iterator[Failure]:
    """Find the requests that failed."""
    return (Failure(record, cause) for record in records if (cause := judge(record)))


def group(failures: Iterable[Failure], shown: int) -> tuple[list[FailureGroup], int]:
    """Group failures, the newest first, by cause, sentence and host; count those of
    groups beyond the limit.

    The newest group comes first. The first `shown` keep their newest failures.
    """
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    beyond = 0
    for failure in failures:
        facts = facts_of(failure.record)
        key = (
            failure.cause.code,
            failure.cause.say(facts),
            host_of(failure.record.url).text,
        )
        found = groups.get(key)
        if found is None and len(groups) >= GROUPS_LIMIT:
            beyond += 1
            continue
        if found is None:
            kept = facts if len(groups) < shown else None
            found = groups[key] = FailureGroup(failure.cause, kept)
        found.add(failure)
    return list(groups.values()), beyond


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is asked: all of these hold. Empty ones hold for everything.

    `filters` are of the client and the host. A URL without a query stands for each
    query. A refused login is asked about with every user: the access log does not tell
    whose it was.
    """

    ids: frozenset[str] = frozenset()
    filters: tuple[Filter, ...] = ()
    users: frozenset[str] = frozenset()
    url: str | None = None

    def is_about(self, failure: Failure) -> bool:
        """Whether a failure is asked about."""
        record = failure.record
        return (
            (not self.ids or record.request_id in self.ids)
            and all(chosen.holds(record) for chosen in self.filters)
            and (
                self._has_user(record)
                or (bool(self.users) and failure.cause.code == _LOGIN_REFUSED)
            )
            and self._has_url(record)
        )

    def _has_user(self, record: Record) -> bool:
        return not self.users or decode_field(record.user) in self.users

    def _has_url(self, record: Record) -> bool:
        if self.url is None:
            return True
        if record.method == CONNECT:  # no request came, so the URL is not known
            return record.url == endpoint_of(self.url)
        return self.url in (record.url, redacted_url(record.url))


@dataclass(slots=True)
class Search:
    """The failures that are asked about, as far as they were read.

    `others` are the requests with an ID that did not fail, `unknown_ids` the IDs that
    no request has.
    """

    question: Inquiry
    since: datetime | None = None
    failed: int = 0
    beyond: int = 0
    others: dict[str, Record] = field(default_factory=dict)
    unknown_ids: frozenset[str] = frozenset()

    def ask_for(self, standing: Mapping[str, str]) -> None:
        """Ask about the records that stand for others which are asked about, by the IDs
        of these.
        """
        ids = (standing.get(one, one) for one in self.question.ids)
        self.question = replace(self.question, ids=frozenset(ids))

    def groups(self, records: Iterable[Record], shown: int) -> list[FailureGroup]:
        """Group the failures among records, of which the newest comes first."""
        self.unknown_ids = self.question.ids
        groups, self.beyond = group(self._asked(records), shown)
        return groups

    def _asked(self, records: Iterable[Record]) -> Iterator[Failure]:
        failed: set[str] = set()
        for failure in filter(self._is_asked, failures_among(self._noted(records))):
            self.failed += 1
            failed |= {failure.record.request_id} & self.question.ids
            yield failure
        for one in failed:
            self.others.pop(one, None)

    def _is_asked(self, failure: Failure) -> bool:
        is_late = (
            self.since is None
            or self.question.ids
            or parse_time(failure.record) >= self.since
        )
        return bool(is_late) and self.question.is_about(failure)

    def _noted(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if record.request_id in self.question.ids:
                self.others.setdefault(record.request_id, record)
                self.unknown_ids -= {record.request_id}
            yield record


def is_unsure_of_user(question: Inquiry, code: str) -> bool:
    """Whether a cause is shown although the access log does not name its user."""
    return bool(question.users) and code == _LOGIN_REFUSED


def about_other(record: Record) -> str:
    """Say what became of a request that did not fail."""
    rule = decode_field(record.rule) or NONE
    return f"{record.request_id} did not fail: {record.method}, status {record.status}, {record.verdict} by {rule}."
