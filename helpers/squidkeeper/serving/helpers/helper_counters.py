"""What a helper process counts, its heartbeat, and the watchdog that ends one that is
stuck.

Squid waits for an answer forever, and its client waits too. Squid denies the lookups of
a helper that ends.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from squidkeeper.base.helper_metrics import DECISION_DURATION, HELPER_STARTS, OTHER
from squidkeeper.serving.counters.layout import (
    FOLDER,
    HelperStatus,
    Key,
    counter_key,
    histogram_keys,
)
from squidkeeper.serving.counters.writer import CounterWriter

if TYPE_CHECKING:
    from squidkeeper.policy.published.policy_state import PolicyState

_OVERFLOW = {"rule": OTHER, "credential": OTHER, "quota": OTHER}
_BEAT_EVERY_SECONDS = 1.0


class HelperCounters:
    """Counts what a helper does in a counter file, and writes its heartbeat there once
    a second.

    Without `policy_state` the helper needs no policy.
    """

    def __init__(
        self,
        helper: str,
        state: Path,
        policy_state: Callable[[], PolicyState] | None = None,
    ) -> None:
        self.helper = helper
        self._policy_state = policy_state
        self._started = time.time()
        self.busy_since: float | None = None
        self._answered: Sequence[bytes] = ()
        *self._buckets, self._sum = histogram_keys(
            DECISION_DURATION.name, {"helper": helper}, DECISION_DURATION.buckets
        )
        self._writer = CounterWriter(state / FOLDER, _OVERFLOW)
        self._writer.add({counter_key(HELPER_STARTS, helper): 1.0})

    def start(self) -> None:
        """Count the start, and write heartbeats from now on, in a thread that ends with
        the process.
        """
        self._writer.beat(None)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def ready(self) -> None:
        """Note that the start is done, once a heartbeat says so."""
        self._write_heartbeat(None)
        self.busy_since = None

    def _write_heartbeat(self, busy_since: float | None) -> None:
        now = time.time()
        state = self._policy_state() if self._policy_state else None
        self._writer.beat(
            HelperStatus(
                helper=self.helper,
                pid=os.getpid(),
                started=self._started,
                beat=now,
                revision=state.revision if state else None,
                reload_ok=state.ok if state else True,
                reloaded=state.loaded if state else None,
                faults=len(state.faults) if state else 0,
                busy_since=None
                if busy_since is None
                else now - (time.monotonic() - busy_since),
            )
        )

    @property
    def at(self) -> tuple[float, int] | None:
        """The line that is being answered: when it was read, and its number among those
        read with it; None: no line.
        """
        return (
            None if self.busy_since is None else (self.busy_since, len(self._answered))
        )

    def begin(self, answered: Sequence[bytes] = ()) -> None:
        """Note that lines were read: `busy_since` is the time, until `end`.

        `answered` grows with each answer.
        """
        self._answered = answered
        self.busy_since = time.monotonic()

    def end(self, lines: int, counted: list[Key]) -> None:
        """Count the lines of a batch, and what their replies add; each line took as
        long as the whole batch.
        """
        if lines and self.busy_since is not None:
            self.add(lines, time.monotonic() - self.busy_since, counted)
        self.busy_since = None  # not before: the heartbeat shows a disk that hangs

    def add(self, decisions: int, seconds: float, counted: list[Key]) -> None:
        """Count decisions that took so long each, and what they add."""
        bucket = self._buckets[bisect_left(DECISION_DURATION.buckets, seconds)]
        self._writer.add({bucket: decisions, self._sum: decisions * seconds}, counted)

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_EVERY_SECONDS)
            self._write_heartbeat(self.busy_since)


# Ten thousand path patterns for one host and the most hostile path take three at first:
# a loop that is at one line for longer than this is stuck.
STUCK_SECONDS: Final = 10
_SILENT_SECONDS = 15  # in which no thread of the interpreter runs
_log = logging.getLogger(__name__)


class StuckWatchdog:
    """Checks once a second whether the loop is still at the same line, and ends the
    process after ten such checks.

    `at` returns the line that the loop is at; None: it waits for one. Checks are
    counted, not the time: a process that was stopped, or that gets no processor, is not
    stuck. Nothing here waits for a disk. If no thread can run (one is in C and does not
    let others run), this one cannot either: then the interpreter's own timer, which
    needs no thread of the interpreter, writes the stack of each thread and ends the
    process.
    """

    def __init__(
        self,
        at: Callable[[], object],
        every_seconds: float = 1.0,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        self._at = at
        self._every_seconds = every_seconds
        self._silent_seconds = silent_seconds

    def start(self) -> None:
        """Start checking, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        last, checks = None, 0
        while checks < STUCK_SECONDS:
            with suppress(RuntimeError):  # no memory for its thread
                faulthandler.dump_traceback_later(self._silent_seconds, exit=True)
            time.sleep(self._every_seconds)
            now = self._at()
            checks = checks + 1 if now is not None and now == last else 0
            last = now
        _end()


def _end() -> NoReturn:
    _log.error(
        "stuck for %d s; exiting so that Squid starts another. Stacks:", STUCK_SECONDS
    )
    faulthandler.dump_traceback()
    os._exit(1)
