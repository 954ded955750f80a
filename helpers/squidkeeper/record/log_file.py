"""One file of the access log, whatever its form (floor 5): plain, compressed, or standard input."""

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
LINE_LIMIT: Final = 256 * 1024  # bytes; Squid's longest is a tenth of that. Of a longer one no more is kept
BLOCK_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 4096  # of the first line, which tell a log from any other
DAMAGED: Final = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

_UNPACKERS: dict[str, Callable[[IO[bytes]], object]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class LogFile:
    """A log that is open; its content is uncompressed, `plain` where it is not compressed on disk either."""

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
        """Let go of the file."""
        self.content.close()
        self._raw.close()

    def read(self, limit: int) -> bytes:
        """Read at most so many bytes of content; of a pipe what there is, without waiting for more."""
        content = self.content
        return content.read1(limit) if isinstance(content, io.BufferedReader) else content.read(limit)

    @property
    def consumed(self) -> int:
        """How many bytes on disk have been read; 0 of a pipe."""
        return self._raw.tell() if self._raw.seekable() else 0


def open_log(path: Path, *, regular: bool = False) -> LogFile:
    """Open a log; OSError or `UnreadableLog` where that cannot be. `regular`: never one that could make us wait."""
    if path == STDIN:
        return LogFile(path, os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
    if path.suffix == ".zst":
        raise UnreadableLog(f"{path}: zstd is not read here, expected: zstdcat {path} | squidkeeper log -")
    raw = open(path, "rb", opener=open_at_once if regular else None)  # noqa: SIM115 - Log closes it
    if regular and not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise UnreadableLog(f"{path}: not a regular file")
    return LogFile(path, raw)


def open_at_once(path: str, flags: int) -> int:
    """Open for `open`, also a FIFO, without waiting for who writes it."""
    return os.open(path, flags | os.O_NONBLOCK)


def head_of(path: Path) -> bytes:
    """Read the first line of a log as far as it tells one from another; empty while it is not whole."""
    try:
        with open_log(path, regular=True) as log:
            return first_line(log.content.read(HEAD_BYTES))
    except (OSError, *DAMAGED) as error:
        raise UnreadableLog(f"{path}: {error}") from error


def first_line(start: bytes) -> bytes:
    """Cut the first line off the first `HEAD_BYTES` of a log; empty while it is not whole."""
    line, newline, _ = start.partition(b"\n")
    return line if newline or len(start) == HEAD_BYTES else b""
