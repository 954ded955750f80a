"""The access log as files (floor 5): whole lines of one or several, rotated and compressed, or as Squid writes them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from squidkeeper.errors import InvalidRecord, UnreadableLog
from squidkeeper.observe.record.line import parse_record
from squidkeeper.wire import LineBuffer

STDIN: Final = Path("-")
LINE_LIMIT: Final = 256 * 1024  # bytes; Squid's longest is a tenth of that. Of a longer one no more is kept
BLOCK_BYTES: Final = 1024 * 1024

_HEAD_BYTES = 4096  # of the first line, which tell a log from any other
_ROTATED = re.compile(r"(?:\.(\d{1,5})|-(\d{8,14})(?:-(\d{1,12}))?)(\.gz|\.bz2|\.xz|\.zst)?")
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_UNPACKERS: dict[str, Callable[[IO[bytes]], object]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


# --- whole files --------------------------------------------------------------------------------------------------


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
            with _open(path) as log:
                yield from _blocks(path, log)
        except _DAMAGED as error:
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


def rotated(path: Path) -> list[Path]:
    """List what a log has been rotated to, oldest first: `access.log.1`, `access.log.2.gz`, `access.log-20261125`.

    One that is being compressed stands there twice; only the whole one counts.
    """
    try:
        names = set(os.listdir(path.parent))
    except OSError:
        return []
    found = [(match, name) for name in names if (match := _rotated(path, name))]
    whole = [(match, name) for match, name in found if not (match[4] and name.removesuffix(match[4]) in names)]
    return [path.with_name(name) for match, name in sorted(whole, key=lambda one: _age(one[0]))]


def holding_since(path: Path, since: datetime | None) -> list[Path]:
    """List the files that can hold what was logged since a time, in order: those rotated later, and the log itself."""
    if since is None:
        return [path]
    return [*(one for one in rotated(path) if _written_until(one) >= since.timestamp()), path]


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort logs by the time of their first record, or where that is none, of their last change."""
    return sorted(dict.fromkeys(paths), key=_begins)


def _rotated(path: Path, name: str) -> re.Match[str] | None:
    return _ROTATED.fullmatch(name, len(path.name)) if name.startswith(path.name) else None


def _age(match: re.Match[str]) -> tuple[bool, int, int]:
    number, date, second, _ = match.groups()
    return (True, -int(number), 0) if number else (False, int(date.ljust(14, "0")), int(second or 0))


