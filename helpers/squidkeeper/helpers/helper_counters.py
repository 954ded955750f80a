"""What a helper process counts, and its sign of life (floor 5)."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from squidkeeper.counters import FOLDER, CounterWriter, HelperStatus, Key, histogram_keys, make_key
from squidkeeper.metrics import (
    CREDENTIAL_FAILURES,
    CREDENTIAL_INJECTIONS,
    DECISION_DURATION,
    DECISIONS,
    HELPER_STARTS,
    OTHER,
    PROTOCOL_ERRORS,
    THROTTLED,
    Metric,
)
from squidkeeper.policy_store.policy_watcher import PolicyState

_OVERFLOW = {"rule": OTHER, "credential": OTHER}
_BEAT_EVERY_SECONDS = 1.0


@lru_cache(maxsize=4096)
def decision(helper: str, rule: str, verdict: str) -> Key:
    """Name the counter of a decision."""
    return _key(DECISIONS, helper, rule, str(verdict))


def protocol_error(helper: str) -> Key:
    """Name the counter of lines that a helper could not understand or judge."""
    return _key(PROTOCOL_ERRORS, helper)


@lru_cache(maxsize=4)
def throttled(wait: str) -> Key:
    """Name the counter of denials that were answered at once, held, or sent on as surplus."""
    return _key(THROTTLED, wait)


def injection(credential: str) -> Key:
    """Name the counter of a credential's injections."""
    return _key(CREDENTIAL_INJECTIONS, credential)


def failure(credential: str) -> Key:
    """Name the counter of a credential's failures."""
    return _key(CREDENTIAL_FAILURES, credential)


class HelperCounters:
    """Counts what a helper does in a slot of the state folder, and tells there how the process is, once a second."""

    def __init__(self, helper: str, state: Path, policy_state: Callable[[], PolicyState]) -> None:
        self.helper = helper
        self._policy_state = policy_state
        self._started = time.time()
        self.busy_since: float | None = None
        self._answered: Sequence[bytes] = ()
        *self._buckets, self._sum = histogram_keys(
            DECISION_DURATION.name, {"helper": helper}, DECISION_DURATION.buckets
        )
        self._writer = CounterWriter(state / FOLDER, _OVERFLOW)
        self._writer.add({_key(HELPER_STARTS, helper): 1.0})

    def start(self) -> None:
        """Count the start, and give the signs of life from now on, in a thread that ends with the process."""
        self._writer.beat(None)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def ready(self) -> None:
        """Tell that the start is done; it is when that is told."""
        self._tell(None)
        self.busy_since = None

    def _tell(self, busy_since: float | None) -> None:
        now, state = time.time(), self._policy_state()
        self._writer.beat(
            HelperStatus(
                helper=self.helper,
                pid=os.getpid(),
                started=self._started,
                beat=now,
                revision=state.revision,
                reload_ok=state.ok,
                reloaded=state.loaded,
                faults=len(state.faults),
                busy_since=None if busy_since is None else now - (time.monotonic() - busy_since),
            )
        )

    @property
    def at(self) -> tuple[float, int] | None:
        """Tell which line is being answered: when it was read, and its place among those read with it. None: none."""
        return None if self.busy_since is None else (self.busy_since, len(self._answered))

    def begin(self, answered: Sequence[bytes] = ()) -> None:
        """Note that lines were read; `busy_since` tells when, until the end. `answered` grows with each answer."""
        self._answered = answered
        self.busy_since = time.monotonic()

    def end(self, lines: int, counted: list[Key]) -> None:
        """Count so many lines by what their answers say of themselves; each took as long as all of the batch."""
        if lines and self.busy_since is not None:
            seconds = time.monotonic() - self.busy_since
            bucket = self._buckets[bisect_left(DECISION_DURATION.buckets, seconds)]
            self._writer.add({bucket: lines, self._sum: lines * seconds}, counted)
        self.busy_since = None  # not before: a disk that hangs is seen

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_EVERY_SECONDS)
            self._tell(self.busy_since)


def _key(metric: Metric, *values: str) -> Key:
    return make_key(metric.name, dict(zip(metric.labels, values, strict=True)))
