"""The access log: a line is a record or `InvalidRecord`, a file is read whole, a
followed log gives each line once.

An input is a log as it lies on the disk; its first byte picks what is done to it while
it is followed: rotated, compressed, left and taken up again. The lines given out have
to be those written, whatever the order of events.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from squidkeeper.base.errors import InvalidRecord, UnreadableLog
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.record.log.follower import Follower
from squidkeeper.record.log.log_files import read_log_lines, sorted_by_time
from squidkeeper.record.log.record import VERSION, Record, decode_field, parse_record
from tests.records import record_line

from .target import Target

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
PACKED = (".gz", ".bz2", ".xz", ".zst")
NUMBERS = ("v", "status", "bytes", "duration_ms", "request_bytes")
TEXTS = [name for name in Record.__struct_fields__ if name not in NUMBERS]


def check(data: bytes) -> None:
    for line in data.split(b"\n"):
        check_record(line)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        check_whole(Path(folder), data)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        log = Log(Path(folder))
        with closing(log):
            log.follow(data)


# --- one line -------------------------------------------------------------------------


def check_record(line: bytes) -> None:
    """What is a record has every field in its type, and is the same when written and
    read again.
    """
    try:
        record = parse_record(line)
    except InvalidRecord:
        return
    assert record.v == VERSION
    for name in TEXTS:
        value = getattr(record, name)
        assert isinstance(value, str)
        decoded = decode_field(value)
        assert (decoded is None) == (value == "-")
        (decoded or "").encode()  # nothing in it that could not be written out again
    assert all(isinstance(getattr(record, name), int) for name in NUMBERS)
    assert parse_record(msgspec.json.encode(record)) == record


# --- whole files ----------------------------------------------------------------------


def check_whole(folder: Path, data: bytes) -> None:
    """A plain file gives its lines; what is called compressed and is not is
    `UnreadableLog`, nothing else.
    """
    plain = folder / "access.log"
    plain.write_bytes(data)
    assert read(plain) == lines_of(data)
    assert sorted_by_time([plain]) == [plain]
    for number, suffix in enumerate(PACKED, 1):
        damaged = folder / f"access.log.{number}{suffix}"
        damaged.write_bytes(data)
        with suppress(UnreadableLog):
            read(damaged)
    packed = folder / "access.log.9.gz"
    packed.write_bytes(gzip.compress(data, 1))
    assert read(packed) == lines_of(data)
    assert set(sorted_by_time(rotated(plain))) == set(rotated(plain))
    packed.write_bytes(packed.read_bytes()[: -1 - len(data) % 20])
    with suppress(UnreadableLog):
        assert read(packed) == lines_of(data), "what was cut off was not missed"


def read(path: Path) -> list[bytes]:
    return [*read_log_lines([path])]


def lines_of(data: bytes) -> list[bytes]:
    *whole, rest = data.split(b"\n")
    return [line.removesuffix(b"\r") for line in (*whole, *([rest] if rest else []))]


# --- followed -------------------------------------------------------------------------


class Log:
    """A log that is written, rotated and followed at once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "access.log"
        self.path.touch()
        self.follower = Follower(self.path)
        self.given: list[bytes] = []
        self.written: list[bytes] = []

    def follow(self, data: bytes) -> None:
        """Write the data piece by piece; the first byte of each says what happens
        behind it.
        """
        self.write(b"begin", torn=False)
        self.read()  # what is rotated before anyone looks is no business of a follower
        for number, piece in enumerate(pieces(data)):
            self.write(
                b"%d %b" % (number, piece[1:].replace(b"\n", b"/")),
                torn=bool(piece[0] & 8),
            )
            EVENTS[piece[0] % len(EVENTS)](self)
        self.read()
        assert self.given == self.written
        assert self.follower.lost == 0
        assert self.follower.backlog_bytes == 0

    def close(self) -> None:
        self.follower.close()

    def write(self, line: bytes, *, torn: bool) -> None:
        """Write a line whole, or in two parts with a look in between."""
        with self.path.open("ab", buffering=0) as file:
            if torn:
                file.write(line[: len(line) // 2])
                self.read(1)
                file.write(line[len(line) // 2 :] + b"\n")
            else:
                file.write(line + b"\n")
        self.written.append(line.removesuffix(b"\r"))

    def read(self, limit: int = 1 << 16) -> None:
        while lines := self.follower.read(limit):
            self.given += lines

    def read_a_little(self) -> None:
        self.given += self.follower.read(3)

    def rotate(self) -> None:
        """Rename the log and those before it, as Squid and logrotate(8) do; a new one
        is not there yet.
        """
        for number in range(len(rotated(self.path)), 0, -1):
            for suffix in ("", ".gz"):
                with suppress(FileNotFoundError):
                    self.path.with_name(f"access.log.{number}{suffix}").rename(
                        self.path.with_name(f"access.log.{number + 1}{suffix}")
                    )
        self.path.rename(self.path.with_name("access.log.1"))

    def rotate_and_begin(self) -> None:
        self.rotate()
        self.path.touch()

    def compress(self) -> None:
        """Compress the last one rotated, as gzip(1) does: the new file first, then the
        old one is deleted.
        """
        last = self.path.with_name("access.log.1")
        if last.exists():
            with last.open("rb") as plain, gzip.open(f"{last}.gz", "wb", 1) as packed:
                shutil.copyfileobj(plain, packed)
            last.unlink()

    def rotate_and_compress(self) -> None:
        self.rotate_and_begin()
        self.compress()

    def take_up_again(self) -> None:
        """End the process that follows, and go on where it was."""
        position = self.follower.position
        self.follower.close()
        self.follower = Follower(self.path, position)


EVENTS = (
    Log.read,
    Log.read_a_little,
    Log.rotate,
    Log.rotate_and_begin,
    Log.compress,
    Log.rotate_and_compress,
    Log.take_up_again,
)


def pieces(data: bytes) -> Iterable[bytes]:
    return [piece for piece in data.split(b"\n")[:12] if piece]


# --- where to start -------------------------------------------------------------------


def seeds() -> Iterable[bytes]:
    line = record_line(url="https://a.example/")
    yield line
    yield record_line(v=2)
    yield record_line(
        user="%C3%A9%ff%0", url="https://a.example/%25", rule="\U0001f600"
    )
    yield (
        line.replace(b'"v":1', b'"v":1e0') + b"\n" + line[:-5] + b"\n" + line + b"\r\n"
    )
    yield line.replace(b'"GET"', b'"\xff\\ud800"') + b"\n{}\n[]\nnull\n" + b"[" * 600
    yield gzip.compress(line + b"\n", 1)
    for kind in range(16):
        yield b"\n".join(
            b"%cline" % byte
            for byte in (0x30 + kind, 0x35, 0x36, 0x3D, 0x31 + kind, 0x36, 0x30)
        )


WORDS = (
    b"\n",
    b'"v":1',
    b'"v":',
    b"\\u0000",
    b"\\ud800",
    b"%ff",
    b'"-"',
    b"1e400",
    b"-0",
    b"null",
    b"\r\n",
    b"\x1f\x8b\x08",
)
TARGET = Target(check, seeds, WORDS, longest_bytes=4096)
