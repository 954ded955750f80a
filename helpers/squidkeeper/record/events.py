"""Events (floor 5): a denied or failed CONNECT and the request inside it, as one.

Squid answers a denied CONNECT with 200, so that it can show its page inside. The access log then has the CONNECT
(TCP_DENIED/200) and, on the same connection, each request inside (TCP_DENIED_REPLY/403). The first request stands for
both, because it has the whole URL, but only if that URL names the host and port of the CONNECT: the client chooses it,
and must not hide what was denied. If it names another, both are events. If its URL is withheld, the CONNECT stands for
both. If the client leaves before it sends a request, the CONNECT is the event.

The same holds where the origin has no address or fails in TLS: the CONNECT was allowed, and no helper decided the
request inside. The policy may deny that request (another method, another path), so the verdict of the CONNECT is not
its verdict. The CONNECT of an opened tunnel is no event: each request in it has a record of its own. A tunnel that
passed through is one: after the CONNECT, Squid logs it once more when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final, NamedTuple

import msgspec

from squidkeeper.protocol.request import CONNECT
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, is_spliced, parse_time

WAIT: Final = timedelta(seconds=10)
HTTPS_PORT: Final = ":443"  # which no URL names
QUEUED_RECORDS_LIMIT: Final = 10_000
QUEUED_BYTES_LIMIT: Final = 16 * 1024 * 1024  # of lines; their records take as much again, and more

_OPENED = 200
_ABORTED = "_ABORTED/"
_NOTHING_FOLLOWS = CLIENT_ERRORS
_DECISION = ("verdict", "rule", "revision")
_UNDECIDED = {**dict.fromkeys(_DECISION, NONE), "observed": NONE}
ConnectionKey = tuple[str, str, str, str]


class Judgement(NamedTuple):
    """What the policy decides about a request that no helper decided, as a record has it."""

    verdict: str
    rule: str
    observed: str = NONE


Decide = Callable[[Record], Judgement | None]  # of a record that names a revision


class Fold(Enum):
    """Which of two records stands for both: a CONNECT, or the request inside that Squid answered with its page."""

    NEITHER = auto()
    CONNECT = auto()
    REQUEST = auto()


class LoggedRecord(NamedTuple):
    """A record and its line: as Squid logged it, or encoded again after its CONNECT was merged into it."""

    line: bytes
    record: Record


@dataclass(slots=True, eq=False)
class _Queued:
    """A record in the queue; `until` is the log time up to which a CONNECT waits for the request inside."""

    logged: LoggedRecord
    until: datetime | None = None
    merged: bool = False


class Events:
    """Turns records into events, both in the order of the log.

    A CONNECT that Squid answers inside the tunnel waits for the request inside: for `WAIT` of the log's clock, and
    while the records queued behind it stay below `QUEUED_RECORDS_LIMIT` and `QUEUED_BYTES_LIMIT`. The next record of
    the connection that was not served ends the wait.
    `connects` counts opened tunnels, `merged` records that another event stands for: records = events + connects +
    merged. `decide` decides a request that no helper decided; None means unknown.
    """

    def __init__(self, decide: Decide = lambda _: None) -> None:
        self.connects = 0
        self.merged = 0
        self._decide = decide
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._waiting: dict[ConnectionKey, _Queued] = {}

    def feed(self, records: Iterable[LoggedRecord]) -> Iterator[LoggedRecord]:
        """Take records, whose times are valid; yield the events that are complete."""
        for logged in records:
            record = logged.record
            event = self._merge(logged) if self._waiting else logged
            if event is None:
                yield from self._complete(record)
            elif is_opened_tunnel(record):
                self.connects += 1
            elif is_answered_inside(record):
                self._add_waiting(logged)
                yield from self._complete(record)
            elif self._queue:
                self._add(_Queued(event))
                yield from self._complete(record)
            else:
                yield event

    def flush(self) -> Iterator[LoggedRecord]:
        """Yield everything in the queue: no more records come, or the wait is over."""
        self._waiting.clear()
        yield from (queued.logged for queued in self._queue if not queued.merged)
        self._queue.clear()
        self._queue_bytes = 0

    def _add(self, queued: _Queued) -> None:
        self._queue.append(queued)
        self._queue_bytes += len(queued.logged.line)

    def _add_waiting(self, logged: LoggedRecord) -> None:
        queued = _Queued(logged, parse_time(logged.record) + WAIT)
        self._add(queued)
        self._waiting[connection_key(logged.record)] = queued

    def _merge(self, logged: LoggedRecord) -> LoggedRecord | None:
        """Merge a record and the CONNECT that waits for it, if there is one; None where the CONNECT stands for both."""
        if is_served(logged.record):
            return logged
        queued = self._waiting.pop(connection_key(logged.record), None)
        if queued is None:
            return logged
        queued.until = None
        connect = queued.logged.record
        stands = fold(connect, logged.record)
        self.merged += stands is not Fold.NEITHER
        queued.merged = stands is Fold.REQUEST
        if stands is Fold.CONNECT:
            return None
        return self._with_connect(connect, logged) if queued.merged else logged

    def _with_connect(self, connect: Record, inside: LoggedRecord) -> LoggedRecord:
        """Merge a CONNECT into the request inside: the client has waited for both."""
        request = inside.record
        if request.user == NONE:  # Squid knows no user inside a tunnel that failed
            request = msgspec.structs.replace(request, user=connect.user)
        waited = connect.duration_ms + request.duration_ms
        record = msgspec.structs.replace(request, duration_ms=waited, **self._decision(connect, request))
        return inside if record == inside.record else LoggedRecord(msgspec.json.encode(record), record)

    def _decision(self, connect: Record, inside: Record) -> dict[str, str]:
        """Return what a request lacks of its decision: its denied CONNECT's, or a new decision's."""
        if inside.verdict != NONE or connect.verdict == "deny":
            names = _UNDECIDED if inside.verdict == NONE else _DECISION
            return {name: getattr(connect, name) for name in names if getattr(inside, name) == NONE}
        decided = self._decide(msgspec.structs.replace(inside, revision=connect.revision))
        if decided is None:
            return _UNDECIDED
        return {**decided._asdict(), "revision": connect.revision}

    def _complete(self, newest: Record) -> Iterator[LoggedRecord]:
        now = parse_time(newest)
        while self._queue and not self._must_wait(self._queue[0], now):
            queued = self._queue.popleft()
            self._queue_bytes -= len(queued.logged.line)
            if not queued.merged:
                self._stop_waiting(queued)
                yield queued.logged

    def _must_wait(self, queued: _Queued, now: datetime) -> bool:
        is_full = len(self._queue) > QUEUED_RECORDS_LIMIT or self._queue_bytes > QUEUED_BYTES_LIMIT
        return queued.until is not None and queued.until >= now and not queued.merged and not is_full

    def _stop_waiting(self, queued: _Queued) -> None:
        key = connection_key(queued.logged.record)
        if self._waiting.get(key) is queued:
            del self._waiting[key]


def is_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of an allowed tunnel, opened or not; not the record of its end."""
    return record.method == CONNECT and record.verdict == "allow" and not is_spliced(record)


