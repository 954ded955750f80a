"""The files of the access log: which there are, their order, their lines, and how a
compressed one is unpacked.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, cast

from squidkeeper.base.errors import DamagedLog, InvalidRecord, UnreadableLog
from squidkeeper.base.rotated_logs import rotated, written_until
from squidkeeper.policy.protocol.lines import LineBuffer
from squidkeeper.record.log.record import parse_record

STDIN: Final = Path("-")
# bytes; ten times Squid's longest line. Longer lines are truncated
LINE_LIMIT: Final = 256 * 1024
BLOCK_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 4096  # bytes of the first line that identify a file
_PACKED_BYTES: Final = 64 * 1024  # that are unpacked together
_CONTENT_BYTES: Final = 256 * 1024  # of content from one call, to bound memory
_PADDING: Final = b"\0"  # may follow the end of a file
# OSError: how bz2 names damage
_FAILURES: Final = (
    zlib.error,
    lzma.LZMAError,
    OSError,
    ValueError,
)


class LogFile:
    """An open log file.

    `content` is uncompressed; `plain` means that the file on disk is not compressed.
    """

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        unpacker = UNPACKERS.get(path.suffix)
        self.content = (
            raw
            if unpacker is None
            else cast("IO[bytes]", UnpackedContent(raw, unpacker))
        )
        self.plain = unpacker is None

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.content.close()
        self._raw.close()

    def skip(self, count: int) -> bool:
        """Skip so many bytes of content; False if there are fewer."""
        while count and (data := self.content.read(min(count, BLOCK_BYTES))):
            count -= len(data)
        return not count

    def read(self, limit: int) -> bytes:
        """Read at most `limit` bytes of content; from a pipe what is there, without
        waiting for more.

        `DamagedLog` where a compressed file is damaged, once all that is ahead of that
        was read.
        """
        content = self.content
        return (
            content.read1(limit)
            if isinstance(content, io.BufferedReader)
            else content.read(limit)
        )


def open_log(path: Path, *, regular: bool = False) -> LogFile:
    """Open a log; raise OSError or `UnreadableLog`.

    `regular` refuses FIFOs and devices, which could block.
    """
    if path == STDIN:
        return LogFile(path, os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
    if path.suffix == ".zst":
        raise UnreadableLog(
            f"{path}: Python cannot read zstd: unpack it (zstd -d {path})"
        )
    raw = open(path, "rb", opener=open_nonblocking if regular else None)  # noqa: SIM115 - Log closes it
    if regular and not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise UnreadableLog(f"{path}: not a regular file")
    return LogFile(path, raw)


def open_nonblocking(path: str, flags: int) -> int:
    """Serve as an opener for `open` that does not wait for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def first_line_of(path: Path) -> bytes:
    """Read the first line of a log, at most `HEAD_BYTES` of it; empty while it is
    incomplete.
    """
    try:
        with open_log(path, regular=True) as log:
            return first_line(log.content.read(HEAD_BYTES))
    except (OSError, DamagedLog) as error:
        raise UnreadableLog(f"{path}: {error}") from error


def first_line(start: bytes) -> bytes:
    """Return the first line of the first `HEAD_BYTES` of a log; empty while it is
    incomplete.
    """
    line, newline, _ = start.partition(b"\n")
    return line if newline or len(start) == HEAD_BYTES else b""


def read_log_lines(paths: Iterable[Path]) -> Iterator[bytes]:
    """Read files one after the other, `-` for standard input; raise `UnreadableLog`."""
    for path in paths:
        try:
            with open_log(path) as log:
                for lines, _ in line_blocks(log):
                    yield from lines
        except DamagedLog as error:
            raise UnreadableLog(f"{path}: damaged or truncated: {error}") from error
        except OSError as error:
            raise UnreadableLog(f"{path}: {read_failure(error)}") from error


def line_blocks(log: LogFile) -> Iterator[tuple[list[bytes], bool]]:
    """Yield lines that were read together, without their newlines; False with a last
    line that has not ended.
    """
    buffer = LineBuffer(LINE_LIMIT)
    ended = True
    while data := log.read(BLOCK_BYTES):
        yield buffer.feed(data), True
        ended = data.endswith(b"\n")
    if not ended:
        yield buffer.feed(b"\n"), False


