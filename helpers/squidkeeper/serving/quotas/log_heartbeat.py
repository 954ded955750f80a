"""Whether bytes are counted: the exporter, which reads them from the access log, marks a file as it does."""

import os
import time
from pathlib import Path
from typing import Final

from squidkeeper.serving.quotas.local_counts import FOLDER

_NAME: Final = "bytes-counted"
_EVERY_SECONDS: Final = 1.0
_LATEST_SECONDS: Final = 30.0


class LogHeartbeat:
    """The sign of life of one exporter. OSError where it cannot be written."""

    def __init__(self, state: Path) -> None:
        self._file = state / FOLDER / _NAME
        self._next = 0.0

    def beat(self) -> None:
        """Mark that the access log was read up to now, at most once a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY_SECONDS
        self._file.parent.mkdir(mode=0o750, exist_ok=True)
        os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
        os.utime(self._file, follow_symlinks=False)


def are_bytes_counted(state: Path) -> bool:
    """Tell whether an exporter has read the access log not long ago."""
    try:
        return abs(time.time() - os.lstat(state / FOLDER / _NAME).st_mtime) < _LATEST_SECONDS
    except OSError:
        return False