def _written_until(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _begins(path: Path) -> str:
    if path == STDIN:
        return ""
    try:
        return parse_record(_head(path)).time
    except (InvalidRecord, UnreadableLog):
        return datetime.fromtimestamp(_written_until(path), UTC).isoformat()


def _blocks(path: Path, log: _Log) -> Iterator[Block]:
    buffer, number = LineBuffer(LINE_LIMIT), 1
    ended = True
    while data := log.read(BLOCK_BYTES):
        lines, ended = buffer.feed(data), data.endswith(b"\n")
        yield Block(path, number, lines, log.consumed)
        number += len(lines)
    if not ended:
        yield Block(path, number, buffer.feed(b"\n"), log.consumed)


# --- one file, whatever its form ----------------------------------------------------------------------------------


class _Log:
    """A log that is open: its content uncompressed, `consumed` bytes of it on disk so far."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        unpacker = _UNPACKERS.get(path.suffix)
        self.content = raw if unpacker is None else cast("IO[bytes]", unpacker(raw))
        self.plain = unpacker is None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.content.close()
        self._raw.close()

    def read(self, limit: int) -> bytes:
        """Read at most so many bytes of content; of a pipe what there is, without waiting for more."""
        content = self.content
        return content.read1(limit) if isinstance(content, io.BufferedReader) else content.read(limit)

    @property
    def consumed(self) -> int:
        return self._raw.tell() if self._raw.seekable() else 0


def _open(path: Path, *, regular: bool = False) -> _Log:
    if path == STDIN:
        return _Log(path, os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
    if path.suffix == ".zst":
        raise UnreadableLog(f"{path}: zstd is not read here, expected: zstdcat {path} | squidkeeper log -")
    raw = open(path, "rb", opener=_open_at_once if regular else None)  # noqa: SIM115 - _Log closes it
    if regular and not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise UnreadableLog(f"{path}: not a regular file")
    return _Log(path, raw)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # of a FIFO, without waiting for who writes it


def _head(path: Path) -> bytes:
    """Read the first line of a log as far as it tells one from another; empty while it is not whole."""
    try:
        with _open(path, regular=True) as log:
            return _first_line(log.content.read(_HEAD_BYTES))
    except (OSError, *_DAMAGED) as error:
        raise UnreadableLog(f"{path}: {error}") from error


def _first_line(start: bytes) -> bytes:
    line, newline, _ = start.partition(b"\n")
    return line if newline or len(start) == _HEAD_BYTES else b""


# --- as Squid writes it -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Position:
    """How far a log has been read: `offset` bytes, uncompressed, of the file whose first line has this digest.

    The digest is empty where nothing has been read. A file keeps its first line when it is renamed, copied or
    compressed, so the position is found again after any rotation.
    """

    first_line_digest: str = ""
    offset: int = 0


def beginning(path: Path) -> Position:
    """Give the position at the beginning of a log, from which a follower goes on through all that are newer."""
    return Position(_digest_of(path) or "")


class Follower:
    """Reads a log as Squid writes it, through every rotation: renamed, copied and truncated, compressed.

    `lost` counts the times that a stretch was gone before it was read; `readable` is False while the log cannot be
    opened. Nothing waits, and no file that appears or vanishes is an error.
    """

    def __init__(self, path: Path, position: Position | None = None, *, at_end: bool = False) -> None:
        self.lost = 0
        self.readable = False
        self.path = path
        self._start = position or Position()
        self._at_end = at_end
        self._tail: _Tail | None = None

    @property
    def position(self) -> Position:
        """Where the last line that was given out ended."""
        return self._tail.position if self._tail else self._start

    @property
    def backlog_bytes(self) -> int:
        """Bytes on disk that have not been given out; of a compressed file nothing is said while it is read."""
        if self._tail is None:
            return _size(self.path)
        return self._tail.unread_bytes + sum(_size(path) for path in self._newer_than(self._tail))

    def read(self, limit_bytes: int = BLOCK_BYTES) -> list[bytes]:
        """Give the next whole lines, reading at most so many bytes at a time; nothing where nothing is new."""
        while tail := self._ready():
            lines = tail.read(limit_bytes)
            if lines is None:
                lines = self._go_on(tail, limit_bytes)
            if lines is None:
                return []
            if lines:
                return lines
        return []

    def close(self) -> None:
        """Let go of the file; the position stays."""
        if self._tail:
            self._start = self._tail.position
            self._tail.close()
            self._tail = None

    def _ready(self) -> _Tail | None:
        """Find the file to read: the same as before, unless it was truncated."""
        if self._tail and self._tail.was_replaced():
            self.close()
        if self._tail is None:
            self._tail = self._find()
            self._at_end = False
        self.readable = self._tail is not None
        return self._tail

    def _find(self) -> _Tail | None:
        wanted = self._start.first_line_digest
        for path in reversed([*rotated(self.path), self.path]) if wanted else ():
            if _digest_of(path) == wanted and (tail := _tail(path, self._start.offset)):
                return tail
        tail = _tail(self.path, _last_line_end(self.path) if self._at_end else 0)
        if tail and wanted:
            self.lost += 1
        return tail

    def _go_on(self, tail: _Tail, limit_bytes: int) -> list[bytes] | None:
        """Leave a file at its end for the next newer one; None where there is none yet."""
        path, unreadable = self._next(tail)
        if path is None:
            return None
        lines = tail.read(limit_bytes)  # Squid leaves a file before it writes the next one: what is here now is its end
        if lines is not None:
            return lines
        newer = _tail(path, 0)
        if newer is None:
            return None
        self.lost += unreadable + tail.damaged
        rest = tail.torn_line()
        tail.close()
        self._tail = newer
        return rest

    def _next(self, tail: _Tail) -> tuple[Path | None, int]:
        """Find the next newer file that has a first line; counts those before it that cannot be read."""
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
        ours = [position for position, path in enumerate(files) if tail.is_at(path) or tail.is_copied_to(path)]
        return files[ours[-1] + 1 :] if ours else [self.path]


class _Tail:
    """One file of a followed log, open, and how far it has been read."""

    def __init__(self, path: Path, offset: int) -> None:
        self.damaged = False
        self._log = _open(path, regular=True)
        self._buffer = LineBuffer(LINE_LIMIT)
        self._read_to = self._given_to = offset
        self._digest = "" if self._log.plain else _digest(_head(path))
        self._skip(path, offset)

    @property
    def position(self) -> Position:
        return Position(self._first_line_digest(), self._given_to)

    @property
    def unread_bytes(self) -> int:
        return max(0, self._state().st_size - self._given_to) if self._log.plain else 0

    def read(self, limit: int) -> list[bytes] | None:
        """Read on: the lines that are whole now, None at the end of what there is."""
        try:
            data = self._log.read(limit)
        except (OSError, *_DAMAGED):
            self.damaged = True
            return None
        if not data:
            return None
        newline = data.rfind(b"\n")
        if newline >= 0:
            self._given_to = self._read_to + newline + 1
        self._read_to += len(data)
        return self._buffer.feed(data)

    def torn_line(self) -> list[bytes]:
        """Give what stands after the last newline, for which none will come."""
        return self._buffer.feed(b"\n") if self._given_to < self._read_to else []

    def was_replaced(self) -> bool:
        """Tell whether the file was truncated since, whether or not it has grown again."""
        if not self._log.plain:
            return False
        known = self._first_line_digest()
        return self._state().st_size < self._read_to or (bool(known) and known != self._digest_now())

    def is_at(self, path: Path) -> bool:
        """Tell whether a path still leads to this very file."""
        try:
            return os.path.samestat(os.stat(path), self._state())
        except OSError:
            return False

    def is_copied_to(self, path: Path) -> bool:
        """Tell whether another file has the same content, compressed or not."""
        known = self._first_line_digest()
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
            raise UnreadableLog(f"{path}: shorter than the {offset} bytes that were read of it")

    def _first_line_digest(self) -> str:
        self._digest = self._digest or self._digest_now()
        return self._digest

    def _digest_now(self) -> str:
        return _digest(_first_line(os.pread(self._log.content.fileno(), _HEAD_BYTES, 0)))

    def _state(self) -> os.stat_result:
        return os.fstat(self._log.content.fileno())


def _tail(path: Path, offset: int) -> _Tail | None:
    try:
        return _Tail(path, offset)
    except (OSError, UnreadableLog, *_DAMAGED):
        return None


def _digest(first_line: bytes) -> str:
    return hashlib.sha256(first_line).hexdigest()[:32] if first_line else ""


def _digest_of(path: Path) -> str | None:
    """Digest the first line of a file: empty while it has none, None where it cannot be read."""
    try:
        return _digest(_head(path))
    except UnreadableLog:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_line_end(path: Path) -> int:
    """Find where the last whole line of a file ends; 0 where there is none."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            start = max(0, file.seek(0, os.SEEK_END) - LINE_LIMIT)
            file.seek(start)
            return start + file.read(LINE_LIMIT).rfind(b"\n") + 1
    except OSError:
        return 0


def _pieces(size: int) -> Iterator[int]:
    yield from (min(BLOCK_BYTES, size - start) for start in range(0, size, BLOCK_BYTES))
