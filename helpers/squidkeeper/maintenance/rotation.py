"""Limiting Squid's logs in bytes (floor 5): rotate by size, delete the oldest.

logrotate can rotate the same logs by time. The names differ, and its files count here too.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from signal import SIGUSR1
from typing import Final

from squidkeeper.maintenance.rate_limit import RateLimit
from squidkeeper.maintenance.squid_process import SquidProcess
from squidkeeper.rotated_logs import next_name, rotated

_ACCESS_LOG_BYTES: Final = 8 * 2**30
_CACHE_LOG_SHARE = 16  # the limit of cache.log is this part of that of the access log
_ROTATIONS = 32  # a log is rotated at this part of its limit
_ROTATE_AT_MOST = (60.0, 1)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogLimit:
    """A log, and the limit in bytes for it and its rotated files together."""

    log: Path
    limit_bytes: int

    @property
    def rotate_bytes(self) -> int:
        """The size at which the log is rotated."""
        return self.limit_bytes // _ROTATIONS


class Rotation:
    """Renames a long log and lets Squid open a new one; deletes the oldest files of a log over its limit.

    Each log has its own limit, so that one does not push out the other. The limit of the access log is `limit_bytes`,
    by default 8 GiB and at most half of its file system.
    """

    name = "rotation"

    def __init__(
        self,
        access_log: Path,
        cache_log: Path,
        squid: SquidProcess,
        limit_bytes: int | None = None,
        pace: RateLimit | None = None,
    ) -> None:
        self._access_log = access_log
        self._cache_log = cache_log
        self._squid = squid
        self._limit_bytes = limit_bytes
        self._pace = pace or RateLimit(_ROTATE_AT_MOST)
        self._not_renamed: list[OSError] = []
        # The process before this one can have ended between rename and signal.
        self._renamed = any(rotated(log) and not log.exists() for log in (access_log, cache_log))

    def check(self) -> None:
        """Rotate logs that are too long, within the rate limit; delete the files over a log's limit.

        OSError if a file cannot be renamed or deleted, after all others are done.
        """
        limits = self._limits()
        due = [one.log for one in limits if _size(one.log) > one.rotate_bytes]
        if due and self._pace.allows() and self._squid.runs():
            self._pace.count()
            self._not_renamed = [error for log in due for error in _attempt(partial(self._rename, log))]
        if self._renamed:
            self._renamed = not self._squid.signal(SIGUSR1)
        failures = [*self._not_renamed, *(error for one in limits for error in _delete_oldest(one))]
        if failures:
            raise failures[0]

    def _limits(self) -> tuple[LogLimit, LogLimit]:
        limit = self._limit_bytes
        if limit is None:
            limit = min(_ACCESS_LOG_BYTES, shutil.disk_usage(self._access_log.parent).total // 2)
        return LogLimit(self._access_log, limit), LogLimit(self._cache_log, limit // _CACHE_LOG_SHARE)

    def _rename(self, log: Path) -> None:
        name = next_name(log, datetime.now().astimezone())
        size = _size(log)
        log.rename(name)
        self._renamed = True
        _log.info("rotated %s (%d bytes) to %s", log, size, name.name)


def _attempt(action: Callable[[], None]) -> list[OSError]:
    try:
        action()
    except OSError as error:
        return [error]
    return []


def _delete_oldest(limit: LogLimit) -> list[OSError]:
    """Delete the oldest rotated files of a log until it is within its limit; return the failures."""
    files = [(file, size) for file in rotated(limit.log) if (size := _size(file))]
    excess = _size(limit.log) + sum(size for _, size in files) - limit.limit_bytes
    failures: list[OSError] = []
    for file, size in files:
        if excess <= 0:
            break
        failed = _attempt(partial(_delete, file, size, limit))
        failures += failed
        excess -= 0 if failed else size
    return failures


def _delete(file: Path, size: int, limit: LogLimit) -> None:
    file.unlink(missing_ok=True)
    _log.warning("deleted %s (%d bytes): the limit for %s is %d bytes", file, size, limit.log, limit.limit_bytes)


def _size(file: Path) -> int:
    """Return the size of a regular file; 0 if there is none."""
    try:
        state = os.lstat(file)
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0
