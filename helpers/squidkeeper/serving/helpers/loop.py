"""Read lines from Squid, answer each exactly once."""

from __future__ import annotations

import logging
import os
import resource
import select
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from squidkeeper.base.errors import InvalidLine, describe
from squidkeeper.base.helper_metrics import PROTOCOL_ERRORS
from squidkeeper.serving.counters.layout import Key, counter_key
from squidkeeper.serving.helpers.helper_counters import HelperCounters

R = TypeVar("R", bound="CountingReply")

_READ_BYTES = 64 * 1024
_AGAIN_SECONDS = 0.05  # a held line is answered again
_log = logging.getLogger(__name__)


def serve_requests(
    cut: Callable[[bytes], Iterable[bytes]],
    reply: Callable[[bytes, list[Key]], bytes],
    output: int,
    counting: HelperCounters,
    held: HeldLines | None = None,
) -> None:
    """Answer every request of standard input until its end.

    `cut` gives the requests that are complete with what was read, `reply` answers one
    and notes what it counts. Those that are read together are answered by one write of
    whole replies, and counted after it. The loop also ends when nobody reads the
    answers any more. In `held` are requests that are to be answered again: `reply` has
    added them, and given no bytes. At the end of input they get the answer of that
    moment.
    """
    source, room = sys.stdin.fileno(), memoryview(bytearray(_READ_BYTES))
    held = HeldLines(0) if held is None else held
    ended = False
    while not ended:
        waits = bool(held) and not select.select([source], [], [], _AGAIN_SECONDS)[0]
        got = 0 if waits else os.readv(source, [room])
        ended = not (got or waits)
        again = held.take(last=ended) if held or ended else []
        replies: list[bytes] = []
        counts: list[Key] = []
        counting.begin(replies)
        for request in (*again, *cut(bytes(room[:got]))):
            replies.append(reply(request, counts))  # noqa: PERF401 - one by one: the watchdog reads the length
        try:
            write_all(output, b"".join(replies))
        except BrokenPipeError:
            return
        counting.end(len(replies) - len(held), counts)


def take_output() -> int:
    """Reserve standard output for Squid, as a private file descriptor, and point fd 1
    at stderr.

    One stray line on Squid's descriptor would end Squid.
    """
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def restrict_process() -> None:
    """Forbid core dumps, which would hold secrets, and be scheduled as a batch process.

    A batch process does not take the processor from Squid at each line that Squid
    writes (sched(7)). It reads more lines at a time, which gives a tenth more requests
    per second on two busy cores.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class CountingReply(Protocol):
    """A reply that names the counters that it adds to."""

    @property
    def counts(self) -> tuple[Key, ...]:
        """The counters that go up by one."""


class Answering(Generic[R]):
    """Answers single requests: `write` formats a reply for a channel-ID, `broken` makes
    one that says what failed.
    """

    def __init__(
        self,
        answer: Callable[[bytes], R],
        write: Callable[[R, bytes], bytes],
        broken: Callable[[str], R],
    ) -> None:
        self._answer = answer
        self._write = write
        self._broken = broken

    def reply(self, request: bytes, channel: bytes, counts: list[Key]) -> bytes:
        """Answer one request, and note the counters that it adds to."""
        reply, written = self.answer(request, channel)
        counts += reply.counts
        return written

    def answer(self, request: bytes, channel: bytes) -> tuple[R, bytes]:
        """Answer one request: the reply, and as it is written."""
        try:
            reply = self._answer(request)
            written = self._write(reply, channel)
        except InvalidLine as error:
            _log.error("%s", error)
            reply = self._broken(str(error))
            written = self._write(reply, channel)
        except Exception as error:  # noqa: BLE001 - the one place: every request is answered, and an error denies
            _log.error("a request could not be decided: %s", describe(error))
            reply = self._broken("The request could not be decided.")
            written = self._write(reply, channel)
        return reply, written


class HeldLines:
    """Lines that wait to be answered again: a few, so that the others go on."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: list[bytes] = []

    def __len__(self) -> int:
        return len(self._lines)

    def hold(self, line: bytes, until: float) -> bool:
        """Hold a line, unless it has waited long enough or too many wait; True if it is
        held.
        """
        held = len(self._lines) < self._most and time.monotonic() < until
        if held:
            self._lines.append(line)
        return held

    def take(self, *, last: bool) -> list[bytes]:
        """Return the lines, to be answered again; the last time, none is held
        any more.
        """
        self._most = 0 if last else self._most
        lines, self._lines = self._lines, []
        return lines


def missing_channel(line: bytes, concurrency: int, helper: str) -> Key:
    """Log a line whose channel-ID is missing, and give the counter that it adds to."""
    expected = f"does squid.conf say concurrency={concurrency}?"
    _log.error("a line of %d bytes has no channel-ID: %s", len(line), expected)
    return counter_key(PROTOCOL_ERRORS, helper)


def write_all(output: int, data: bytes) -> None:
    """Write all of the data to a file descriptor."""
    while data:
        data = data[os.write(output, data) :]
