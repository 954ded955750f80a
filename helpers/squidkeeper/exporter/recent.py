"""The newest denials, findings and answers (floor 7), for the status page. A checkpoint saves denials and findings."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock
from typing import Final, NamedTuple

from squidkeeper.protocol.request import CONNECT, DENIED_BY
from squidkeeper.record.record import NONE, Record, decode_field
from squidkeeper.record.urls import redacted_url, truncate

DENIALS_LIMIT: Final = 50
ANSWERS_LIMIT: Final = 200
_SERVER_ERROR = 500
_ANSWERED_BY_SQUID = ("NONE", "TCP_DENIED_REPLY")  # a page inside a denied tunnel; TCP_DENIED is a denial of its own


@dataclass(frozen=True, slots=True)
class Denial:
    """Denied requests with the same client, user, method, URL without query, and rule."""

    time: datetime
    """When it was last denied."""
    client: str
    user: str | None
    method: str
    url: str
    """Without query, fragment and password, printable ASCII, at most `urls.URL_LIMIT` characters."""
    cut: int
    """Characters cut off at the URL's end."""
    rule: str
    times: int = 1
    """How often it was denied while it was in the list."""


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
    """`allowed`, `unasked` or `credential`, as `record/drift.py` names them."""


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
        """Add the record of any request, except an opened tunnel: the requests in it have their own answers."""
        failed = record.status >= _SERVER_ERROR
        if failed or (record.verdict != "deny" and record.method != CONNECT and record.status > 0):
            self._answers.append(RecentAnswer(record.time, failed))

    def newest(self) -> tuple[RecentAnswer, ...]:
        """List the answers, the oldest first."""
        return tuple(self._answers)


class RecentDenials:
    """The last denials, a bounded number; a repeated one counts up. Thread-safe.

    When the list is full, the oldest denial of the client with the most is dropped. `saved` is an earlier `newest()`.
    """

    def __init__(self, saved: Iterable[Denial] = (), limit: int = DENIALS_LIMIT) -> None:
        self._limit = limit
        self._lock = Lock()
        self._rows: OrderedDict[tuple[str | None, ...], Denial] = OrderedDict()
        for denial in reversed(tuple(saved)):
            self._put(denial)

    def add(self, record: Record) -> None:
        """Add the record of any request; ignore it unless it is a denial."""
        if record.verdict == "deny":
            denial = _denial(record)
            with self._lock:
                if record.squid.startswith(_ANSWERED_BY_SQUID):
                    self._drop_tunnel(denial, record.tunnel)
                self._put(denial)

    def newest(self) -> tuple[Denial, ...]:
        """List the denials, the newest first."""
        with self._lock:
            return tuple(reversed(self._rows.values()))

    def _put(self, denial: Denial) -> None:
        key = _key(denial)
        before = self._rows.pop(key, None)
        self._rows[key] = replace(denial, times=denial.times + before.times) if before else denial
        if len(self._rows) > self._limit:
            self._drop_one()

    def _drop_one(self) -> None:
        """Drop the oldest of the client with the most, so that no client pushes out another's denials."""
        clients = Counter(denial.client for denial in self._rows.values())
        (busiest, _), *_ = clients.most_common(1)
        del self._rows[next(key for key, denial in self._rows.items() if denial.client == busiest)]

    def _drop_tunnel(self, denial: Denial, tunnel: str) -> None:
        """Drop the CONNECT of a denied tunnel, because the request in it is shown instead.

        The tunnel's name has the suffix `DENIED_BY` if a helper denied it, and not if Squid denied its address.
        """
        authority = (decode_field(tunnel) or "").partition(DENIED_BY)[0]
        key = _key(replace(denial, method=CONNECT, url=authority))
        before = self._rows.pop(key, None)
        if before and before.times > 1:
            self._rows[key] = replace(before, times=before.times - 1)


def _key(denial: Denial) -> tuple[str | None, ...]:
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
