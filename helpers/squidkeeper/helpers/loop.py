"""Read lines from Squid, answer each exactly once (floor 5)."""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from squidkeeper.counters import Key, counter_key
from squidkeeper.engine import CompiledPolicy
from squidkeeper.errors import InvalidLine, describe
from squidkeeper.helpers.cache_log import write_to_cache_log
from squidkeeper.helpers.helper_counters import HelperCounters
from squidkeeper.helpers.stuck_watchdog import StuckWatchdog
from squidkeeper.metrics import PROTOCOL_ERRORS
from squidkeeper.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.protocol.lines import LineBuffer, Reply, format_reply, reply_limit, split_channel
from squidkeeper.replies import broken_reply

T = TypeVar("T")
Answer = Callable[[bytes], Reply]

_READ_BYTES = 64 * 1024
_SWITCH_SECONDS = 0.0005
_FULL_COLLECTION_AFTER = 100_000  # collections of the middle generation: some thousand loads of a large policy
_log = logging.getLogger(__name__)


def run(
    helper: str,
    prepare: Callable[[CompiledPolicy], T],
    answer: Callable[[T | None, bytes], Reply],
    directory: Path,
    state: Path,
    concurrency: int,
) -> None:
    """Run a helper: what `prepare` makes of the policy in force answers each line, None while none has loaded.

    The start has the same deadline as a line: Squid has asked already.
    """
    settle_process()
    answer_while_loading()
    output = take_output()
    once = write_to_cache_log()
    live = PolicyWatcher(directory, state / "lists", prepare, state / "revisions")
    counting = HelperCounters(helper, state, lambda: live.state)
    StuckWatchdog(lambda: counting.at).start()
    counting.begin()
    counting.start()  # which waits for a disk, as does this:
    once.open(state)
    counting.begin()  # loading has all of the deadline
    live.start()
    counting.ready()
    serve(lambda request: answer(live.current, request), output, concurrency, counting)


def serve(answer: Answer, output: int, concurrency: int, counting: HelperCounters) -> None:
    """Answer every line of standard input until its end; then everything read has been answered.

    `output` is a file descriptor. Lines read together are answered by one write, which always holds whole lines, and
    counted after it. A reader that has gone away ends the loop as the end of input does: nobody is left to answer.
    """
    buffer = LineBuffer()
    answering = _Answering(answer, concurrency, counting.helper)
    source, room = sys.stdin.fileno(), memoryview(bytearray(_READ_BYTES))
    while got := os.readv(source, [room]):
        replies: list[bytes] = []
        counted: list[Key] = []
        counting.begin(replies)
        for line in buffer.feed(bytes(room[:got])):
            replies.append(answering.reply(line, counted))  # noqa: PERF401 - one by one: the watchdog reads it
        try:
            write_all(output, b"".join(replies))
        except BrokenPipeError:
            return
        counting.end(len(replies), counted)


def take_output() -> int:
    """Take standard output for Squid alone and point fd 1 at stderr: a stray print would end Squid.

    Gives the private file descriptor.
    """
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def settle_process() -> None:
    """Forbid core dumps, which would hold what the process knows, and be scheduled as a batch process.

    Such a process does not take the processor from Squid at each line written to it (sched(7)): it reads more lines at
    a time, which on two busy cores is worth a tenth of the gateway's requests per second.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def answer_while_loading() -> None:
    """Keep the thread that loads a policy from holding up the one that answers.

    It lets go of the interpreter ten times as often. And a full collection, which goes through all of a policy while
    nobody else runs (0.3 s with 10,000 rules), is put off: it would come with each load, and finds nothing, because a
    load leaves no cycles behind. Young cycles are still collected. A lower priority would make it
    worse: the thread that answers would wait for one that has the interpreter and is not given the processor.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_COLLECTION_AFTER)


class _Answering:
    """Answers single lines, and notes what is to be counted of each."""

    def __init__(self, answer: Answer, concurrency: int, helper: str) -> None:
        self._answer = answer
        self._concurrency = concurrency
        self._limit = reply_limit(concurrency)
        self._helper = helper

    def reply(self, line: bytes, counted: list[Key]) -> bytes:
        """Answer one line, unless its channel-ID is missing: Squid could not tell which lookup is answered."""
        if not self._concurrency:
            return self._format(line, b"", counted)
        split = split_channel(line)
        if split is None:
            counted.append(missing_channel(line, self._concurrency, self._helper))
            return b""
        channel, request = split
        return self._format(request, channel, counted)

    def _format(self, request: bytes, channel: bytes, counted: list[Key]) -> bytes:
        try:
            reply = self._answer(request)
            line = format_reply(reply, channel, self._limit)
        except InvalidLine as error:
            _log.error("%s", error)
            reply = broken_reply(str(error), self._helper)
            line = format_reply(reply, channel, self._limit)
        except Exception as error:  # noqa: BLE001 - the one place: whatever happened, the line is answered, and denied
            _log.error("a request could not be judged: %s", describe(error))
            reply = broken_reply("The request could not be judged.", self._helper)
            line = format_reply(reply, channel, self._limit)
        counted += reply.counted
        return line


def missing_channel(line: bytes, concurrency: int, helper: str) -> Key:
    """Log a line whose channel-ID is missing; gives the counter that it adds to."""
    expected = f"does squid.conf say concurrency={concurrency}?"
    _log.error("a line of %d bytes has no channel-ID: %s", len(line), expected)
    return counter_key(PROTOCOL_ERRORS, helper)


def write_all(output: int, data: bytes) -> None:
    """Write all of the data to a file descriptor."""
    while data:
        data = data[os.write(output, data) :]
