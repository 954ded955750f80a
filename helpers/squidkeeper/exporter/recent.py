"""The newest denials and findings (floor 5): rows of the status page, kept over a restart with the counts.

Of the newest answers only whether they failed, and not over a restart.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock
from typing import Final, NamedTuple

from squidkeeper.engine.query import CONNECT, DENIED_BY
from squidkeeper.record.record import NONE, Record, decode_field
from squidkeeper.record.urls import redacted_url, truncate

DENIALS_KEPT: Final = 50
ANSWERS_KEPT: Final = 200
_SERVER_ERROR = 500
_ANSWERED_BY_SQUID = "NONE"  # its page inside a tunnel that was denied; what it judges there itself is TCP_DENIED


@dataclass(frozen=True, slots=True)
class Denial:
    """A request that was denied, as often as it was the same: client, user, method, URL without query, and rule."""

    time: datetime
    """When it was last denied."""
    client: str
    user: str | None
    method: str
    url: str
    """Without query, fragment and password, printable ASCII, at most `urls.URL_LIMIT` characters."""
    cut: int
    """Characters that are missing at the URL's end."""
    rule: str
    times: int = 1
    """How often it was denied, since it was last forgotten."""


@dataclass(frozen=True, slots=True)
class DriftSeen:
    """A request that is not as the policy in force has it."""

    time: datetime
    client: str
    method: str
    url: str
    """As on record; the page takes the query off."""
    rule: str
    """What the policy says."""
    kind: str
    """`allowed`, `unasked` or `credential`, as `record/drift.py` names them."""


class RecentAnswer(NamedTuple):
    """How a request that was let through was answered."""

    time: str
    """As on record."""
    failed: bool
    """Whether by a 5xx, the host's own or Squid's."""


class RecentAnswers:
    """The last answers, a bounded number. Not safe between threads: who shares it, locks."""

    def __init__(self) -> None:
        self._answers: deque[RecentAnswer] = deque(maxlen=ANSWERS_KEPT)

    def add(self, record: Record) -> None:
        """Take a record of any request. A tunnel that was opened is no answer: what passes through it has its own."""
        failed = record.status >= _SERVER_ERROR
        if failed or (record.verdict != "deny" and record.method != CONNECT and record.status > 0):
            self._answers.append(RecentAnswer(record.time, failed))

    def newest(self) -> tuple[RecentAnswer, ...]:
        """List them, the oldest first."""
        return tuple(self._answers)


class RecentDenials:
    """The last denials, a bounded number; the same one again only counts up. The tally feeds it, the page reads it.

    Where there are too many, the oldest of the client that has the most goes.

    Safe between threads. To live through a restart: keep `newest()` (msgspec and json know such dataclasses), hand it
    back as `kept`.
    """

    def __init__(self, kept: Iterable[Denial] = (), limit: int = DENIALS_KEPT) -> None:
        self._limit = limit
        self._lock = Lock()
        self._rows: OrderedDict[tuple[str | None, ...], Denial] = OrderedDict()
        for denial in reversed(tuple(kept)):
            self._put(denial)

    def add(self, record: Record) -> None:
        """Take a record of any request; only denials are kept."""
        if record.verdict == "deny":
            denial = _denial(record)
            with self._lock:
                if record.squid.startswith(_ANSWERED_BY_SQUID):
                    self._forget_tunnel(denial, record.tunnel)
                self._put(denial)

    def newest(self) -> tuple[Denial, ...]:
        """List them, the newest first."""
        with self._lock:
            return tuple(reversed(self._rows.values()))

    def _put(self, denial: Denial) -> None:
        key = _key(denial)
        before = self._rows.pop(key, None)
        self._rows[key] = replace(denial, times=denial.times + before.times) if before else denial
        if len(self._rows) > self._limit:
            self._forget_one()

    def _forget_one(self) -> None:
        """Forget the oldest of the client that has the most: so no client's denials push out those of another."""
        clients = Counter(denial.client for denial in self._rows.values())
        (busiest, _), *_ = clients.most_common(1)
        del self._rows[next(key for key, denial in self._rows.items() if denial.client == busiest)]

    def _forget_tunnel(self, denial: Denial, tunnel: str) -> None:
        """Let a request stand for the CONNECT of the denied tunnel that it came through, which it answers.

        The tunnel's name says that it was denied where a helper did; where its address did, it does not.
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
