"""Events (floor 5): a denied or failed CONNECT and the request inside it, as one.

Squid answers a denied CONNECT with 200, so that it can show its page inside. The access log then has the CONNECT
(TCP_DENIED/200) and, on the same connection, each request inside (TCP_DENIED_REPLY/403). The first request stands for
both, because it has the whole URL. If the client leaves before it sends one, the CONNECT is the event. The same holds
where the origin has no address or fails in TLS: the CONNECT was allowed, and no helper decided the request inside. The
policy may deny that request (another method, another path), so the verdict of the CONNECT is not its verdict. The
CONNECT of an opened tunnel is no event: each request in it has a record of its own. A tunnel that passed through is
one: after the CONNECT, Squid logs it once more when it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

import msgspec

from squidkeeper.protocol.request import CONNECT
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, format_time, is_spliced, parse_time

WAIT_SECONDS: Final = 10.0
QUEUED_RECORDS_LIMIT: Final = 10_000
QUEUED_BYTES_LIMIT: Final = 16 * 1024 * 1024  # of lines; their records take as much again, and more

_OPENED = 200
_ABORTED = "_ABORTED/"
_NOTHING_FOLLOWS = CLIENT_ERRORS
_UNDECIDED = {"verdict": NONE, "rule": NONE, "revision": NONE}

Decide = Callable[[Record], tuple[str, str] | None]  # returns verdict and rule of a record that names a revision


class LoggedRecord(NamedTuple):
    """A record and its line: as Squid logged it, or encoded again after its CONNECT was merged into it."""

    line: bytes
    record: Record


@dataclass(slots=True, eq=False)
class _Queued:
    """A record in the queue; `until` is the log time up to which a CONNECT waits for the request inside."""

    logged: LoggedRecord
    until: str = ""
    merged: bool = False


class Events:
    """Turns records into events, both in the order of the log.

    A CONNECT that Squid answers inside the tunnel waits for the request inside: for `wait_seconds` of the log's clock,
    and while the records queued behind it stay below `QUEUED_RECORDS_LIMIT` and `QUEUED_BYTES_LIMIT`.
    `connects` counts opened tunnels, `merged` CONNECTs that another event stands for: records = events + connects +
    merged. `decide` decides a request that no helper decided; None means unknown.
    """

    def __init__(self, wait_seconds: float = WAIT_SECONDS, decide: Decide = lambda _: None) -> None:
        self.connects = 0
        self.merged = 0
        self._wait = timedelta(seconds=wait_seconds)
        self._decide = decide
        self._queue: deque[_Queued] = deque()
        self._queue_bytes = 0
        self._waiting: dict[tuple[str, str, str], _Queued] = {}

    def feed(self, records: Iterable[LoggedRecord]) -> Iterator[LoggedRecord]:
        """Take records; yield the events that are complete."""
        for logged in records:
            record = logged.record
            is_tunnel = record.method == CONNECT and record.status == _OPENED
            if is_tunnel and is_opened_tunnel(record):
                self.connects += 1
            elif is_tunnel and _is_answered_inside(record):
                self._add_waiting(logged)
                yield from self._complete(record.time)
            else:
                event = self._merge_connect(logged) if self._waiting else logged
                if self._queue:
                    self._add(_Queued(event))
                    yield from self._complete(record.time)
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
        queued = _Queued(logged, _wait_end(logged.record, self._wait))
        self._add(queued)
        self._waiting[_tunnel_key(logged.record)] = queued

    def _merge_connect(self, logged: LoggedRecord) -> LoggedRecord:
        queued = self._waiting.pop(_tunnel_key(logged.record), None)
        if queued is None:
            return logged
        queued.merged = True
        self.merged += 1
        return self._with_connect(queued.logged.record, logged)

    def _with_connect(self, connect: Record, inside: LoggedRecord) -> LoggedRecord:
        """Merge a CONNECT into the request inside: the client has waited for both."""
        request = inside.record
        if request.user == NONE:  # Squid knows no user inside a tunnel that failed
            request = msgspec.structs.replace(request, user=connect.user)
        waited = connect.duration_ms + request.duration_ms
        record = msgspec.structs.replace(request, duration_ms=waited, **self._decision(connect, request))
        return inside if record == inside.record else LoggedRecord(msgspec.json.encode(record), record)

    def _decision(self, connect: Record, inside: Record) -> dict[str, str]:
        """Return the verdict, rule and revision that a request lacks: its denied CONNECT's, or a new decision's."""
        if inside.verdict != NONE or connect.verdict == "deny":
            return {name: getattr(connect, name) for name in _UNDECIDED if getattr(inside, name) == NONE}
        decided = self._decide(msgspec.structs.replace(inside, revision=connect.revision))
        if decided is None:
            return _UNDECIDED
        return {"verdict": decided[0], "rule": decided[1], "revision": connect.revision}

    def _complete(self, now: str) -> Iterator[LoggedRecord]:
        while self._queue and not self._must_wait(self._queue[0], now):
            queued = self._queue.popleft()
            self._queue_bytes -= len(queued.logged.line)
            if not queued.merged:
                self._stop_waiting(queued)
                yield queued.logged

    def _must_wait(self, queued: _Queued, now: str) -> bool:
        is_full = len(self._queue) > QUEUED_RECORDS_LIMIT or self._queue_bytes > QUEUED_BYTES_LIMIT
        return queued.until > now and not queued.merged and not is_full

    def _stop_waiting(self, queued: _Queued) -> None:
        key = _tunnel_key(queued.logged.record)
        if self._waiting.get(key) is queued:
            del self._waiting[key]


def is_opened_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of an allowed and opened tunnel, not the one that is logged at its end."""
    return (
        record.method == CONNECT
        and record.status == _OPENED
        and record.verdict == "allow"
        and record.error == NONE
        and _ABORTED not in record.squid
        and not is_spliced(record)
    )


def _is_answered_inside(record: Record) -> bool:
    """Tell whether Squid answers inside the tunnel: it was denied, or its origin failed, and the client can do TLS."""
    return record.error not in _NOTHING_FOLLOWS and (record.verdict == "deny" or record.error != NONE)


def _tunnel_key(record: Record) -> tuple[str, str, str]:
    return record.client, record.connection, record.tunnel


def _wait_end(record: Record, wait: timedelta) -> str:
    try:
        return format_time(parse_time(record) + wait)
    except (ValueError, OverflowError):
        return ""
