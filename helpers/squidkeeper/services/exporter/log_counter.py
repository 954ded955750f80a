"""Counting the access log as Squid writes it: one thread reads, counts, and saves
checkpoints.

Counts are saved before they are served. So a number that Prometheus has seen never goes
back, even if the exporter is killed and the log is gone when it starts again.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import InvalidRecord, describe
from squidkeeper.base.helper_metrics import NONE
from squidkeeper.base.release import release
from squidkeeper.record.log.drift import DriftChecker, Finding
from squidkeeper.record.log.follower import Follower
from squidkeeper.record.log.record import Record, parse_record, parse_time
from squidkeeper.services.exporter.checkpoint import Checkpoint, CheckpointStore
from squidkeeper.services.exporter.counts import RequestCounter
from squidkeeper.services.exporter.recent import (
    DriftSeen,
    RecentAnswer,
    RecentAnswers,
    RecentDenials,
)
from squidkeeper.services.exporter.usage_counts import UsageCounter, UsageCounts
from squidkeeper.services.exporter.used_bytes import UsedBytes
from squidkeeper.serving.counters.layout import Key
from squidkeeper.serving.counters.reader import CounterFile, Totals

SAVE_EVERY_SECONDS: Final = 5.0
_READ_EVERY_SECONDS = 0.25
# counted in a few milliseconds, which a scrape may have to wait
_BATCH_BYTES = 128 * 1024
_FINDINGS_LIMIT = 20
_log = logging.getLogger(__name__)


class LogCounter:
    """Counts one access log, and saves the counts in one folder."""

    def __init__(
        self,
        log: Path,
        store: CheckpointStore,
        drift: DriftChecker,
        used_bytes: UsedBytes | None = None,
        usage: Callable[[UsageCounts], UsageCounter] | None = None,
    ) -> None:
        last = store.read() or Checkpoint(
            since=datetime.now(UTC).isoformat(timespec="milliseconds")
        )
        self.denials = RecentDenials(last.denials)
        self._answers = RecentAnswers()
        self._store = store
        self._drift = drift
        self._used_bytes = used_bytes
        self._since = last.since
        self._release = release()
        self._follower = Follower(log, last.position)
        self._before = last.counts
        self._counter = RequestCounter(last.counts)
        self._usage = usage(last.usage) if usage else None
        self._findings = deque(last.drift, _FINDINGS_LIMIT)
        self._totals = Totals(
            {name: dict(values) for name, values in last.counter_files.items()}
        )
        self._saved: Checkpoint | None = (
            None  # None: the first is always written, which tests the disk
        )
        self._counting = threading.Lock()  # position and counts belong together
        self._saving = threading.Lock()  # checkpoints are written in their order
        self._ending = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(
            target=self._run, name="log-counter", daemon=True
        )

    @property
    def readable(self) -> bool:
        """Whether the log can be read, and the thread reads it."""
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
        """Count what the log holds, for at most so long, then continue in a thread."""
        end = time.monotonic() + seconds
        while self._count_batch():
            if time.monotonic() > end:
                _log.warning(
                    "%d bytes of the log are not counted yet: counting continues",
                    self.backlog_bytes,
                )
                break
        self.save()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and save the counts."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self.save()
        self._follower.close()
        if self._usage:
            self._usage.close()

    def save(self) -> Checkpoint:
        """Save the counts as they are now, and return them, also if the disk cannot be
        written.
        """
        with self._saving:
            now = self._checkpoint()
            if now != self._saved or not self._store.writable:
                self._store.write(now)
            self._saved = now
            return now

    def checkpoint(self) -> Checkpoint:
        """Return the counts as they are now, without a write: for who serves none of
        them.
        """
        with self._saving:
            return self._checkpoint()

    def add_up(self, counter_files: Iterable[CounterFile]) -> dict[Key, float]:
        """Add up the counter files of the helpers; `save` saves the sums too."""
        with self._saving:
            return self._totals.add_up(counter_files)

    def _run(self) -> None:
        """Count until the end.

        A bug ends the process, so that it restarts instead of serving old counts.
        """
        try:
            self._count_until_end()
        except BaseException as error:  # noqa: BLE001 - whatever it is
            _log.critical(
                "the access log cannot be counted, the exporter exits: %s",
                describe(error),
            )
            os._exit(1)

    def _count_until_end(self) -> None:
        saved = time.monotonic()
        while not self._ending.wait(_READ_EVERY_SECONDS):
            while (
                self._count_batch()
                and not self._ending.is_set()
                and time.monotonic() < saved + SAVE_EVERY_SECONDS
            ):
                pass
            if time.monotonic() >= saved + SAVE_EVERY_SECONDS:
                self.save()
                saved = time.monotonic()

    def _count_batch(self) -> bool:
        with self._counting:
            lines = self._read()
            for line in lines:
                self._count(line)
            if self._used_bytes is not None and not self._problem:
                self._used_bytes.flush()
            return self._count_usage() or bool(lines)

    def _count_usage(self) -> bool:
        try:
            return self._usage is not None and self._usage.count_batch()
        except OSError as error:
            _log.error("the ledger of usage cannot be read: %s", error)
            return False

    def _read(self) -> list[bytes]:
        try:
            lines = self._follower.read(_BATCH_BYTES)
        except OSError as error:
            if str(error) != self._problem:
                _log.error("the access log cannot be read, trying again: %s", error)
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
        client, finding = self._check(record)
        self._counter.count(record, client)
        self.denials.add(record)
        if self._used_bytes is not None:
            self._used_bytes.count(record)
        self._answers.add(record)
        if finding is not None:
            self._counter.count_drift(client, finding.rule)
            self._findings.appendleft(
                DriftSeen(
                    at,
                    record.client,
                    record.method,
                    record.url,
                    finding.rule,
                    finding.kind,
                )
            )

    def _check(self, record: Record) -> tuple[str, Finding | None]:
        """Return the client's name, and a finding of drift.

        A record that raises counts as unchecked.
        """
        try:
            return self._drift.client_name(record), self._drift.check(record)
        except Exception as error:  # noqa: BLE001 - it would end the count here, and again after every restart
            self._drift.unchecked += 1
            _log.error("a record could not be checked for drift: %s", describe(error))
            return NONE, None

    def _checkpoint(self) -> Checkpoint:
        with self._counting:
            self._counter.lost = self._before.lost + self._follower.lost
            self._counter.drift_unchecked = (
                self._before.drift_unchecked + self._drift.unchecked
            )
            self._counter.drift_cut = self._before.drift_cut + self._drift.cut
            return Checkpoint(
                self._since,
                self._follower.position,
                self._counter.counts(),
                self.denials.newest(),
                tuple(self._findings),
                {
                    name: list(values.items())
                    for name, values in self._totals.known.items()
                },
                usage=self._usage.counts() if self._usage else UsageCounts(),
                release=self._release,
            )
