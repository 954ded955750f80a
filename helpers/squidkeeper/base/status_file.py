"""A status file: a process says in it how it is, and others read it.

Squid's account can replace most of these files. So a reader follows no link, waits for
no pipe, and reads no more than a bound.
"""

import os
from math import inf
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from squidkeeper.base.atomic_write import HeartbeatFile
from squidkeeper.base.untrusted_file import read_untrusted

StatusT = TypeVar("StatusT")


class StatusFile(Generic[StatusT]):
    """A file of JSON that holds a status of one type.

    Its modification time is the sign of life of who writes it, for `patience_seconds`.
    """

    def __init__(
        self,
        path: Path,
        kind: type[StatusT],
        *,
        patience_seconds: float = inf,
        longest: int = 1 << 20,
    ) -> None:
        self.path = path
        self._kind = kind
        self._patience_seconds = patience_seconds
        self._longest = longest
        self._file = HeartbeatFile(path)

    def write(self, status: StatusT, owner: tuple[int, int] | None = None) -> None:
        """Replace the file or, where it holds this status, set its time; OSError if it
        cannot be written.
        """
        self._file.write(msgspec.json.encode(status), owner)

    def load(self) -> StatusT:
        """Read the status; OSError where no file can be read, ValueError where it is
        damaged or of another release.
        """
        content = read_untrusted(self.path, self._longest)
        try:
            return msgspec.json.decode(content, type=self._kind)
        except RecursionError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def read(self) -> StatusT | None:
        """Read the status; None where `load` fails."""
        try:
            return self.load()
        except (OSError, ValueError):
            return None

    def is_alive(self, now: float) -> bool:
        """Whether it was written not long ago; `now` is in seconds since 1970."""
        try:
            return abs(now - os.lstat(self.path).st_mtime) <= self._patience_seconds
        except OSError:
            return False
