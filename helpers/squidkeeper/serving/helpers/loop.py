"""Read lines from Squid, answer each exactly once."""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from squidkeeper.base.errors import InvalidLine, describe
from squidkeeper.base.helper_metrics import PROTOCOL_ERRORS
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.protocol.lines import (
    LineBuffer,
    Reply,
    format_reply,
    reply_limit,
    split_channel,
)
from squidkeeper.serving.counters.layout import Key, counter_key
from squidkeeper.serving.helpers.cache_log import write_to_cache_log
from squidkeeper.serving.helpers.client_shares import LOOK_UP_SECONDS, ClientShares
from squidkeeper.serving.helpers.helper_counters import HelperCounters, StuckWatchdog
from squidkeeper.serving.replies import JUDGED_LATER, broken_reply, judged_late

T = TypeVar("T")
R = TypeVar("R", bound="CountingReply")
Answer = Callable[[bytes], Reply]

_READ_BYTES = 64 * 1024
_SWITCH_SECONDS = 0.0005
_AGAIN_SECONDS = 0.05  # a held line is answered again
_LATE_NICENESS = 10  # the late lane leaves the processor to Squid and to the first lane
# collections of the middle generation: some thousand loads of a large policy
_FULL_COLLECTION_AFTER = 100_000
_log = logging.getLogger(__name__)


class Lane(StrEnum):
    """Which lines of its helper a process gets."""

    ONLY = "only"  # all
    # all; those of a client that has used up its share are left to the late lane
    FIRST = "first"
    LATE = "late"


def run(
    helper: str,
    prepare: Callable[[CompiledPolicy], T],
    answer: Callable[[T | None, bytes], Reply],
    directory: Path,
    state: Path,
    concurrency: int,
    lane: Lane = Lane.ONLY,
) -> None:
    """Run a helper: `answer` gets what `prepare` makes of the policy in force, None
    while none has loaded, and a line.

    The start has the same deadline as a line, because Squid has asked already.
    """
    restrict_process()
    answer_while_loading()
    output = take_output()
    once = write_to_cache_log()
    live = PolicyWatcher(directory, state / "lists", prepare, state / "revisions")
    counting = HelperCounters(helper, state, lambda: live.state)
    StuckWatchdog(lambda: counting.at).start()
    counting.begin()
    counting.start()  # which waits for a disk, as the next line does
    once.open(state)
    counting.begin()  # loading gets the whole deadline
    live.start()
    counting.ready()
    if lane is Lane.LATE:
        os.nice(_LATE_NICENESS)
        serve(
            lambda request: judged_late(answer(live.current, request)),
            output,
            concurrency,
            counting,
        )
    else:
        shares = ClientShares() if lane is Lane.FIRST else None
        serve(
            lambda request: answer(live.current, request),
            output,
            concurrency,
            counting,
            shares,
        )


def serve(
    answer: Answer,
    output: int,
    concurrency: int,
    counting: HelperCounters,
    shares: ClientShares | None = None,
) -> None:
    """Answer every line of standard input until its end; `output` is a file
    descriptor.
    """
    lines = _LineAnswering(answer, concurrency, counting.helper, shares)
    serve_requests(LineBuffer().feed, lines.reply, output, counting, lines.held)


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


def answer_while_loading() -> None:
    """Keep the thread that loads a policy from delaying the thread that answers.

    It releases the interpreter ten times as often. Full garbage collections, which stop
    all threads (0.3 s with 10,000 rules), are put off: each load would cause one, and
    it would find nothing, because a load leaves no cycles. Young cycles are still
    collected. A lower priority of the loading thread would be worse: the answering
    thread would wait for a thread that has the interpreter and gets no processor.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_COLLECTION_AFTER)


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


class _LineAnswering:
    """Answers single lines."""

    def __init__(
        self, answer: Answer, concurrency: int, helper: str, shares: ClientShares | None
    ) -> None:
        write = partial(format_reply, limit=reply_limit(concurrency))
        self._shares = shares
        self._answering = Answering(answer, write, partial(broken_reply, helper=helper))
        self._concurrency = concurrency
        self._helper = helper
        self.held = HeldLines(concurrency // 2)  # half of the slots that Squid fills

    def reply(self, line: bytes, counts: list[Key]) -> bytes:
        """Answer one line, unless its channel-ID is missing: Squid could not find the
        lookup.
        """
        if not self._concurrency:
            return self._answering.reply(line, b"", counts)
        split = split_channel(line)
        if split is None:
            counts.append(missing_channel(line, self._concurrency, self._helper))
            return b""
        channel, request = split
        if self._shares is None:
            return self._answer(line, channel, request, counts)
        client, _, _ = request.partition(b" ")
        if self._shares.is_used_up(client):
            return format_reply(JUDGED_LATER, channel)
        begun, processor_begun = time.monotonic(), time.thread_time()
        written = self._answer(line, channel, request, counts)
        # others have waited for so long, however little the processor was for this
        took = time.monotonic() - begun
        if (
            took > LOOK_UP_SECONDS
            and time.thread_time() - processor_begun > LOOK_UP_SECONDS
        ):
            self._shares.charge(client, took)
        return written

    def _answer(
        self, line: bytes, channel: bytes, request: bytes, counts: list[Key]
    ) -> bytes:
        reply, written = self._answering.answer(request, channel)
        if reply.hold_until and self.held.hold(line, reply.hold_until):
            return b""
        counts += reply.counts
        return written


def missing_channel(line: bytes, concurrency: int, helper: str) -> Key:
    """Log a line whose channel-ID is missing, and give the counter that it adds to."""
    expected = f"does squid.conf say concurrency={concurrency}?"
    _log.error("a line of %d bytes has no channel-ID: %s", len(line), expected)
    return counter_key(PROTOCOL_ERRORS, helper)


def write_all(output: int, data: bytes) -> None:
    """Write all of the data to a file descriptor."""
    while data:
        data = data[os.write(output, data) :]
