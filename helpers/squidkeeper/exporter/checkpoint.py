"""What the exporter keeps on disk (floor 5): its counts and the position in the log that they belong to, in one file.

The file is replaced whole, so that numbers and position always belong together, whatever ends the exporter.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

import msgspec

from squidkeeper.counters import Key
from squidkeeper.errors import StateInUse
from squidkeeper.exporter.counts import RequestCounts
from squidkeeper.exporter.recent import Denial, DriftSeen
from squidkeeper.record.follower import Position

_VERSION = 1
_log = logging.getLogger(__name__)


class Checkpoint(msgspec.Struct, frozen=True):
    """The counts since a time, the position in the log that they belong to, and the newest denials and findings.

    `slots` is what was last read of each helper's slot.
    """

    since: str
    position: Position = Position()
    counts: RequestCounts = RequestCounts()
    denials: tuple[Denial, ...] = ()
    drift: tuple[DriftSeen, ...] = ()
    slots: dict[str, list[tuple[Key, float]]] = {}
    version: int = _VERSION


class CheckpointStore:
    """The folder that one exporter keeps its checkpoints in; `writable` tells whether it could last.

    Without a disk that can be written to, there is nothing kept, and nothing else is different.
    """

    def __init__(self, folder: Path) -> None:
        self.writable = True
        self._folder = folder
        self._file = folder / "counts.json"
        self._lock: int | None = None

    def open(self) -> None:
        """Take the folder for this exporter alone; `StateInUse` where another one has it."""
        try:
            self._take()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> Checkpoint | None:
        """Read what was kept last; None where there is nothing, or nothing that this release can read."""
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            _log.error("%s: cannot be read (%s): counts start anew", self._file, error)
            return None
        if kept.version != _VERSION:
            _log.error("%s: of version %d, expected %d: counts start anew", self._file, kept.version, _VERSION)
            return None
        return kept

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace what is kept."""
        try:
            if self._lock is None:
                self._take()
            self._replace(msgspec.json.encode(checkpoint))
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
            raise StateInUse(f"{self._folder}: another exporter keeps its counts here") from error
        self._lock = folder

    def _replace(self, data: bytes) -> None:
        new = self._file.with_suffix(".new")
        with open(new, "wb", opener=_open_privately) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a rename that outlives its content would lose both
        new.rename(self._file)

    def _fail(self, error: Exception) -> None:
        if self.writable:
            _log.error("%s: counts cannot be kept over a restart: %s", self._folder, error)
        self.writable = False


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)  # what was denied is on record, which is not for everybody
