"""The checkpoint of the exporter: its counts and their position in the access log, in
one file on disk.

The file is replaced whole, so that counts and position match even after a crash.
"""

import fcntl
import logging
import os
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import replace as replaced

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import StateInUse
from squidkeeper.base.release import release
from squidkeeper.record.log.follower import Position
from squidkeeper.services.exporter.counts import RequestCounts
from squidkeeper.services.exporter.recent import Denial, DriftSeen
from squidkeeper.services.exporter.usage_counts import UsageCounts
from squidkeeper.serving.counters.layout import Key

_VERSION = 1
_log = logging.getLogger(__name__)


class Checkpoint(msgspec.Struct, frozen=True):
    """The counts since a time, their position in the log, and the newest denials and
    findings.

    `counter_files` holds the last values read from each counter file, by its identity.
    `usage` is counted in the ledger of usage. `release` has found the drift.
    """

    since: str
    position: Position = Position()
    counts: RequestCounts = RequestCounts()
    denials: tuple[Denial, ...] = ()
    drift: tuple[DriftSeen, ...] = ()
    counter_files: dict[str, list[tuple[Key, float]]] = msgspec.field(
        name="slots", default_factory=dict
    )
    version: int = _VERSION
    usage: UsageCounts = UsageCounts()
    release: str = ""

    def without_drift(self) -> Self:
        """Leave out what was found of drift."""
        counts = replaced(self.counts, drift=[], drift_unchecked=0, drift_cut=0)
        return replaced(self, counts=counts, drift=())


class CheckpointStore:
    """The folder with the checkpoint of one exporter.

    `writable`: whether the last write succeeded.

    If the disk cannot be written, the exporter works without a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.writable = True
        self._folder = folder
        self._file = folder / "counts.json"
        self._lock: int | None = None

    def open(self) -> None:
        """Lock the folder for this exporter; `StateInUse` if another one has it."""
        try:
            self._take()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> Checkpoint | None:
        """Read the last checkpoint; None if there is none that this release
        can read.

        Drift that another release has found is left out: it can know neither the
        policy nor the access log of this one, and `log --drift` judges by this one.
        """
        try:
            checkpoint = msgspec.json.decode(self._file.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            _log.error(
                "%s: cannot be read (%s): counts start at zero", self._file, error
            )
            return None
        if checkpoint.version != _VERSION:
            _log.error(
                "%s: of version %d, expected %d: counts start at zero",
                self._file,
                checkpoint.version,
                _VERSION,
            )
            return None
        if checkpoint.release != release():
            found = sum(number for _, number in checkpoint.counts.drift)
            _log.info("%d findings of drift by another release are left out", found)
            return checkpoint.without_drift()
        return checkpoint

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint on disk; a failure is logged once."""
        try:
            if self._lock is None:
                self._take()
            replace(self._file, msgspec.json.encode(checkpoint))
        except (OSError, StateInUse) as error:
            self._fail(error)
        else:
            self.writable = True

    def _take(self) -> None:
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(folder)
            raise StateInUse(
                f"{self._folder}: another exporter uses this folder"
            ) from error
        self._lock = folder

    def _fail(self, error: Exception) -> None:
        if self.writable:
            _log.error(
                "%s: counts cannot be saved for a restart: %s", self._folder, error
            )
        self.writable = False
