"""The record, counted as Squid writes it (floor 5): one thread reads, counts, and keeps the counts on disk.

What is served has been kept before: a number that Prometheus has seen never goes back, even where the exporter is
killed and the log is gone when it starts again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.counters import CounterFile, Key, Totals
from squidkeeper.errors import InvalidRecord, describe
from squidkeeper.exporter.checkpoint import Checkpoint, CheckpointStore
from squidkeeper.exporter.counts import RequestCounter
from squidkeeper.exporter.recent import DriftSeen, RecentAnswer, RecentAnswers, RecentDenials
from squidkeeper.metrics import NONE
from squidkeeper.record.drift import DriftChecker, Finding
from squidkeeper.record.follower import Follower
from squidkeeper.record.record import Record, parse_record, parse_time

KEEP_EVERY_SECONDS: Final = 5.0
_LOOK_EVERY_SECONDS = 0.25
_BATCH_BYTES = 128 * 1024  # counted in a few milliseconds, for which a scrape may have to wait
_DRIFT_KEPT = 20
_log = logging.getLogger(__name__)


class LogCounter:
    """Counts one log, and keeps the counts in one folder."""

    def __init__(self, log: Path, store: CheckpointStore, drift: DriftChecker) -> None:
        kept = store.read() or Checkpoint(since=datetime.now(UTC).isoformat(timespec="milliseconds"))
        self.denials = RecentDenials(kept.denials)
        self._answers = RecentAnswers()
        self._store = store
        self._drift = drift
        self._since = kept.since
        self._follower = Follower(log, kept.position)
        self._before = kept.counts
        self._counter = RequestCounter(kept.counts)
        self._findings = deque(kept.drift, _DRIFT_KEPT)
        self._totals = Totals({slot: dict(values) for slot, values in kept.slots.items()})
        self._kept: Checkpoint | None = None  # the first is written whatever it holds: that tells whether it can be
        self._counting = threading.Lock()  # position and counts belong together
        self._keeping = threading.Lock()  # what is kept later is newer
        self._ending = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="tally", daemon=True)

    @property
    def readable(self) -> bool:
        """Whether the log can be read, and is."""
        return self._follower.readable and not self._problem and self._thread.is_alive()

    @property
    def backlog_bytes(self) -> int:
        """Bytes of the log that are written and not yet counted."""
        with self._counting:
            return self._follower.backlog_bytes

    @property
    def answers(self) -> tuple[RecentAnswer, ...]:
        """The last answers, the oldest first."""
        with self._counting:
            return self._answers.newest()

    def start(self, seconds: float) -> None:
        """Count what there is already, for so long at most, then go on in a thread."""
        end = time.monotonic() + seconds
        while self._count_batch():
            if time.monotonic() > end:
                _log.warning("%d bytes of the log are not counted yet: they are on the way", self.backlog_bytes)
                break
        self.keep()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and keep the counts."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self.keep()
        self._follower.close()

    def keep(self) -> Checkpoint:
        """Keep the counts as they are now, and give them. Where the disk takes nothing, they are given all the same."""
        with self._keeping:
            now = self._checkpoint()
            if now != self._kept or not self._store.writable:
                self._store.write(now)
            self._kept = now
            return now

    def add_up(self, slots: Iterable[CounterFile]) -> dict[Key, float]:
        """Add up what helpers have counted; `keep` keeps that too."""
        with self._keeping:
            return self._totals.add_up(slots)

    def _run(self) -> None:
        """Count until the end; a fault of ours ends the process, so that it is started again instead of being blind."""
        try:
            self._go_on()
        except BaseException as error:  # noqa: BLE001 - whatever it is
            _log.critical("the record is not counted any more, the exporter ends: %s", describe(error))
            os._exit(1)

    def _go_on(self) -> None:
        kept = time.monotonic()
        while not self._ending.wait(_LOOK_EVERY_SECONDS):
            while self._count_batch() and not self._ending.is_set() and time.monotonic() < kept + KEEP_EVERY_SECONDS:
                pass
            if time.monotonic() >= kept + KEEP_EVERY_SECONDS:
                self.keep()
                kept = time.monotonic()

    def _count_batch(self) -> bool:
        with self._counting:
            lines = self._read()
            for line in lines:
                self._count(line)
        return bool(lines)

    def _read(self) -> list[bytes]:
        """Read on; what cannot be read now is said once, and tried again at the next look."""
        try:
            lines = self._follower.read(_BATCH_BYTES)
        except OSError as error:
            if str(error) != self._problem:
                _log.error("the record cannot be read, which is tried again: %s", error)
            self._problem = str(error)
            return []
        self._problem = ""
        return lines

    def _count(self, line: bytes) -> None:
        try:
            record = parse_record(line)
            at = parse_time(record)
        except (InvalidRecord, ValueError):
            self._counter.invalid_lines += 1
            return
        client, finding = self._judged(record)
        self._counter.count(record, client)
        self.denials.add(record)
        self._answers.add(record)
        if finding is not None:
            self._counter.count_drift(client, finding.rule)
            self._findings.appendleft(
                DriftSeen(at, record.client, record.method, record.url, finding.rule, finding.kind)
            )

    def _judged(self, record: Record) -> tuple[str, Finding | None]:
        """Name the client, and find what is wrong; a record that we fail on is one that could not be checked."""
        try:
            return self._drift.client_name(record), self._drift.check(record)
        except Exception as error:  # noqa: BLE001 - it would end the count here, and again after every restart
            self._drift.unchecked += 1
            _log.error("a record could not be held against the policy: %s", describe(error))
            return NONE, None

    def _checkpoint(self) -> Checkpoint:
        with self._counting:
            self._counter.lost = self._before.lost + self._follower.lost
            self._counter.drift_unchecked = self._before.drift_unchecked + self._drift.unchecked
            self._counter.drift_cut = self._before.drift_cut + self._drift.cut
            return Checkpoint(
                self._since,
                self._follower.position,
                self._counter.counts(),
                self.denials.newest(),
                tuple(self._findings),
                {slot: list(values.items()) for slot, values in self._totals.known.items()},
            )
