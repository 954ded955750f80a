"""Follows the access log through rotations."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from squidkeeper.base.errors import DamagedLog, UnreadableLog
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.policy.protocol.lines import LineBuffer
from squidkeeper.record.log.log_files import (
    BLOCK_BYTES,
    HEAD_BYTES,
    LINE_LIMIT,
    first_line,
    first_line_of,
    open_log,
    open_nonblocking,
)

_TIME = re.compile(rb'\{"v":[0-9]+,"time":"([0-9TZ:.-]{1,40})"')  # how a record begins


@dataclass(frozen=True, slots=True)
class Position:
    """How far a log has been read: `offset` uncompressed bytes of the file whose first
    line has this digest.

    The digest is empty if nothing has been read. A file keeps its first line when it is
    renamed, copied or compressed, so the position is found again after any rotation.
    Where the file is gone, the time of its first line tells which files are newer; it
    is empty if that line is no record.
    """

    first_line_digest: str = ""
    offset: int = 0
    first_line_time: str = ""


def beginning(path: Path) -> Position:
    """Return the position at the beginning of a file; a follower continues from there
    through all newer files.
    """
    return _start_of(path) or Position()


class Follower:
    """Reads a log while Squid writes it, through every kind of rotation: rename, copy
    and truncate, compression.

    `deleted` counts the stretches that were gone before they were read, `damaged` those
    that are, or may be, in files that cannot be read. `readable` is False while the log
    cannot be opened or its name does not exist: it was deleted, or renamed without a
    signal to Squid. No call blocks, and files may appear and vanish at any time.
    """

    def __init__(
        self, path: Path, position: Position | None = None, *, at_end: bool = False
    ) -> None:
        self.deleted = 0
        self.damaged = 0
        self.readable = False
        self.path = path
        self._start = position or Position()
        self._at_end = at_end
        self._tail: _Tail | None = None

    @property
    def lost(self) -> int:
        """How many stretches were lost, for either reason."""
        return self.deleted + self.damaged

    @property
    def position(self) -> Position:
        """The end of the last line that was returned."""
        return self._tail.position if self._tail else self._start

    @property
    def backlog_bytes(self) -> int:
        """Bytes on disk that have not been returned; a compressed file counts as 0
        while it is read.
        """
        if self._tail is None:
            return _size(self.path)
        return self._tail.unread_bytes + sum(
            _size(path) for path in self._newer_than(self._tail)
        )

    def read(self, limit_bytes: int = BLOCK_BYTES) -> list[bytes]:
        """Return the next complete lines, of at most `limit_bytes` per read; empty if
        there are none.
        """
        while tail := self._ready():
            lines = tail.read(limit_bytes)
            if lines is None:
                lines = self._read_next_file(tail, limit_bytes)
            if lines is None:
                return []
            if lines:
                return lines
        return []

    def close(self) -> None:
        """Close the file; the position stays."""
        if self._tail:
            self._start = self._tail.position
            self._tail.close()
            self._tail = None

    def _ready(self) -> _Tail | None:
        if self._tail and self._tail.was_replaced():
            self.close()
        if self._tail is None:
            self._tail = self._find()
            self._at_end = False
        # Path.exists raises in a closed folder
        self.readable = self._tail is not None and os.path.exists(self.path)
        return self._tail

    def _find(self) -> _Tail | None:
        wanted = self._start.first_line_digest
        if not wanted:
            return _tail(self.path, _last_line_end(self.path) if self._at_end else 0)
        starts = [(path, _start_of(path)) for path in (*rotated(self.path), self.path)]
        same = [
            path
            for path, start in starts
            if start and start.first_line_digest == wanted
        ]
        for path in reversed(same):
            if tail := _tail(path, self._start.offset):
                return tail
        for path in self._begun_after(self._start):
            if tail := _tail(path, 0):
                unreadable = bool(same) or any(
                    start is None for _, start in starts[:-1]
                )
                self.damaged += unreadable
                self.deleted += not unreadable
                return tail
        return None

    def _read_next_file(self, tail: _Tail, limit_bytes: int) -> list[bytes] | None:
        """Change from a file that ended to the next newer one; None while there is
        none.
        """
        path, unreadable = self._next(tail)
        if path is None:
            return None
        # Squid closes a file before it writes the next one, so this is the end
        lines = tail.read(limit_bytes)
        if lines is not None:
            return lines
        newer = _tail(path, 0)
        if newer is None:
            return None
        self.damaged += unreadable + tail.damaged
        rest = tail.torn_line()
        tail.close()
        self._tail = newer
        return rest

    def _next(self, tail: _Tail) -> tuple[Path | None, int]:
        unreadable = 0
        for path in self._newer_than(tail):
            digest = _digest_of(path)
            if digest:
                return path, unreadable
            unreadable += digest is None
        return None, 0

    def _newer_than(self, tail: _Tail) -> list[Path]:
        if tail.is_at(self.path):
            return []
        files = [*rotated(self.path), self.path]
        ours = [
            position
            for position, path in enumerate(files)
            if tail.is_at(path) or tail.is_copied_to(path)
        ]
        return files[ours[-1] + 1 :] if ours else self._begun_after(tail.position)

    def _begun_after(self, gone: Position) -> list[Path]:
        files = rotated(self.path)
        newer = (
            number
            for number, path in enumerate(files)
            if _is_newer(_start_of(path), gone)
        )
        return [*files[next(newer, len(files)) :], self.path]


class _Tail:
    def __init__(self, path: Path, offset: int) -> None:
        self.damaged = False
        self._log = open_log(path, regular=True)
        self._buffer = LineBuffer(LINE_LIMIT)
        self._read_to = self._returned_to = offset
        self._start = Position() if self._log.plain else _start(first_line_of(path))
        self._skip(path, offset)

    @property
    def position(self) -> Position:
        return replace(self._known_start(), offset=self._returned_to)

    @property
    def unread_bytes(self) -> int:
        return (
            max(0, self._state().st_size - self._returned_to) if self._log.plain else 0
        )

    def read(self, limit: int) -> list[bytes] | None:
        """Return the lines that are complete now; None at the end of the file."""
        try:
            data = self._log.read(limit)
        except (OSError, DamagedLog):
            self.damaged = True
            return None
        if not data:
            return None
        newline = data.rfind(b"\n")
        if newline >= 0:
            self._returned_to = self._read_to + newline + 1
        self._read_to += len(data)
        return self._buffer.feed(data)

    def torn_line(self) -> list[bytes]:
        """Return the text after the last newline: the file has ended."""
        return self._buffer.feed(b"\n") if self._returned_to < self._read_to else []

    def was_replaced(self) -> bool:
        """Whether the file was truncated, even if it has grown again."""
        if not self._log.plain:
            return False
        known = self._known_start()
        return self._state().st_size < self._read_to or (
            bool(known.first_line_digest) and known != self._start_now()
        )

    def is_at(self, path: Path) -> bool:
        """Whether a path still names this file."""
        try:
            return os.path.samestat(os.stat(path), self._state())
        except OSError:
            return False

    def is_copied_to(self, path: Path) -> bool:
        """Whether another file has the same content, compressed or not."""
        known = self._known_start().first_line_digest
        return bool(known) and _digest_of(path) == known

    def close(self) -> None:
        self._log.close()

    def _skip(self, path: Path, offset: int) -> None:
        if self._log.plain:
            short = self._state().st_size < offset
            self._log.content.seek(offset)
        else:
            short = sum(len(self._log.read(size)) for size in _pieces(offset)) < offset
        if short:
            self.close()
            raise UnreadableLog(
                f"{path}: shorter than the {offset} bytes that were already read"
            )

    def _known_start(self) -> Position:
        if not self._start.first_line_digest:
            self._start = self._start_now()
        return self._start

    def _start_now(self) -> Position:
        return _start(first_line(os.pread(self._log.content.fileno(), HEAD_BYTES, 0)))

    def _state(self) -> os.stat_result:
        return os.fstat(self._log.content.fileno())


def _tail(path: Path, offset: int) -> _Tail | None:
    try:
        return _Tail(path, offset)
    except (OSError, UnreadableLog, DamagedLog):
        return None


def _start(first_line: bytes) -> Position:
    """Make the position at the beginning of a file with this first line; that of no
    file while there is none.
    """
    if not first_line:
        return Position()
    time = _TIME.match(first_line)
    return Position(
        hashlib.sha256(first_line).hexdigest()[:32], 0, time[1].decode() if time else ""
    )


def _start_of(path: Path) -> Position | None:
    try:
        return _start(first_line_of(path))
    except UnreadableLog:
        return None


def _digest_of(path: Path) -> str | None:
    start = _start_of(path)
    return None if start is None else start.first_line_digest


def _is_newer(start: Position | None, gone: Position) -> bool:
    """Whether a file is known to have begun after another, which may have begun in the
    same millisecond.
    """
    if (
        start is None
        or not gone.first_line_time
        or start.first_line_digest == gone.first_line_digest
    ):
        return False
    return start.first_line_time >= gone.first_line_time


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_line_end(path: Path) -> int:
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            start = max(0, file.seek(0, os.SEEK_END) - LINE_LIMIT)
            file.seek(start)
            return start + file.read(LINE_LIMIT).rfind(b"\n") + 1
    except OSError:
        return 0


def _pieces(size: int) -> Iterator[int]:
    yield from (min(BLOCK_BYTES, size - start) for start in range(0, size, BLOCK_BYTES))
