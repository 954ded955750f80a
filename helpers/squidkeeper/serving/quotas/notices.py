"""What one process leaves for the others, in the state folder: that bytes are counted,
and that the store is away.

The exporter counts the bytes, which it reads from the access log. The helpers ask the
store of all gateways.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.serving.quotas.local_counts import FOLDER

_COUNTED: Final = "bytes-counted"
_AWAY: Final = "store-away"
_EVERY_SECONDS: Final = 1.0
_LATEST_SECONDS: Final = (
    30.0  # the store is asked every five seconds while requests need it
)
_LONGEST: Final = 500  # bytes


class LogHeartbeat:
    """The sign of life of one exporter. OSError where it cannot be written."""

    def __init__(self, state: Path) -> None:
        self._file = state / FOLDER / _COUNTED
        self._next = 0.0

    def beat(self) -> None:
        """Mark that the access log was read up to now, at most once a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_SECONDS
        self._file.parent.mkdir(mode=0o750, exist_ok=True)
        os.close(
            os.open(
                self._file,
                os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o640,
            )
        )
        os.utime(self._file, follow_symlinks=False)


def are_bytes_counted(state: Path) -> bool:
    """Whether an exporter has read the access log not long ago."""
    try:
        return (
            abs(time.time() - os.lstat(state / FOLDER / _COUNTED).st_mtime)
            < _LATEST_SECONDS
        )
    except OSError:
        return False


class StoreProblem:
    """Notes for one process what is wrong with the store, and that it answers again."""

    def __init__(self, state: Path) -> None:
        self._file = state / FOLDER / _AWAY
        self._problem = ""

    def note(self, problem: str) -> None:
        """Note what is wrong; an empty text: nothing.

        A disk that cannot be written changes no decision.
        """
        with suppress(OSError):
            if problem:
                self._write(problem.encode("utf-8", "replace")[:_LONGEST])
            elif self._problem:
                self._file.unlink(missing_ok=True)
        self._problem = problem

    def _write(self, content: bytes) -> None:
        self._file.parent.mkdir(mode=0o750, exist_ok=True)
        new = self._file.with_name(f"{_AWAY}.{os.getpid()}")
        with open(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640),
            "wb",
        ) as opened:
            opened.write(content)
        new.rename(self._file)


def read_store_problem(state: Path, now: float) -> str:
    """Tell what a process has found wrong with the store not long ago; empty:
    nothing.
    """
    try:
        with open_untrusted(state / FOLDER / _AWAY) as file:
            if abs(now - os.fstat(file.fileno()).st_mtime) > _LATEST_SECONDS:
                return ""
            return file.read(_LONGEST).decode("utf-8", "replace") or "unknown"
    except OSError:
        return ""