def read_failure(error: OSError) -> str:
    """Tell why a file cannot be read."""
    if isinstance(error, PermissionError):
        return (
            "permission denied: only root and Squid's account can read the access log"
        )
    return (error.strerror or str(error)).lower()


def files_since(path: Path, since: datetime | None) -> list[Path]:
    """List, in order, the files with records since a time: those rotated later, and the
    log itself.
    """
    if since is None:
        return [path]
    return [
        *(log for log in rotated(path) if written_until(log) >= since.timestamp()),
        path,
    ]


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


# Unpacking a log that is compressed: all that is ahead of damage comes first, and then
# the damage.
#
# The files of `gzip`, `bz2` and `lzma` raise as soon as they meet it, and what they had
# unpacked by then is lost.


class _GzipUnpacker:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


Unpacker = _GzipUnpacker | bz2.BZ2Decompressor | lzma.LZMADecompressor
UNPACKERS: Final[dict[str, Callable[[], Unpacker]]] = {
    ".gz": _GzipUnpacker,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}


class _PieceLost(DamagedLog):
    """Damage that costs what the same piece held ahead of it."""


class UnpackedContent:
    """The content of a compressed file, to be read from its start to its end."""

    def __init__(self, packed: IO[bytes], begin: Callable[[], Unpacker]) -> None:
        self._packed = packed
        self._blocks = _unpacked(packed, begin)
        self._rest = b""
        self._damage: DamagedLog | None = None

    def read(self, limit: int) -> bytes:
        """Read so many bytes, fewer only at the end; `DamagedLog` once all that is
        ahead of the damage was read.
        """
        while len(self._rest) < limit and not self._damage:
            try:
                block = next(self._blocks)
            except StopIteration:
                break
            except DamagedLog as error:
                self._damage = error
            else:
                self._rest += block
        if self._damage and not self._rest:
            raise self._damage
        taken, self._rest = self._rest[:limit], self._rest[limit:]
        return taken

    def fileno(self) -> int:
        """Return the descriptor of the compressed file."""
        return self._packed.fileno()

    def close(self) -> None:
        """Forget what was unpacked."""
        self._rest = b""


def _unpacked(packed: IO[bytes], begin: Callable[[], Unpacker]) -> Iterator[bytes]:
    given = 0
    try:
        for block in _members(_pieces(packed), begin):
            given += len(block)
            yield block
    except _PieceLost:
        if not packed.seekable():
            raise
    else:
        return
    # The piece with the damage gave nothing: once more, to where it was, and from there
    # byte by byte.
    damaged_from = (packed.tell() - 1) // _PACKED_BYTES * _PACKED_BYTES
    packed.seek(0)
    for block in _members(_pieces(packed, damaged_from), begin):
        skipped = min(given, len(block))
        given -= skipped
        if skipped < len(block):
            yield block[skipped:]


def _pieces(packed: IO[bytes], bytewise_from: int | None = None) -> Iterator[bytes]:
    at = 0
    while piece := packed.read(_PACKED_BYTES):
        at += len(piece)
        if bytewise_from is None or at <= bytewise_from:
            yield piece
        else:
            yield from (piece[n : n + 1] for n in range(len(piece)))


def _members(pieces: Iterator[bytes], begin: Callable[[], Unpacker]) -> Iterator[bytes]:
    """Unpack one member after the other, as `cat a.gz b.gz` makes them."""
    unpacker, is_whole = None, False
    for piece in pieces:
        data = piece
        while data or (unpacker and not unpacker.needs_input):
            if unpacker is None:
                data = data.lstrip(_PADDING) if is_whole else data
                unpacker = begin() if data else None
                continue
            yield _unpack(unpacker, data)
            data = b""
            if unpacker.eof:
                data, unpacker, is_whole = unpacker.unused_data, None, True
    if unpacker:
        yield from iter(lambda: _unpack(unpacker, b""), b"")
    if unpacker or not is_whole:
        raise DamagedLog("it ends too early")


def _unpack(unpacker: Unpacker, data: bytes) -> bytes:
    try:
        return unpacker.decompress(data, _CONTENT_BYTES)
    except _FAILURES as error:
        raise _PieceLost(str(error)) from None
