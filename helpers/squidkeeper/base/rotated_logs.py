"""The names of rotated logs: the rotated files of a log, oldest first, and the name of
the next one.

logrotate makes `access.log.1`, `access.log.2.gz` or, with `dateext`,
`access.log-20261125`. `squidkeeper maintain` makes `access.log-20261125063000` in local
time, which logrotate leaves alone.
"""

import heapq
import os
import re
from collections.abc import Iterable
from datetime import datetime
from itertools import count
from pathlib import Path

_ROTATED = re.compile(
    r"(?:\.(\d{1,5})|-(\d{8,14})(?:-(\d{1,12}))?)(\.gz|\.bz2|\.xz|\.zst)?"
)


def rotated(path: Path) -> list[Path]:
    """List the rotated files of a log, oldest first.

    A file that is being compressed exists twice; only the complete one counts.
    """
    try:
        names = set(os.listdir(path.parent))
    except OSError:
        return []
    found = [(match, name) for name in names if (match := _rotated(path, name))]
    whole = [
        (match, name)
        for match, name in found
        if not (match[4] and name.removesuffix(match[4]) in names)
    ]
    numbered = sorted(
        (-int(match[1]), path.with_name(name)) for match, name in whole if match[1]
    )
    dated = sorted(
        _dated(match, path.with_name(name)) for match, name in whole if match[2]
    )
    # Numbers and dates cannot be compared; times of the last write can.
    return list(
        heapq.merge(
            [file for _, file in numbered],
            [file for *_, file in dated],
            key=written_until,
        )
    )


def not_rotated(path: Path) -> list[Path]:
    """List the files that have the name of a log and an ending, and are no rotated
    files of it by their names.
    """
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return []
    longer = (
        name for name in names if name.startswith((f"{path.name}.", f"{path.name}-"))
    )
    return [path.with_name(name) for name in longer if not _rotated(path, name)]


def next_name(path: Path, at: datetime) -> Path:
    """Name the file to rename a log to at this local time; never an existing one."""
    stem = f"{path.name}-{at:%Y%m%d%H%M%S}"
    names = (
        path.with_name(f"{stem}-{number}" if number else stem) for number in count()
    )
    return next(name for name in names if not os.path.lexists(name))


def oldest_write(files: Iterable[Path]) -> float | None:
    """Return the time of the first last write among files, in seconds since 1970; None
    if there are none.
    """
    return min(filter(None, map(written_until, files)), default=None)


def written_until(path: Path) -> float:
    """Return the time of the last write, in seconds since 1970; 0 if the file
    is gone.
    """
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _rotated(path: Path, name: str) -> re.Match[str] | None:
    return (
        _ROTATED.fullmatch(name, len(path.name)) if name.startswith(path.name) else None
    )


def _dated(match: re.Match[str], file: Path) -> tuple[str, float, str, int, Path]:
    """Return a sort key: the day, then the last write, because a name may have no time
    of day.
    """
    return match[2][:8], written_until(file), match[2], int(match[3] or 0), file
