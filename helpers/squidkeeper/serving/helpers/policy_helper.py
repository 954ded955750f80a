"""Run a helper that decides by the policy: load it, and answer lines by it."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.protocol.lines import (
    LineBuffer,
    Reply,
    format_reply,
    reply_limit,
    split_channel,
)
from squidkeeper.serving.counters.layout import Key
from squidkeeper.serving.helpers.cache_log import write_to_cache_log
from squidkeeper.serving.helpers.client_shares import LOOK_UP_SECONDS, ClientShares
from squidkeeper.serving.helpers.helper_counters import HelperCounters, StuckWatchdog
from squidkeeper.serving.helpers.loop import (
    Answering,
    HeldLines,
    missing_channel,
    restrict_process,
    serve_requests,
    take_output,
)
from squidkeeper.serving.helpers.publisher_child import follow_policy
from squidkeeper.serving.replies import JUDGED_LATER, broken_reply, judged_late
from squidkeeper.serving.sessions.following import Following

T = TypeVar("T")
Answer = Callable[[bytes], Reply]

_SWITCH_SECONDS = 0.0005
_LATE_NICENESS = 10  # the late lane leaves the processor to Squid and to the first lane
# collections of the middle generation: some thousand loads of a large policy
_FULL_COLLECTION_AFTER = 100_000


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
    live = follow_policy(directory, state, Following(state).prepared(prepare))
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
