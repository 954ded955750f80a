"""One file of the access log (floor 5): plain, compressed, or standard input."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, cast

from squidkeeper.errors import UnreadableLog

STDIN: Final = Path("-")
LINE_LIMIT: Final = 256 * 1024  # bytes; ten times Squid's longest line. Longer lines are truncated
BLOCK_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 4096  # bytes of the first line that identify a file
DAMAGED: Final = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

_UNPACKERS: dict[str, Callable[[IO[bytes]], object]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class LogFile:
    """An open log file. `content` is uncompressed; `plain` means that the file on disk is not compressed."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        unpacker = _UNPACKERS.get(path.suffix)
        self.content = raw if unpacker is None else cast("IO[bytes]", unpacker(raw))
        self.plain = unpacker is None

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.content.close()
        self._raw.close()

    def read(self, limit: int) -> bytes:
        """Read at most `limit` bytes of content; from a pipe what is there, without waiting for more."""
        content = self.content
        return content.read1(limit) if isinstance(content, io.BufferedReader) else content.read(limit)

    @property
    def consumed(self) -> int:
        """Bytes on disk that have been read; 0 for a pipe."""
        return self._raw.tell() if self._raw.seekable() else 0


def open_log(path: Path, *, regular: bool = False) -> LogFile:
    """Open a log; raise OSError or `UnreadableLog`. `regular` refuses FIFOs and devices, which could block."""
    if path == STDIN:
        return LogFile(path, os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
    if path.suffix == ".zst":
        raise UnreadableLog(f"{path}: zstd is not supported, use: zstdcat {path} | squidkeeper log -")
    raw = open(path, "rb", opener=open_nonblocking if regular else None)  # noqa: SIM115 - Log closes it
    if regular and not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise UnreadableLog(f"{path}: not a regular file")
    return LogFile(path, raw)


def open_nonblocking(path: str, flags: int) -> int:
    """Serve as an opener for `open` that does not wait for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def first_line_of(path: Path) -> bytes:
    """Read the first line of a log, at most `HEAD_BYTES` of it; empty while it is incomplete."""
    try:
        with open_log(path, regular=True) as log:
            return first_line(log.content.read(HEAD_BYTES))
    except (OSError, *DAMAGED) as error:
        raise UnreadableLog(f"{path}: {error}") from error


def first_line(start: bytes) -> bytes:
    """Return the first line of the first `HEAD_BYTES` of a log; empty while it is incomplete."""
    line, newline, _ = start.partition(b"\n")
    return line if newline or len(start) == HEAD_BYTES else b""
