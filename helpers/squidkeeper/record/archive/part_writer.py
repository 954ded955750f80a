"""Lines to Parquet: one part for each UTC day, in the order of the log."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import ArchiveFailed
from squidkeeper.record.chain.entries import ArchivedPart
from squidkeeper.record.table.columns import COLUMNS, POSITION
from squidkeeper.record.table.database import Database
from squidkeeper.record.table.lines import LineTable, decode_line

_MODE: Final = 0o640  # Squid's group reads
_ROWS: Final = "rows_by_day"
_FORM: Final = "%Y-%m-%dT%H:%M:%S.%gZ"
_NAMES: Final = ", ".join(column.name for column in COLUMNS)


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
        size, counts = self.file.stat().st_size, {"rows": self.rows, "invalid": self.invalid}
        return ArchivedPart(path=path, sha256=digest, bytes=size, first=self.first, last=self.last, **counts)


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
        """Add them at once. DuckDB refuses a file with bytes that are not UTF-8, as a whole."""
        import duckdb

        try:
            loaded = self._lines.load(file)
        except duckdb.Error:
            return False
        self._lines.add(decode_line(position, line) for position, line in self._lines.deviating(loaded))
        return True

    def _add_by_python(self, file: Path) -> None:
        with file.open("rb") as content:
            reserved = self._lines.reserve(sum(1 for _ in content))
            content.seek(0)
            self._lines.add(decode_line(reserved.first + n, line.removesuffix(b"\n")) for n, line in enumerate(content))

    def write(self, folder: Path, name: str, day: str) -> Iterator[NewPart]:
        """Write what was added as parts into a folder. `duckdb.Error` or OSError if that fails.

        A line without a time has the day of the line before it. `day` is that of the last line before all of these.
        """
        self._sort(day)
        for number, (found, rows, invalid, first, last) in enumerate(self._days()):
            file = folder / f"{name}-{number}.parquet"
            chosen = f"SELECT {_NAMES} FROM {_ROWS} WHERE day = DATE '{found}' ORDER BY {POSITION}"  # noqa: S608 - our own names
            self._database.connection.execute(f"COPY ({chosen}) TO '{file}' (FORMAT parquet, COMPRESSION zstd)")
            self._bring_to_disk(file, rows)
            yield NewPart(file, found, rows, invalid, first, last)

    def _sort(self, day: str) -> None:
        """Give each line its day. Lines of one day, as most are, need no copy."""
        relation, date = self._lines.relation(records_only=False), "CAST(time AS DATE)"
        [(least, most, first)] = self._database.connection.execute(
            f"SELECT min({date}), max({date}), arg_min({date}, {POSITION}) FROM ({relation})"  # noqa: S608 - our own names
        ).fetchall()
        usual = f"DATE '{first or day}'"
        before = f"coalesce(last_value({date} IGNORE NULLS) OVER (ORDER BY {POSITION}), {usual})"
        kind, found = ("VIEW", usual) if least == most else ("TABLE", before)
        self._database.connection.execute(f"CREATE {kind} {_ROWS} AS SELECT *, {found} AS day FROM ({relation})")  # noqa: S608 - our own names

    def _days(self) -> list[tuple[str, int, int, str, str]]:
        times = (f"coalesce(strftime({which}(time), '{_FORM}'), '')" for which in ("min", "max"))
        return self._database.connection.execute(
            f"SELECT CAST(day AS VARCHAR), count(*), count(*) - count(time), {', '.join(times)}"  # noqa: S608 - our own names
            f" FROM {_ROWS} GROUP BY day ORDER BY min({POSITION})"
        ).fetchall()

    def _bring_to_disk(self, file: Path, rows: int) -> None:
        metadata = "SELECT sum(num_rows) FROM parquet_file_metadata(?)"
        [(found,)] = self._database.connection.execute(metadata, [str(file)]).fetchall()
        if found != rows:
            raise ArchiveFailed(f"DuckDB wrote {found} rows, expected {rows}: nothing of it was archived")
        opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(opened, _MODE)  # whatever the umask is
            os.fsync(opened)
        finally:
            os.close(opened)


def _has_carriage_return(file: Path) -> bool:
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as mapped:
        return mapped.find(b"\r") >= 0
