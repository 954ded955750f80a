"""One file of the access log: plain, compressed, or standard input."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path
from typing import IO, Final, cast

from squidkeeper.base.errors import DamagedLog, UnreadableLog
from squidkeeper.record.log.unpacking import UNPACKERS, UnpackedContent

STDIN: Final = Path("-")
LINE_LIMIT: Final = 256 * 1024  # bytes; ten times Squid's longest line. Longer lines are truncated
BLOCK_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 4096  # bytes of the first line that identify a file


class LogFile:
    """An open log file. `content` is uncompressed; `plain` means that the file on disk is not compressed."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        unpacker = UNPACKERS.get(path.suffix)
        self.content = raw if unpacker is None else cast("IO[bytes]", UnpackedContent(raw, unpacker))
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
        """Read at most `limit` bytes of content; from a pipe what is there, without waiting for more.

        `DamagedLog` where a compressed file is damaged, once all that is ahead of that was read.
        """
        content = self.content
        return content.read1(limit) if isinstance(content, io.BufferedReader) else content.read(limit)


def open_log(path: Path, *, regular: bool = False) -> LogFile:
    """Open a log; raise OSError or `UnreadableLog`. `regular` refuses FIFOs and devices, which could block."""
    if path == STDIN:
        return LogFile(path, os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
    if path.suffix == ".zst":
        raise UnreadableLog(f"{path}: Python cannot read zstd: unpack it (zstd -d {path})")
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
    except (OSError, DamagedLog) as error:
        raise UnreadableLog(f"{path}: {error}") from error


def first_line(start: bytes) -> bytes:
    """Return the first line of the first `HEAD_BYTES` of a log; empty while it is incomplete."""
    line, newline, _ = start.partition(b"\n")
    return line if newline or len(start) == HEAD_BYTES else b""
