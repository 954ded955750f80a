"""Squid's logs, bounded in bytes (floor 5): rotated by size, and the oldest deleted.

logrotate may rotate the same logs by time beside this: the names differ, and what it has made counts here too.
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
class Bound:
    """A log, and the limit in bytes for it and its rotated files together."""

    log: Path
    limit_bytes: int

    @property
    def rotate_bytes(self) -> int:
        """Give the size at which the log is rotated."""
        return self.limit_bytes // _ROTATIONS


class Rotation:
    """Renames a log that is too long and has Squid open a new one; deletes the oldest files of a log over its limit.

    Each log has a limit of its own, so that lines of one do not delete the other. That of the access log is
    `limit_bytes`; without it 8 GiB, and at most half of its file system.
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
        # A predecessor may have ended between renaming and telling.
        self._renamed = any(rotated(log) and not log.exists() for log in (access_log, cache_log))

    def check(self) -> None:
        """Rotate what is too long, unless that is too often; delete what is too much.

        A file that cannot be renamed or deleted is an OSError after all others are.
        """
        bounds = self._bounds()
        due = [one.log for one in bounds if _size(one.log) > one.rotate_bytes]
        if due and self._pace.allows() and self._squid.runs():
            self._pace.count()
            self._not_renamed = [error for log in due for error in _attempt(partial(self._rename, log))]
        if self._renamed:
            self._renamed = not self._squid.tell(SIGUSR1)
        failures = [*self._not_renamed, *(error for one in bounds for error in _delete_oldest(one))]
        if failures:
            raise failures[0]

    def _bounds(self) -> tuple[Bound, Bound]:
        limit = self._limit_bytes
        if limit is None:
            limit = min(_ACCESS_LOG_BYTES, shutil.disk_usage(self._access_log.parent).total // 2)
        return Bound(self._access_log, limit), Bound(self._cache_log, limit // _CACHE_LOG_SHARE)

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


def _delete_oldest(bound: Bound) -> list[OSError]:
    """Delete the oldest rotations of a log until it keeps within its bound; list what cannot be deleted."""
    files = [(file, size) for file in rotated(bound.log) if (size := _size(file))]
    excess = _size(bound.log) + sum(size for _, size in files) - bound.limit_bytes
    failures: list[OSError] = []
    for file, size in files:
        if excess <= 0:
            break
        failed = _attempt(partial(_delete, file, size, bound))
        failures += failed
        excess -= 0 if failed else size
    return failures


def _delete(file: Path, size: int, bound: Bound) -> None:
    file.unlink(missing_ok=True)
    _log.warning("deleted %s (%d bytes): the limit for %s is %d bytes", file, size, bound.log, bound.limit_bytes)


def _size(file: Path) -> int:
    """Give the size of a regular file; 0 where there is none."""
    try:
        state = os.lstat(file)
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0