def is_opened_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of an allowed tunnel that was opened."""
    return is_tunnel(record) and record.status == _OPENED and record.error == NONE and _ABORTED not in record.squid


def is_answered_inside(record: Record) -> bool:
    """Tell whether Squid answers a CONNECT inside its tunnel: it was denied, or its origin failed."""
    if record.method != CONNECT or record.status != _OPENED or record.error in _NOTHING_FOLLOWS:
        return False
    return record.verdict == "deny" or record.error != NONE


def is_served(record: Record) -> bool:
    """Tell whether a record was allowed and did not fail: it is no request that Squid answered for its CONNECT."""
    return record.verdict == "allow" and record.error == NONE


def fold(connect: Record, inside: Record) -> Fold:
    """Tell which stands for both: a CONNECT that `is_answered_inside`, or the next record of its connection."""
    if inside.method == CONNECT or parse_time(inside) > parse_time(connect) + WAIT:
        return Fold.NEITHER
    if (inside.url, inside.tunnel) == (NONE, NONE) and inside.rule in (
        NONE,
        connect.rule,
    ):  # withheld, no rule of its own
        return Fold.CONNECT
    is_same = inside.tunnel == connect.tunnel and connect.url != NONE and names_tunnel(inside.url, connect.url)
    return Fold.REQUEST if is_same else Fold.NEITHER


def names_tunnel(url: str, authority: str) -> bool:
    """Tell whether a URL names the host and port of a CONNECT; both are written as Squid understood them."""
    return url.startswith(f"https://{authority.removesuffix(HTTPS_PORT)}/")


def connection_key(record: Record) -> ConnectionKey:
    """Tell the connections of the access log apart."""
    return record.client, record.connection, record.worker, record.gateway  # each worker numbers its connections
