"""From a rotated log, whatever its form, to Parquet: one part for each UTC day, in the
order of the log.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ELOOP
from hashlib import file_digest, sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Final, Protocol

from squidkeeper.base.errors import ArchiveFailed, DamagedLog, UnreadableLog
from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.record.chain.entries import ArchivedPart
from squidkeeper.record.log.log_files import (
    BLOCK_BYTES,
    HEAD_BYTES,
    LogFile,
    first_line,
)
from squidkeeper.record.table.columns import COLUMNS, POSITION
from squidkeeper.record.table.database import Database
from squidkeeper.record.table.lines import LineTable, decode_line

# more than any block, and a row that DuckDB takes
_LONGEST_LINE: Final = 8 * BLOCK_BYTES
_MODE: Final = 0o640  # Squid's group reads
_ROWS: Final = "rows_by_day"
_FORM: Final = "%Y-%m-%dT%H:%M:%S.%gZ"
_NAMES: Final = ", ".join(column.name for column in COLUMNS)


class Readable(Protocol):
    """A stream of content; `read` raises `DamagedLog` where it is damaged."""

    def read(self, limit: int, /) -> bytes:
        """Read so many bytes, fewer only at the end."""
        ...


class RotatedContent:
    """What a rotated log holds.

    `damage` says why its end is unreadable; what is ahead of that is read.

    `bytes` counts what was taken from it; `cut_lines` the lines of which only the
    beginning was written. `first_line_sha256` identifies it, under each name and
    compression.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.damage = ""
        self.cut_lines = 0
        self.bytes = 0
        self._line_bytes = 0  # of the line that the last block has not ended
        self._rest = b""  # read, and not taken yet
        while len(self._rest) < HEAD_BYTES and (block := self._read()):
            self._rest += block
        head = self._rest[:HEAD_BYTES]
        self.first_line_sha256 = sha256(first_line(head) or head).hexdigest()

    def skip(self, count: int) -> None:
        """Take so many bytes, or as many as there are."""
        while self.bytes < count and (block := self._take(count - self.bytes)):
            del block

    @property
    def ended(self) -> bool:
        """Whether everything was taken."""
        self._rest = self._rest or self._read()
        return not self._rest

    def write_lines(self, file: Path, limit: int) -> int:
        """Write the next whole lines, about `limit` bytes, to a file; return how many
        these are.

        Of a line that is far too long only the beginning is written.
        """
        lines, end, start = 0, b"\n", self.bytes
        with file.open("wb") as written:
            while (taken := self.bytes - start) < limit or end != b"\n":
                block = (
                    self._take(min(BLOCK_BYTES, limit - taken))
                    if taken < limit
                    else self._take_line_end()
                )
                if not block:
                    break
                written.write(self._shortened(block))
                lines, end = lines + block.count(b"\n"), block[-1:]
        return lines + (end != b"\n")

    def _shortened(self, block: bytes) -> bytes:
        """Leave out of a block what makes the line that it begins with, or goes on
        with, far too long.
        """
        newline = block.find(b"\n")
        first = len(block) if newline < 0 else newline
        room = max(0, _LONGEST_LINE - self._line_bytes)
        self.cut_lines += self._line_bytes <= _LONGEST_LINE < self._line_bytes + first
        self._line_bytes = (
            self._line_bytes + first
            if newline < 0
            else len(block) - block.rfind(b"\n") - 1
        )
        return block if first <= room else block[:room] + block[first:]

    def _take_line_end(self) -> bytes:
        self._rest = self._rest or self._read()
        return self._take(self._rest.find(b"\n") + 1 or BLOCK_BYTES)

    def _take(self, limit: int) -> bytes:
        self._rest = self._rest or self._read()
        block, self._rest = self._rest[:limit], self._rest[limit:]
        self.bytes += len(block)
        return block

    def _read(self) -> bytes:
        if self.damage:
            return b""
        try:
            return self._stream.read(BLOCK_BYTES)
        except DamagedLog as error:
            self.damage = str(error)
            return b""


class _ZstdContent:
    """What the program zstd unpacks: Python has no zstd before 3.14."""

    def __init__(self, unpacking: Popen[bytes]) -> None:
        self._unpacking = unpacking

    def read(self, limit: int) -> bytes:
        assert self._unpacking.stdout  # noqa: S101 - it was started with one
        block = self._unpacking.stdout.read(limit)
        if not block and self._unpacking.wait():
            raise DamagedLog(f"zstd ended with status {self._unpacking.returncode}")
        return block


@contextmanager
def open_content(path: Path) -> Iterator[RotatedContent]:
    """Open a rotated log; `UnreadableLog` if nothing of it can be read."""
    with _open(path) as packed:
        if path.suffix == ".zst":
            with _unpacked_by_zstd(packed) as content:
                yield _with_content(content)
        else:
            yield _with_content(LogFile(path, packed).content)


def _with_content(stream: Readable) -> RotatedContent:
    content = RotatedContent(stream)
    if content.damage and content.ended:
        raise UnreadableLog(f"damaged from its start: {content.damage}")
    return content


