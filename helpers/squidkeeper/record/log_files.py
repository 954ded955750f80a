"""The files of the access log (floor 5): which there are, their order, and their lines."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from squidkeeper.errors import InvalidRecord, UnreadableLog
from squidkeeper.protocol.lines import LineBuffer
from squidkeeper.record.log_file import BLOCK_BYTES, DAMAGED, LINE_LIMIT, STDIN, LogFile, first_line_of, open_log
from squidkeeper.record.record import parse_record
from squidkeeper.rotated_logs import rotated, written_until


class Block(NamedTuple):
    """Complete lines of a file that were read together, without their newlines.

    `number` is the line number of the first, `consumed` the bytes of the file on disk that have been read so far.
    """

    path: Path
    number: int
    lines: list[bytes]
    consumed: int


def read_blocks(paths: Iterable[Path]) -> Iterator[Block]:
    """Read files one after the other, `-` for standard input; raise `UnreadableLog`."""
    for path in paths:
        try:
            with open_log(path) as log:
                yield from _blocks(path, log)
        except DAMAGED as error:
            raise UnreadableLog(f"{path}: damaged or truncated: {error}") from error
        except OSError as error:
            raise UnreadableLog(f"{path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "permission denied: only root and Squid's account can read the access log"
    return (error.strerror or str(error)).lower()


def size_on_disk(paths: Iterable[Path]) -> int:
    """Return the bytes that `read_blocks` will consume; 0 if unknown, as for a pipe."""
    try:
        states = [os.stat(path) for path in paths]
    except OSError:
        return 0
    return sum(state.st_size for state in states) if all(stat.S_ISREG(state.st_mode) for state in states) else 0


def files_since(path: Path, since: datetime | None) -> list[Path]:
    """List, in order, the files with records since a time: those rotated later, and the log itself."""
    if since is None:
        return [path]
    return [*(one for one in rotated(path) if written_until(one) >= since.timestamp()), path]


def sorted_by_time(paths: Iterable[Path]) -> list[Path]:
    """Sort files by the time of their first record, or else of their last change."""
    return sorted(dict.fromkeys(paths), key=_begins)


def _begins(path: Path) -> str:
    if path == STDIN:
        return ""
    try:
        return parse_record(first_line_of(path)).time
    except (InvalidRecord, UnreadableLog):
        return datetime.fromtimestamp(written_until(path), UTC).isoformat()


def _blocks(path: Path, log: LogFile) -> Iterator[Block]:
    buffer, number = LineBuffer(LINE_LIMIT), 1
    ended = True
    while data := log.read(BLOCK_BYTES):
        lines, ended = buffer.feed(data), data.endswith(b"\n")
        yield Block(path, number, lines, log.consumed)
        number += len(lines)
    if not ended:
        yield Block(path, number, buffer.feed(b"\n"), log.consumed)
