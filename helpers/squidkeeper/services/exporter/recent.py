"""The newest denials, findings and answers, for the status page.

A checkpoint saves denials and findings.
"""

import os
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.record import (
    NONE,
    Record,
    decode_field,
    parse_record,
    redacted_url,
    truncate,
)
from squidkeeper.record.log.requests import (
    ConnectionKey,
    connection_key,
    is_denied_tunnel,
    names_tunnel,
)
from squidkeeper.record.why import facts_of, judge
from squidkeeper.record.why.causes import SERVER_ERROR

DENIALS_LIMIT: Final = 50
ANSWERS_LIMIT: Final = 200
_TAIL_BYTES: Final = 1 << 20
_DenialKey = tuple[str | None, ...]
_CONNECTS_LIMIT: Final = 1_000  # that wait for the request inside


@dataclass(frozen=True, slots=True)
class Denial:
    """Denied requests with the same client, user, method, URL without query,
    and rule.
    """

    time: datetime
    """When it was last denied."""
    client: str
    user: str | None
    method: str
    url: str
    """Without query, fragment and password, printable ASCII, at most `urls.URL_LIMIT`
    characters.
    """
    cut: int
    """Characters cut off at the URL's end."""
    rule: str
    times: int = 1
    """How often it was denied while it was in the list."""
    cause: str = ""
    """The code of its cause in `record/why/causes.py`; empty: an earlier release kept
    it.
    """
    facts: dict[str, str] = field(default_factory=dict)
    """What the sentence of the cause names."""


@dataclass(frozen=True, slots=True)
class DriftSeen:
    """A finding of drift."""

    time: datetime
    client: str
    method: str
    url: str
    """As in the access log; the page removes the query."""
    rule: str
    """The rule that decides by the policy."""
    kind: str
    """`allowed`, `unasked` or `credential`, as `record/log/drift.py` names them."""


class RecentAnswer(NamedTuple):
    """How an allowed request was answered."""

    time: str
    """As in the access log."""
    failed: bool
    """Whether the status was 5xx, by the host or by Squid."""


class RecentAnswers:
    """The last answers, a bounded number. Not thread-safe."""

    def __init__(self) -> None:
        self._answers: deque[RecentAnswer] = deque(maxlen=ANSWERS_LIMIT)

    def add(self, record: Record) -> None:
        """Add the record of any request, except an opened tunnel: the requests in it
        have their own answers.
        """
        failed = record.status >= SERVER_ERROR
        if failed or (
            record.verdict != "deny" and record.method != CONNECT and record.status > 0
        ):
            self._answers.append(RecentAnswer(record.time, failed))

    def newest(self) -> tuple[RecentAnswer, ...]:
        """List the answers, the oldest first."""
        return tuple(self._answers)


def last_answers(access_log: Path) -> tuple[RecentAnswer, ...]:
    """Read the last answers of an access log, from its last megabyte."""
    answers = RecentAnswers()
    with suppress(OSError), open_untrusted(access_log) as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
        for line in log.read(_TAIL_BYTES).splitlines():
            with suppress(InvalidRecord):  # such as the first one, which is cut
                answers.add(parse_record(line))
    return answers.newest()


class RecentDenials:
    """The last denials, a bounded number; a repeated one counts up. Thread-safe.

    The CONNECT of a denied tunnel is dropped when a request inside is denied, as in
    `record/log/requests.py`. When the list is full, the oldest denial of the client
    with the most is dropped. `saved` is an earlier `newest()`.
    """

    def __init__(
        self, saved: Iterable[Denial] = (), limit: int = DENIALS_LIMIT
    ) -> None:
        self._limit = limit
        self._lock = Lock()
        self._rows: OrderedDict[_DenialKey, Denial] = OrderedDict()
        self._connects: OrderedDict[ConnectionKey, Record] = OrderedDict()
        self._unjudged: dict[
            _DenialKey, Record
        ] = {}  # of rows: a flood of denials leaves few that are shown
        for denial in reversed(tuple(saved)):
            self._put(denial)

    def add(self, record: Record) -> None:
        """Add the record of any request; ignore it unless it is a denial."""
        if record.verdict != "deny":
            return
        with self._lock:
            if is_denied_tunnel(record):
                self._wait(record)
            else:
                connect = self._connects.pop(connection_key(record), None)
                if connect and names_tunnel(record.url, connect.url):
                    self._drop(connect)
            denial = _denial(record)
            self._unjudged[_key(denial)] = record
            self._put(denial)

    def newest(self) -> tuple[Denial, ...]:
        """List the denials with their causes, the newest first."""
        with self._lock:
            for key, record in self._unjudged.items():
                self._rows[key] = _judged(self._rows[key], record)
            self._unjudged.clear()
            return tuple(reversed(self._rows.values()))

    def _put(self, denial: Denial) -> None:
        key = _key(denial)
        before = self._rows.pop(key, None)
        self._rows[key] = (
            replace(denial, times=denial.times + before.times) if before else denial
        )
        if len(self._rows) > self._limit:
            self._drop_one()

    def _drop_one(self) -> None:
        """Drop the oldest of the client with the most, so that no client pushes out
        another's denials.
        """
        clients = Counter(denial.client for denial in self._rows.values())
        (busiest, _), *_ = clients.most_common(1)
        key = next(
            key for key, denial in self._rows.items() if denial.client == busiest
        )
        del self._rows[key]
        self._unjudged.pop(key, None)

    def _wait(self, connect: Record) -> None:
        self._connects[connection_key(connect)] = connect
        if len(self._connects) > _CONNECTS_LIMIT:
            self._connects.popitem(last=False)

    def _drop(self, connect: Record) -> None:
        key = _key(_denial(connect))
        before = self._rows.pop(key, None)
        if before and before.times > 1:
            self._rows[key] = replace(before, times=before.times - 1)
        else:
            self._unjudged.pop(key, None)


def _judged(denial: Denial, record: Record) -> Denial:
    cause = judge(record)
    return (
        replace(denial, cause=cause.code, facts=facts_of(record)) if cause else denial
    )


def _key(denial: Denial) -> _DenialKey:
    return denial.client, denial.user, denial.method, denial.url, denial.rule


def _denial(record: Record) -> Denial:
    url, missing = truncate(redacted_url(record.url))
    return Denial(
        time=datetime.fromisoformat(record.time),
        client=record.client,
        user=decode_field(record.user),
        method=truncate(decode_field(record.method) or NONE, 40)[0],
        url=url,
        cut=missing,
        rule=decode_field(record.rule) or NONE,
    )
