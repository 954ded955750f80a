"""Where each export stands: a small file in the state folder, which is its position and
its report at once.

Its modification time is the time of the heartbeat.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from squidkeeper.base.errors import StateInUse
from squidkeeper.base.status_file import StatusFile
from squidkeeper.record.log.follower import Position

FOLDER: Final = "export"  # in the state folder
SUFFIX: Final = ".json"
PATIENCE_SECONDS: Final = (
    120.0  # for a heartbeat: a slow receiver may take that long to answer
)
# of no file, and before all: everything that there is is sent
UNREADABLE = Position("unreadable", 0, "0")
_BEAT_SECONDS = 1.0
_log = logging.getLogger(__name__)


class ExportState(msgspec.Struct, frozen=True):
    """How far the receiver has taken the access log, and what was counted so far.

    Times are in seconds since 1970.

    Up to `position` the receiver has everything. After it, `unconfirmed` messages may
    have left: they are sent again if the process ends now. `until` is the time of the
    newest record that the receiver has.
    """

    position: Position = Position()
    unconfirmed: int = 0
    sent: int = 0
    doubled: int = 0
    gaps: int = 0
    lost: int = 0  # records in gaps, as far as their number is known
    until: str = ""
    archive_head: int = (
        0  # the number of the newest head of the archive that the receiver has
    )
    last_success: float = 0.0
    waiting_since: float | None = (
        None  # since when the receiver has not taken what there is; None: it has all
    )
    backlog_bytes: int = 0
    failure: str = ""  # of the last attempt, without a secret; empty: it succeeded
    usage: Position = Position()  # in the ledger of usage


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """One export: whether its process runs, and where it stands."""

    runs: bool
    state: ExportState

    def waiting_seconds(self, now: float) -> float:
        """Tell for how long the receiver has not taken what there is; `now` is in
        seconds since 1970.
        """
        since = self.state.waiting_since
        return 0.0 if since is None else max(0.0, now - since)


def read_exports(state: Path, now: float) -> Mapping[str, ExportStatus]:
    """Read the file of each export, by its name; none if there is no folder.

    `now` is in seconds since 1970.
    """
    folder = state / FOLDER
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except OSError:
        return {}
    found = {name.removesuffix(SUFFIX): _read(folder / name, now) for name in names}
    return {name: status for name, status in found.items() if status}


def _read(path: Path, now: float) -> ExportStatus | None:
    file = _status_file(path)
    state = file.read()
    return None if state is None else ExportStatus(file.is_alive(now), state)


def _status_file(path: Path) -> StatusFile[ExportState]:
    return StatusFile(path, ExportState, patience_seconds=PATIENCE_SECONDS)


class ExportStore:
    """The file of one export, which one process at a time has.

    `state` is what it holds, or what it is to hold once it can be written again.
    """

    def __init__(self, state_folder: Path, name: str) -> None:
        self.name = name
        self._folder = state_folder / FOLDER
        self._file = self._folder / f"{name}{SUFFIX}"
        self._status = _status_file(self._file)
        self._lock: int | None = None
        self._written_at = 0.0
        self._on_disk: ExportState | None = None  # by this process
        self.state = ExportState()

    def __enter__(self) -> ExportStore:
        """Lock and read the file; `StateInUse` if another process has it, OSError if
        the folder is not writable.
        """
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True)
            # as install.sh has it: the service writes there by its group
            self._folder.chmod(0o2770)
        self._lock = os.open(
            self._folder / f"{self.name}.lock",
            os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC,
            0o640,
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise StateInUse(f"{self._file}: another process has this export") from None
        self.state = self._read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def write(self, state: ExportState) -> None:
        """Replace the file; OSError, which names it, if it cannot be written."""
        if state != self._on_disk:
            try:
                self._status.write(state)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._file)) from error
            self._on_disk = state
            self._written_at = time.monotonic()
        self.state = state
        self.beat()

    def beat(self) -> None:
        """Show a sign of life.

        Without a file there is none; the next `write` makes it.
        """
        if self._on_disk and time.monotonic() >= self._written_at + _BEAT_SECONDS:
            try:
                os.utime(self._file)
            except OSError:
                self._on_disk = None
            self._written_at = time.monotonic()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self) -> ExportState:
        try:
            return self._status.load()
        except FileNotFoundError:
            return ExportState()
        except ValueError as error:
            _log.error(
                "%s: not a file of this program (%s): everything in the access log and its rotated files is sent, also"
                " what the receiver has",
                self._file,
                error,
            )
            return ExportState(position=UNREADABLE)
