"""Times at which a long log is divided: to show its first lines early, or to read its newest lines alone.

A period is cheap to read where the rest of a log is not of it: `open_table` does not parse those lines. The times are
read from the log, at some of its bytes.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.record.log.log_file import LINE_LIMIT, STDIN, open_nonblocking
from squidkeeper.record.log.record import parse_record, parse_time

_FIRST_BYTES: Final = 1024 * 1024  # read in a moment
_GROWTH: Final = 16
_STEPS: Final = 3
_LINE_BYTES: Final = 1000  # of a usual line, or more


def early_times(oldest: Path) -> list[datetime]:
    """Return times at which to divide a log, the first after few lines; none where it is short or compressed."""
    return sorted({at for offset in _sizes(_FIRST_BYTES) if (at := _time_at(oldest, offset))})


def late_times(newest: Path, lines: int) -> Iterator[datetime]:
    """Yield times further and further back, from which on a log may hold so many of the lines that are wanted."""
    size = _size(newest)
    for length in _sizes(max(_FIRST_BYTES, lines * _LINE_BYTES)):
        if length < size and (at := _time_at(newest, size - length)):
            yield at


def _sizes(first: int) -> list[int]:
    return [first * _GROWTH**step for step in range(_STEPS)]


def _size(path: Path) -> int:
    try:
        return 0 if path == STDIN else os.stat(path).st_size
    except OSError:
        return 0


def _time_at(path: Path, offset: int) -> datetime | None:
    if _size(path) <= offset:
        return None
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            file.seek(offset)
            lines = file.read(2 * LINE_LIMIT).split(b"\n")[1:-1]
        return next(map(parse_time, map(parse_record, lines)), None)
    except (OSError, InvalidRecord, ValueError):
        return None
