"""Limiting Squid's logs in bytes: rotate by size, delete what is archived and old, or
over the limit.

logrotate can rotate the same logs by time. The names differ, and its files count here
too.
"""

import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from signal import SIGUSR1
from typing import Final

from squidkeeper.base.rotated_logs import next_name, rotated, written_until
from squidkeeper.record.archive_status import (
    deleted_logs_file,
    read_archive_status,
    read_deleted_logs,
)
from squidkeeper.services.maintenance.squid_process import RateLimit, SquidProcess

_ACCESS_LOG_BYTES: Final = 8 * 2**30
_CACHE_LOG_SHARE = 16  # the limit of cache.log is this part of that of the access log
_ROTATIONS = 32  # a log is rotated at this part of its limit
_ROTATE_AT_MOST = (60.0, 1)
# a rotated log that may go stays so long, as with Debian's logrotate
_KEEP_SECONDS: Final = 2 * 86_400.0
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


@dataclass(frozen=True, slots=True)
class RotatedLog:
    """A rotated file of a log.

    `expendable`: it may go, because it is archived or no record.
    """

    file: Path
    size: int
    expendable: bool

    @property
    def is_old(self) -> bool:
        """Whether it is kept no longer if it may go."""
        return time.time() - written_until(self.file) > _KEEP_SECONDS


class Rotation:
    """Renames a long log and lets Squid open a new one; deletes old files, and the
    oldest of a log over its limit.

    Each log has its own limit, so that one does not push out the other. The limit of
    the access log is `limit_bytes`, by default 8 GiB and at most half of its file
    system. Where there is an archive, the files that are archived go first; those that
    are not go only over the limit, and `state` gets a note.
    """

    name = "rotation"

    def __init__(
        self,
        access_log: Path,
        cache_log: Path,
        squid: SquidProcess,
        limit_bytes: int | None = None,
        pace: RateLimit | None = None,
        archive: Path | None = None,
        state: Path | None = None,
    ) -> None:
        self._archive = archive
        self._state = state
        self._access_log = access_log
        self._cache_log = cache_log
        self._squid = squid
        self._limit_bytes = limit_bytes
        self._pace = pace or RateLimit(_ROTATE_AT_MOST)
        self._not_renamed: list[OSError] = []
        # The process before this one can have ended between rename and signal.
        self._renamed = any(
            rotated(log) and not log.exists() for log in (access_log, cache_log)
        )

    def check(self) -> None:
        """Rotate logs that are too long, within the rate limit; delete what is old and
        may go, or is over a limit.

        OSError if a file cannot be renamed or deleted, after all others are done.
        """
        limits = self._limits()
        due = [limit.log for limit in limits if _size(limit.log) > limit.rotate_bytes]
        if due and self._pace.allows() and self._squid.runs():
            self._pace.count()
            self._not_renamed = [
                error for log in due for error in _attempt(partial(self._rename, log))
            ]
        if self._renamed:
            self._renamed = not self._squid.signal(SIGUSR1)
        failures = [
            *self._not_renamed,
            *(error for limit in limits for error in self._delete_oldest(limit)),
        ]
        if failures:
            raise failures[0]

    def _limits(self) -> tuple[LogLimit, LogLimit]:
        limit = self._limit_bytes
        if limit is None:
            limit = min(
                _ACCESS_LOG_BYTES, shutil.disk_usage(self._access_log.parent).total // 2
            )
        return LogLimit(self._access_log, limit), LogLimit(
            self._cache_log, limit // _CACHE_LOG_SHARE
        )

    def _rename(self, log: Path) -> None:
        name = next_name(log, datetime.now().astimezone())
        size = _size(log)
        log.rename(name)
        self._renamed = True
        _log.info("rotated %s (%d bytes) to %s", log, size, name.name)

    def _delete_oldest(self, limit: LogLimit) -> list[OSError]:
        files = self._rotated(limit.log)
        excess = _size(limit.log) + sum(log.size for log in files) - limit.limit_bytes
        failures: list[OSError] = []
        for file in sorted(files, key=lambda log: not log.expendable):
            if excess <= 0 and not (file.expendable and file.is_old):
                continue
            failed = _attempt(partial(self._delete, file, limit, over=excess > 0))
            failures += failed
            excess -= 0 if failed else file.size
        return failures

    def _rotated(self, log: Path) -> list[RotatedLog]:
        files = rotated(log)
        kept = set[Path]()
        if files and log == self._access_log:
            status = read_archive_status(self._archive) if self._archive else None
            kept = set(status.unarchived(files) if status else files)
        return [
            RotatedLog(file, size, file not in kept)
            for file in files
            if (size := _size(file))
        ]

    def _delete(self, log: RotatedLog, limit: LogLimit, *, over: bool) -> None:
        log.file.unlink(missing_ok=True)
        if not over:
            _log.info(
                "deleted %s (%d bytes): older than two days, and no record is lost",
                log.file,
                log.size,
            )
            return
        what = f"deleted {log.file} ({log.size} bytes)"
        _log.warning(
            "%s: the limit for %s is %d bytes", what, limit.log, limit.limit_bytes
        )
        if not log.expendable and self._archive and self._state:
            _log.error("%s before it was archived: its records are lost", what)
            total = read_deleted_logs(self._state).plus(
                log.file.name, log.size, time.time()
            )
            deleted_logs_file(self._state).write(total)


def _attempt(action: Callable[[], None]) -> list[OSError]:
    try:
        action()
    except OSError as error:
        return [error]
    return []


def _size(file: Path) -> int:
    try:
        state = os.lstat(file)
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0
