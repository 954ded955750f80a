"""The access log as files (floor 5): which there are, in which order, and the whole lines of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from squidkeeper.errors import InvalidRecord, UnreadableLog
from squidkeeper.protocol.lines import LineBuffer
from squidkeeper.record.log_file import BLOCK_BYTES, DAMAGED, LINE_LIMIT, STDIN, LogFile, head_of, open_log
from squidkeeper.record.record import parse_record
from squidkeeper.rotated_logs import rotated, written_until


class Block(NamedTuple):
    """Whole lines of a log that were read together, without their newlines.

    `number` is the first one's line number, `consumed` how many bytes of the file on disk have been read so far.
    """

    path: Path
    number: int
    lines: list[bytes]
    consumed: int


def read_blocks(paths: Iterable[Path]) -> Iterator[Block]:
    """Read logs one after the other, `-` for standard input; `UnreadableLog` for one that cannot be read."""
    for path in paths:
        try:
            with open_log(path) as log:
                yield from _blocks(path, log)
        except DAMAGED as error:
            raise UnreadableLog(f"{path}: damaged, or cut off: {error}") from error
        except OSError as error:
            raise UnreadableLog(f"{path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "permission denied: the record is readable by root and Squid's account alone"
    return (error.strerror or str(error)).lower()


def size_on_disk(paths: Iterable[Path]) -> int:
    """Sum up the bytes that `read_blocks` will consume; 0 where that cannot be known, as for a pipe."""
    try:
        states = [os.stat(path) for path in paths]
    except OSError:
        return 0
    return sum(state.st_size for state in states) if all(stat.S_ISREG(state.st_mode) for state in states) else 0


def holding_since(path: Path, since: datetime | None) -> list[Path]:
    """List the files that can hold what was logged since a time, in order: those rotated later, and the log itself."""
    if since is None:
        return [path]
    return [*(one for one in rotated(path) if written_until(one) >= since.timestamp()), path]


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort logs by the time of their first record, or where that is none, of their last change."""
    return sorted(dict.fromkeys(paths), key=_begins)


def _begins(path: Path) -> str:
    if path == STDIN:
        return ""
    try:
        return parse_record(head_of(path)).time
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
