"""The lines that helpers write to cache.log.

Squid copies a helper's stderr into cache.log unchanged, so each line has its own time,
in Squid's format. One helper alone writes a message that every helper has, such as a
new revision in force.
"""

import fcntl
import logging
import os
import sys
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Final

_FORMAT = "%(asctime)s| squidkeeper: %(message)s"
_TIME = "%Y/%m/%d %H:%M:%S"  # as debug.cc of Squid writes it, in local time
# the loggers of these messages
_SHARED = frozenset(
    {
        "squidkeeper.policy.published.reader",
        "squidkeeper.serving.helpers.credential",
    }
)
_FILE = "announced"
_OFFSET_BYTES = 7  # of a lock's offset in the file, below the 2^63 that fcntl(2) takes
_CLAIMS_AT_MOST: Final = 200


class OncePerGateway(logging.Filter):
    """Lets one process write a message that every helper has: the first that claims it,
    until that process ends.

    A claim is a lock on one byte of a file in the state folder, at an offset made of
    the message's hash. The kernel releases it when the process ends. The file stays
    empty, and no process waits. A process that has claimed a message can write it
    again, as when a policy is put back in force. Without the file, every process writes
    every message.
    """

    def __init__(self) -> None:
        super().__init__()
        self._descriptor: int | None = None
        self._claims: dict[
            int, None
        ] = {}  # the offsets that are locked, the oldest first
        self._lock = threading.Lock()

    def open(self, state: Path) -> None:
        """Open the file of the claims; this can wait for a disk, and nothing later
        does.
        """
        try:
            state.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._descriptor = os.open(
                state / _FILE,
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o640,
            )
        except OSError:
            self._descriptor = (
                None  # HelperCounters uses the same folder and reports the cause
            )

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this process writes the message."""
        if record.name not in _SHARED or self._descriptor is None:
            return True
        with self._lock:
            return self._claim(self._descriptor, _offset(record.getMessage()))

    def _claim(self, descriptor: int, offset: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            self._claims.pop(offset, None)
            self._claims[offset] = None
            if len(self._claims) > _CLAIMS_AT_MOST:
                oldest = next(iter(self._claims))
                del self._claims[oldest]
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, oldest)
        except (
            BlockingIOError,
            PermissionError,
        ):  # another process has it: EAGAIN or EACCES, fcntl(2)
            return False
        except (
            OSError
        ):  # no locks on this file system: write it twice rather than never
            return True
        return True


def _offset(message: str) -> int:
    return int.from_bytes(
        blake2b(message.encode("utf-8", "replace"), digest_size=_OFFSET_BYTES).digest()
    )


def write_to_cache_log() -> OncePerGateway:
    """Send the log to stderr, and so to cache.log.

    Open the filter that this gives once there may be a wait.
    """
    once = OncePerGateway()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    handler.addFilter(once)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return once