def _open(path: Path) -> IO[bytes]:
    """Open a file that Squid's account has put there: no second name of a file that
    only this account may read.
    """
    try:
        opened = open_untrusted(path)
    except OSError as error:
        raise UnreadableLog(
            "a symbolic link" if error.errno == ELOOP else str(error.strerror)
        ) from None
    if os.fstat(opened.fileno()).st_nlink > 1:
        opened.close()
        raise UnreadableLog("a file with several names")
    return opened


@contextmanager
def _unpacked_by_zstd(packed: IO[bytes]) -> Iterator[_ZstdContent]:
    program = shutil.which("zstd")
    if program is None:
        raise ArchiveFailed("the program zstd is missing: install the package zstd")
    with Popen(  # noqa: S603 - no text of others
        (program, "-dc"), stdin=packed, stdout=PIPE, stderr=DEVNULL
    ) as unpacking:
        yield _ZstdContent(unpacking)


@dataclass(frozen=True, slots=True)
class NewPart:
    """A part that is on disk under a temporary name."""

    file: Path
    day: str
    rows: int
    invalid: int
    first: str
    last: str

    def named(self, path: str) -> ArchivedPart:
        """Describe it under the path that it gets."""
        with self.file.open("rb") as content:
            digest = file_digest(content, "sha256").hexdigest()
        size, counts = (
            self.file.stat().st_size,
            {"rows": self.rows, "invalid": self.invalid},
        )
        return ArchivedPart(
            path=path,
            sha256=digest,
            bytes=size,
            first=self.first,
            last=self.last,
            **counts,
        )


class PartWriter:
    """Collects lines in the order of the log, and writes them as parts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lines = LineTable(database)

    def add(self, file: Path) -> None:
        """Add the lines of a file, invalid ones too."""
        if _has_carriage_return(file) or not self._add_by_duckdb(file):
            self._add_by_python(file)

    def _add_by_duckdb(self, file: Path) -> bool:
        """Add them at once.

        DuckDB refuses a file with bytes that are not UTF-8, as a whole.
        """
        import duckdb

        try:
            loaded = self._lines.load(file)
        except duckdb.Error:
            return False
        self._lines.add(
            decode_line(position, line)
            for position, line in self._lines.deviating(loaded)
        )
        return True

    def _add_by_python(self, file: Path) -> None:
        with file.open("rb") as content:
            reserved = self._lines.reserve(sum(1 for _ in content))
            content.seek(0)
            self._lines.add(
                decode_line(reserved.first + n, line.removesuffix(b"\n"))
                for n, line in enumerate(content)
            )

    def write(self, folder: Path, name: str, day: str) -> Iterator[NewPart]:
        """Write what was added as parts into a folder.

        `duckdb.Error` or OSError if that fails.

        A line without a time has the day of the line before it. `day` is that of the
        last line before all of these.
        """
        self._sort(day)
        for number, (found, rows, invalid, first, last) in enumerate(self._days()):
            file = folder / f"{name}-{number}.parquet"
            chosen = f"SELECT {_NAMES} FROM {_ROWS} WHERE day = DATE '{found}' ORDER BY {POSITION}"  # noqa: S608 - our own names
            self._database.connection.execute(
                f"COPY ({chosen}) TO '{file}' (FORMAT parquet, COMPRESSION zstd)"
            )
            self._bring_to_disk(file, rows)
            yield NewPart(file, found, rows, invalid, first, last)

    def _sort(self, day: str) -> None:
        relation, date = self._lines.relation(records_only=False), "CAST(time AS DATE)"
        [(least, most, first)] = self._database.connection.execute(
            f"SELECT min({date}), max({date}), arg_min({date}, {POSITION}) FROM ({relation})"  # noqa: S608 - our own names
        ).fetchall()
        usual = f"DATE '{first or day}'"
        before = f"coalesce(last_value({date} IGNORE NULLS) OVER (ORDER BY {POSITION}), {usual})"
        kind, found = ("VIEW", usual) if least == most else ("TABLE", before)
        self._database.connection.execute(
            f"CREATE {kind} {_ROWS} AS SELECT *, {found} AS day FROM ({relation})"  # noqa: S608 - our own names
        )

    def _days(self) -> list[tuple[str, int, int, str, str]]:
        times = (
            f"coalesce(strftime({which}(time), '{_FORM}'), '')"
            for which in ("min", "max")
        )
        return self._database.connection.execute(
            f"SELECT CAST(day AS VARCHAR), count(*), count(*) - count(time), {', '.join(times)}"  # noqa: S608 - our own names
            f" FROM {_ROWS} GROUP BY day ORDER BY min({POSITION})"
        ).fetchall()

    def _bring_to_disk(self, file: Path, rows: int) -> None:
        metadata = "SELECT sum(num_rows) FROM parquet_file_metadata(?)"
        [(found,)] = self._database.connection.execute(metadata, [str(file)]).fetchall()
        if found != rows:
            raise ArchiveFailed(
                f"DuckDB wrote {found} rows, expected {rows}: nothing of it was archived"
            )
        opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(opened, _MODE)  # whatever the umask is
            os.fsync(opened)
        finally:
            os.close(opened)


def _has_carriage_return(file: Path) -> bool:
    with (
        file.open("rb") as content,
        mmap(content.fileno(), 0, access=ACCESS_READ) as mapped,
    ):
        return mapped.find(b"\r") >= 0
