"""The file of an export: how far the receiver has taken the access log, replaced whole."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from types import TracebackType

import msgspec

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import StateInUse
from squidkeeper.record.export_status import FOLDER, SUFFIX, ExportState, parse_export_state
from squidkeeper.record.log.follower import Position

UNREADABLE = Position("unreadable", 0, "0")  # of no file, and before all: everything that there is is sent
_BEAT_SECONDS = 1.0
_log = logging.getLogger(__name__)


class ExportStore:
    """The file of one export, which one process at a time has.

    `state` is what it holds, or what it is to hold once it can be written again.
    """

    def __init__(self, state_folder: Path, name: str) -> None:
        self.name = name
        self._folder = state_folder / FOLDER
        self._file = self._folder / f"{name}{SUFFIX}"
        self._lock: int | None = None
        self._written_at = 0.0
        self._on_disk: ExportState | None = None  # by this process
        self.state = ExportState()

    def __enter__(self) -> ExportStore:
        """Lock and read the file; `StateInUse` if another process has it, OSError if the folder is not writable."""
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True)
            self._folder.chmod(0o2770)  # as install.sh has it: the service writes there by its group
        self._lock = os.open(self._folder / f"{self.name}.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise StateInUse(f"{self._file}: another process has this export") from None
        self.state = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def write(self, state: ExportState) -> None:
        """Replace the file; OSError, which names it, if it cannot be written."""
        if state != self._on_disk:
            try:
                replace(self._file, msgspec.json.encode(state))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._file)) from error
            self._on_disk = state
            self._written_at = time.monotonic()
        self.state = state
        self.beat()

    def beat(self) -> None:
        """Give a sign of life. Without a file there is none; the next `write` makes it."""
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
            return parse_export_state(self._file.read_bytes())
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
