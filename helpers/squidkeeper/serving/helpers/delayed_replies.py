"""Read lines from Squid, answer each exactly once, some of them late.

Squid takes answers in any order. At the end of input all held answers are written at
once, and Squid denies the requests that wait.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from squidkeeper.base.errors import InvalidLine
from squidkeeper.base.helper_metrics import PROTOCOL_ERRORS
from squidkeeper.policy.protocol.lines import (
    LineBuffer,
    Reply,
    Result,
    format_reply,
    reply_limit,
    split_channel,
)
from squidkeeper.serving.counters.layout import Key, counter_key
from squidkeeper.serving.helpers.helper_counters import HelperCounters, StuckWatchdog
from squidkeeper.serving.helpers.loop import (
    missing_channel,
    restrict_process,
    take_output,
    write_all,
)

_READ_BYTES = 64 * 1024
_SENDER = struct.Struct("3i")  # struct ucred: process, account, group
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DelayedReply:
    """A reply, and the time at which it is due, by the monotonic clock."""

    due: float
    reply: Reply


Answer = Callable[[bytes, float, int], DelayedReply]


def run(
    helper: str, answer: Answer, state: Path, concurrency: int, releases: ReleaseChannel
) -> None:
    """Run a helper that needs no policy; `answer` gets a line, the monotonic time and
    the number of lines held.
    """
    restrict_process()
    output = take_output()
    counting = HelperCounters(helper, state)
    StuckWatchdog(lambda: counting.at).start()
    counting.start()
    counting.ready()
    DelayedReplyLoop(answer, output, concurrency, counting, releases).serve()


class ReleaseChannel:
    """Sends a time from the helper at client scope to the one at surplus scope: answers
    due until then are due now.

    It is a datagram socket in Linux's abstract namespace (unix(7)), named by the Squid
    process, so nothing stays on disk. Every local account can send to such a name, so
    the kernel names each sender, and only Squid's own account counts. A failure here
    makes answers late, and nothing else.
    """

    def __init__(self, *, listens: bool) -> None:
        self._to_bind = listens
        self._name = f"\0squidkeeper-throttle-{os.getppid()}"
        self._socket = socket.socket(
            socket.AF_UNIX,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.until = -math.inf

    def send(self, until: float) -> None:
        """Send a time to the other helper."""
        with suppress(OSError):
            self._socket.sendto(repr(until).encode(), self._name)

    def fileno(self) -> int:
        """Return the descriptor for select(2)."""
        return self._socket.fileno()

    def receive(self) -> None:
        """Receive the times that were sent.

        Binding fails until the previous helper with this name has ended.
        """
        with suppress(OSError, ValueError):
            if self._to_bind:
                self._socket.bind(self._name)
                self._to_bind = False
            while True:
                told, ancillary, _, _ = self._socket.recvmsg(
                    64, socket.CMSG_SPACE(_SENDER.size)
                )
                if _account(ancillary) == os.getuid():
                    self.until = max(self.until, float(told))


def _account(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the account that sent a datagram, from the credentials that `SO_PASSCRED`
    adds (unix(7)).
    """
    return next(
        (
            _SENDER.unpack(data)[1]
            for _, kind, data in ancillary
            if kind == socket.SCM_CREDENTIALS
        ),
        None,
    )


class DelayedReplyLoop:
    """Answers lines when their answers are due; `output` is a file descriptor.

    For the watchdog, reading and writing is work, and holding an answer is waiting.
    """

    def __init__(
        self,
        answer: Answer,
        output: int,
        concurrency: int,
        counting: HelperCounters,
        releases: ReleaseChannel,
    ) -> None:
        self._answer = answer
        self._output = output
        self._concurrency = concurrency
        self._limit = reply_limit(concurrency)
        self._counting = counting
        self._releases = releases
        self._buffer = LineBuffer()
        self._ready: list[bytes] = []  # answers that are due
        self._held: list[
            tuple[float, int, bytes]
        ] = []  # a heap: the time when due, a number, the answer
        self._numbers = count()

    def serve(self) -> None:
        """Answer every line of standard input until its end, or until nobody reads the
        answers any more.
        """
        try:
            while self._read():
                self._write_due(max(time.monotonic(), self._releases.until))
            self._write_due(math.inf)
        except BrokenPipeError:
            return

    def _read(self) -> bool:
        """Wait for lines or for the first answer that is due, and hold what was read;
        False at the end of input.
        """
        wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
        readable, _, _ = select.select([sys.stdin, self._releases], [], [], wait)
        self._counting.begin()
        self._releases.receive()
        has_lines = sys.stdin in readable
        data = os.read(sys.stdin.fileno(), _READ_BYTES) if has_lines else b""
        counts: list[Key] = []
        lines = self._buffer.feed(data)
        for line in lines:
            self._hold(line, counts)
        self._counting.end(len(lines), counts)
        return bool(data) or not has_lines

    def _hold(self, line: bytes, counts: list[Key]) -> None:
        split = split_channel(line)
        if split is None:
            counts.append(
                missing_channel(line, self._concurrency, self._counting.helper)
            )
            return
        channel, request = split
        now = time.monotonic()
        late = self._late(request, now)
        counts += late.reply.counts
        answer = format_reply(late.reply, channel, self._limit)
        if late.due <= now:
            self._ready.append(answer)
        else:
            heapq.heappush(self._held, (late.due, next(self._numbers), answer))

    def _late(self, request: bytes, now: float) -> DelayedReply:
        try:
            return self._answer(request, now, len(self._held))
        except InvalidLine as error:
            _log.error("%s", error)
            return DelayedReply(
                now,
                Reply(
                    Result.OK,
                    counts=(counter_key(PROTOCOL_ERRORS, self._counting.helper),),
                ),
            )

    def _write_due(self, until: float) -> None:
        while self._held and self._held[0][0] <= until:
            self._ready.append(heapq.heappop(self._held)[2])
        if self._ready:
            self._counting.begin()
            write_all(self._output, b"".join(self._ready))
            self._counting.end(0, [])
            self._ready = []
