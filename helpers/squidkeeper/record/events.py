"""What happened, as people count it (floor 5): a request in a tunnel and the CONNECT that opened it are one event.

Squid answers a denied CONNECT with 200, so that it can show its page inside: the log has the CONNECT (TCP_DENIED/200)
and, on the same connection, each request inside (NONE_NONE/403). The first of these stands for both, as it has the
whole URL; where none comes, since the client left, the CONNECT is the event. So it is where a host has no address, or
an origin fails in TLS: the CONNECT was allowed, and nobody has judged the request inside. The policy may deny that one
(another method, another path), so that the CONNECT's verdict is not its verdict. The CONNECT of a tunnel that was
allowed and opened is none at all: what passed through it has lines of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

import msgspec

from squidkeeper.engine.query import CONNECT
from squidkeeper.record.record import CLIENT_ERRORS, NONE, Record, moment_of, time_of

HOLD_SECONDS: Final = 10.0
HELD_AT_MOST: Final = 10_000
HELD_BYTES_AT_MOST: Final = 16 * 1024 * 1024  # of lines; as much again, and more, is what they say

_OPENED = 200
_ABORTED = "_ABORTED/"
_NOTHING_FOLLOWS = CLIENT_ERRORS
_UNJUDGED = {"verdict": NONE, "rule": NONE, "revision": NONE}

Verdict = Callable[[Record], tuple[str, str] | None]  # gives verdict and rule of a record that names a revision


class LoggedRecord(NamedTuple):
    """A record and its line: as it was logged, or made anew where its CONNECT adds to it."""

    line: bytes
    record: Record


@dataclass(slots=True, eq=False)
class _Held:
    """An entry that waits for its turn; `until` is the record's time up to which its inner request is waited for."""

    entry: LoggedRecord
    until: str = ""
    answered: bool = False


class Events:
    """Turns records, in their order, into events, in their order.

    A CONNECT that Squid answers inside the tunnel is held until the request that it answers comes, or `hold_seconds`
    have passed by the record's clock, or `HELD_AT_MOST` entries wait behind it, or `HELD_BYTES_AT_MOST` of their lines.
    `connects` counts those of opened tunnels, `merged` those that another event stands for; so that records = events +
    connects + merged. `judge` decides a request that no helper has judged; None: the decision is unknown.
    """

    def __init__(self, hold_seconds: float = HOLD_SECONDS, judge: Verdict = lambda _: None) -> None:
        self.connects = 0
        self.merged = 0
        self._hold = timedelta(seconds=hold_seconds)
        self._judge = judge
        self._queue: deque[_Held] = deque()
        self._queue_bytes = 0
        self._waiting: dict[tuple[str, str, str], _Held] = {}

    def feed(self, entries: Iterable[LoggedRecord]) -> Iterator[LoggedRecord]:
        """Give the events that are settled with these entries."""
        for entry in entries:
            record = entry.record
            is_tunnel = record.method == CONNECT and record.status == _OPENED
            if is_tunnel and opened(record):
                self.connects += 1
            elif is_tunnel and _is_awaited(record):
                self._hold_back(entry)
                yield from self._settled(record.time)
            else:
                event = self._answer(entry) if self._waiting else entry
                if self._queue:
                    self._queue_up(_Held(event))
                    yield from self._settled(record.time)
                else:
                    yield event

    def flush(self) -> Iterator[LoggedRecord]:
        """Give all that is held: nothing more comes, or it has been waited for long enough."""
        self._waiting.clear()
        yield from (held.entry for held in self._queue if not held.answered)
        self._queue.clear()
        self._queue_bytes = 0

    def _queue_up(self, held: _Held) -> None:
        self._queue.append(held)
        self._queue_bytes += len(held.entry.line)

    def _hold_back(self, entry: LoggedRecord) -> None:
        held = _Held(entry, _later(entry.record, self._hold))
        self._queue_up(held)
        self._waiting[_tunnel_of(entry.record)] = held

    def _answer(self, entry: LoggedRecord) -> LoggedRecord:
        held = self._waiting.pop(_tunnel_of(entry.record), None)
        if held is None:
            return entry
        held.answered = True
        self.merged += 1
        return self._merged(held.entry.record, entry)

    def _merged(self, connect: Record, inside: LoggedRecord) -> LoggedRecord:
        """Merge a CONNECT into the request that it was for: the client has waited for both."""
        asked = inside.record
        if asked.user == NONE:  # Squid knows no user inside a tunnel that failed
            asked = msgspec.structs.replace(asked, user=connect.user)
        waited = connect.duration_ms + asked.duration_ms
        record = msgspec.structs.replace(asked, duration_ms=waited, **self._decided(connect, asked))
        return inside if record == inside.record else LoggedRecord(msgspec.json.encode(record), record)

    def _decided(self, connect: Record, inside: Record) -> dict[str, str]:
        """Give the verdict, rule and revision that a request lacks: those of its denied tunnel, or judged anew."""
        if inside.verdict != NONE or connect.verdict == "deny":
            return {name: getattr(connect, name) for name in _UNJUDGED if getattr(inside, name) == NONE}
        judged = self._judge(msgspec.structs.replace(inside, revision=connect.revision))
        if judged is None:
            return _UNJUDGED
        return {"verdict": judged[0], "rule": judged[1], "revision": connect.revision}

    def _settled(self, now: str) -> Iterator[LoggedRecord]:
        while self._queue and not self._must_wait(self._queue[0], now):
            held = self._queue.popleft()
            self._queue_bytes -= len(held.entry.line)
            if not held.answered:
                self._forget(held)
                yield held.entry

    def _must_wait(self, held: _Held, now: str) -> bool:
        is_full = len(self._queue) > HELD_AT_MOST or self._queue_bytes > HELD_BYTES_AT_MOST
        return held.until > now and not held.answered and not is_full

    def _forget(self, held: _Held) -> None:
        tunnel = _tunnel_of(held.entry.record)
        if self._waiting.get(tunnel) is held:
            del self._waiting[tunnel]


def opened(record: Record) -> bool:
    """Tell whether a record is the CONNECT of a tunnel that was allowed and opened: transport, for what has its own."""
    return (
        record.method == CONNECT
        and record.status == _OPENED
        and record.verdict == "allow"
        and record.error == NONE
        and _ABORTED not in record.squid
    )


def _is_awaited(record: Record) -> bool:
    """Tell whether Squid answers in the tunnel itself: it was denied, or its origin failed, and TLS can stand."""
    return record.error not in _NOTHING_FOLLOWS and (record.verdict == "deny" or record.error != NONE)


def _tunnel_of(record: Record) -> tuple[str, str, str]:
    return record.client, record.connection, record.tunnel


def _later(record: Record, hold: timedelta) -> str:
    try:
        return time_of(moment_of(record) + hold)
    except (ValueError, OverflowError):
        return ""
