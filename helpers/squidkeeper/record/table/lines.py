"""Lines of the access log to typed rows, for tables in memory and for archived parts.

DuckDB parses each line, writes it again from its fields, and compares: a line that is
the same byte for byte is a record. Every other line is decoded in Python, by
`parse_record`, which alone tells what a record is. So the rows are those of a plain
Python reading, at the speed of DuckDB: Squid writes all lines in the one form.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.record.log.log_files import LINE_LIMIT
from squidkeeper.record.log.record import (
    NONE,
    VERSION,
    Record,
    format_time,
    host_of,
    parse_time,
    parse_timed_record,
)
from squidkeeper.record.table.columns import (
    COLUMNS,
    EVERY_ROW,
    FIELDS,
    HOST,
    POSITION,
    RAW,
    TIME,
    Column,
    Partial,
)
from squidkeeper.record.table.database import (
    csv_lines,
    is_short_of_room,
    quoted_literally,
)

if TYPE_CHECKING:
    from squidkeeper.record.table.database import Database

# a row a line, in the order of the log; `time` is NULL where Python decodes the line
_LOADED: Final = "loaded_lines"
# those lines, by `position`; `time` is NULL where the line is no record
_DECODED: Final = "decoded_lines"
_HASH: Final = "line_hash"
_JSON_COMPRESSIONS: Final = {"none": "uncompressed", "gzip": "gzip", "zstd": "zstd"}
_BATCH: Final = 20_000  # lines that Python decodes at once
_INTEGERS: Final = range(-(2**63), 2**63)
_OCTET: Final = "(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
_PLAIN_HOST: Final = (  # in its one spelling; `host_of` decides the others
    rf"(?:[a-z0-9_-]{{1,63}}[.])*[a-z][a-z0-9_-]{{0,62}}|(?:{_OCTET}[.]){{3}}{_OCTET}"
)
_PLAIN_LENGTH: Final = 253
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%gZ"
_TIME_LIKE: Final = "____-__-__T__:__:__.___Z"
_HEAD: Final = f'{{"v":{VERSION},"time":"'  # of each line in the one form
# years of five digits are no records
_TIME_BYTES: Final = len("2026-11-26T00:00:00.000Z")
_FIRST_YEAR, _LAST_YEAR = "0002", "9999"


@dataclass(slots=True)
class Skipped:
    """Lines that are no records, files that are damaged, and gateways that did not
    answer: what could be read is used.
    """

    count: int = 0
    first: str = ""  # file, line number and reason
    damaged: list[str] = field(default_factory=list)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """The period to load, as lines have their time; empty text: no bound."""

    since: str = ""
    until: str = ""

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None) -> Bounds:
        """Make the bounds of a period."""
        return cls(
            format_time(since) if since else "", format_time(until) if until else ""
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one call has loaded: the positions of its lines, from `first` to before
    `end`.
    """

    first: int
    end: int


class LineTable:
    """Loads lines into tables of a database; `relation` reads them.

    With `columns` it holds these only; without, all, and in `raw` each line that the
    columns cannot reproduce. `partial` are columns that not every row has.
    """

    def __init__(
        self,
        database: Database,
        columns: Sequence[Column] = COLUMNS,
        bounds: Bounds | None = None,
        partial: Partial = EVERY_ROW,
    ) -> None:
        self._database = database
        self._connection = database.connection
        self._loaded = database.place(_LOADED)
        self._decoded = database.place(_DECODED)
        self._columns = columns
        self._partial = partial
        self._bounds = bounds or Bounds()
        self._types = {column.name: column.sql_type for column in columns} | {
            RAW: "BLOB"
        }
        self._values = {
            column.name: _value(column) for column in columns if column.name != RAW
        }
        typed = ", ".join(
            f"{name} {sql_type}" for name, sql_type in self._types.items()
        )
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {self._loaded} ({typed}, {_HASH} UBIGINT)"
        )
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {self._decoded} ({POSITION} BIGINT, {typed})"
        )

    @property
    def is_bounded(self) -> bool:
        """Whether lines outside of a period are left out."""
        return bool(self._bounds.since or self._bounds.until)

    def load(self, file: Path, compression: str = "none") -> Loaded:
        """Load a file by DuckDB; `duckdb.Error` where it cannot, and nothing of it is
        loaded then.
        """
        import duckdb

        first = self._size()
        if not self.is_bounded and self._load_clean(file, compression):
            return Loaded(first, self._size())
        try:
            self._connection.execute(self._insertion(file, compression, _PARSED))
        except duckdb.InvalidInputException:  # a line is no JSON
            self._connection.execute(self._insertion(file, compression, _TRIED))
        return Loaded(first, self._size())

    def _load_clean(self, file: Path, compression: str) -> bool:
        """Load a file whose lines are all in the one form, in half the time: the sums
        of their hashes are compared.

        False, and nothing is loaded, if one is not, or the file grew between the two
        readings.
        """
        import duckdb

        self._connection.execute("BEGIN")
        try:
            first = self._size()
            self._connection.execute(self._clean_insertion(file, compression))
            sums = f"SELECT count(*), sum({_HASH}) FROM {self._loaded} WHERE rowid >= {first}"
            found = self._connection.execute(sums).fetchall()
            lines = (
                f"SELECT count(*), sum(hash(line)) FROM {csv_lines(file, compression)}"
            )
            if found == self._connection.execute(lines).fetchall():
                self._connection.execute("COMMIT")
                return True
        except duckdb.Error as error:
            if is_short_of_room(error):
                raise
            # a line is no JSON, or not UTF-8
        self._connection.execute("ROLLBACK")
        return False

    def _clean_insertion(self, file: Path, compression: str) -> str:
        fields = ", ".join(f"{field.name}: '{_logged_type(field)}'" for field in FIELDS)
        read = (
            f"read_json({quoted_literally(file)}, format='newline_delimited',"
            f" compression='{_JSON_COMPRESSIONS[compression]}', columns={{{fields}}},"
            f" maximum_object_size={4 * LINE_LIMIT})"
        )
        again = f"SELECT *, {_written_again()} AS line FROM ({self._timed('f.*', f'{read} AS f')}) AS f"
        exact = " AND ".join([*self._tests(), *self._whole()])
        return (
            f"INSERT INTO {self._loaded} ({', '.join(self._values)}, {_HASH})"
            f" {self._rows(_HASH, f'CASE WHEN {exact} THEN hash(line) END', f'({again}) AS f')}"
        )

    def reserve(self, lines: int) -> Loaded:
        """Take the places of lines that Python decodes."""
        first = self._size()
        self._connection.execute(
            f"INSERT INTO {self._loaded} ({RAW}) SELECT NULL FROM range({lines})"
        )
        return Loaded(first, first + lines)

    def deviating(self, loaded: Loaded) -> Iterator[tuple[int, bytes]]:
        """Yield the lines, with their positions, that are not in the one form: for
        `add`.
        """
        start = loaded.first
        while True:
            rows = self._connection.execute(
                f"SELECT rowid, coalesce({RAW}, ''::BLOB) FROM {self._loaded}"
                f" WHERE {TIME} IS NULL AND rowid >= {start} AND rowid < {loaded.end} ORDER BY rowid LIMIT {_BATCH}"
            ).fetchall()
            yield from rows
            if len(rows) < _BATCH:
                return
            start = rows[-1][0] + 1

    def add(self, rows: Iterable[DecodedLine]) -> None:
        """Add lines that Python has decoded."""
        self._database.insert(
            self._decoded,
            {POSITION: "BIGINT"} | self._types,
            (row.values for row in rows),
        )

    def relation(
        self, names: Iterable[str] | None = None, *, records_only: bool = True
    ) -> str:
        """Return a SELECT of the rows, with `position`; without `records_only` with the
        lines that are no records.
        """
        chosen = ", ".join(names or [column.name for column in self._columns])
        records = f" WHERE {TIME} IS NOT NULL"
        return (
            f"SELECT {chosen}, rowid AS {POSITION} FROM {self._loaded}{records}"
            f" UNION ALL SELECT {chosen}, {POSITION} FROM {self._decoded}{records if records_only else ''}"
        )

    def _size(self) -> int:
        return int(
            self._connection.execute(f"SELECT count(*) FROM {self._loaded}").fetchall()[
                0
            ][0]
        )

    def _insertion(self, file: Path, compression: str, parsing: str) -> str:
        """Write the statement: lines → fields → rows.

        Each step is a subquery, so that DuckDB does it once a line.
        """
        lines = csv_lines(file, compression)
        parsed = f"SELECT line, {parsing} AS f FROM {lines}{self._in_bounds()}"
        is_exact = " AND ".join([f"line = {_written_again()}", *self._tests()])
        timed = self._timed("line, f", f"({parsed})")
        checked = f"SELECT * REPLACE (CASE WHEN {is_exact} THEN ended END AS ended) FROM ({timed})"
        whole = " AND ".join(["ended IS NOT NULL", *self._whole()])
        return (
            f"INSERT INTO {self._loaded} ({', '.join(self._values)}, {RAW})"
            f" {self._rows(RAW, f'CASE WHEN {whole} THEN NULL ELSE encode(line) END', f'({checked})')}"
        )

    def _rows(self, more: str, value: str, fields: str) -> str:
        """Write the SELECT of the rows of lines, with one more column."""
        values = {**self._values, more: value}
        named = ", ".join(f"{value} AS {name}" for name, value in values.items())
        chosen = ", ".join(map(self._kept, values))
        return f"SELECT {chosen} FROM (SELECT {named} FROM {fields})"

    def _kept(self, name: str) -> str:
        if name not in self._partial.names:
            return name
        return f"CASE WHEN {self._partial.condition} THEN {name} END"

    def _timed(self, columns: str, fields: str) -> str:
        host = f", {_HOST} AS host" if HOST in self._types else ""
        return f"SELECT {columns}, try_cast(f.time AS TIMESTAMP) AS ended{host} FROM {fields}"

    def _whole(self) -> list[str]:
        """Write the test whether the columns hold all of a line; a line of an earlier
        release has fewer fields.
        """
        return [f"{_LAST_FIELD} IS NOT NULL"] if self._columns[-1].name == RAW else []

    def _in_bounds(self) -> str:
        """Leave out lines in the one form before they are parsed; the others have to be
        decoded for their time.
        """
        start = len(_HEAD) + 1
        time = f"substr(line, {start}, {len(_TIME_LIKE)})"
        tests = [f"{time} >= '{self._bounds.since}'"] if self._bounds.since else []
        tests += [f"{time} < '{self._bounds.until}'"] if self._bounds.until else []
        # others do not sort as text
        in_one_form = f"starts_with(line, '{_HEAD}') AND {time} LIKE '{_TIME_LIKE}'"
        return (
            f" WHERE NOT coalesce({in_one_form}, false) OR ({' AND '.join(tests)})"
            if tests
            else ""
        )

    def _tests(self) -> list[str]:
        tests = [
            f"f.v = {VERSION}",
            r"NOT contains(line, '\')",
            f"strlen(line) <= {LINE_LIMIT}",
            f"strftime(ended, '{_TIME_FORMAT}') = f.time",
            f"f.time >= '{_FIRST_YEAR}' AND f.time < '{_LAST_YEAR}' AND strlen(f.time) = {_TIME_BYTES}",
        ]
        if HOST in self._types:
            tests.append(
                f"((strlen(host) <= {_PLAIN_LENGTH} AND regexp_full_match(host, '{_PLAIN_HOST}')) OR {_HOSTLESS})"
            )
        return tests


@dataclass(frozen=True, slots=True)
class DecodedLine:
    """A line that Python has decoded: the values of a row.

    `fault` tells why it is no record.
    """

    values: dict[str, object]
    fault: str = ""


def decode_line(position: int, line: bytes) -> DecodedLine:
    """Decode a line as a plain Python reading does; it is no record either if its time
    is none.
    """
    kept: dict[str, object] = {POSITION: position, RAW: b64encode(line).decode()}
    try:
        record = parse_timed_record(line[: LINE_LIMIT + 1])
        at = parse_time(record).astimezone(UTC)
    except (InvalidRecord, OverflowError) as error:
        return DecodedLine(kept, str(error))
    fields = {column.name: _cell(getattr(record, column.name)) for column in FIELDS}
    host = _cell(host_of(record.url).text)
    return DecodedLine(kept | fields | {TIME: format_time(at)[:-1], HOST: host})


def record_of(row: Sequence[object], names: Sequence[str]) -> Record:
    """Make the record of a row of columns with these names; fields without a column
    have their usual value.
    """
    found = dict(zip(names, row, strict=True))
    values = {
        one.name: _field(one, found[one.name]) if one.name in found else _absent(one)
        for one in FIELDS
    }
    return Record(**values)  # type: ignore[arg-type] # each value has the type of its field


def _field(column: Column, value: object) -> object:
    if column.name == TIME:
        assert isinstance(value, datetime)  # noqa: S101 - the type of the column
        return format_time(value.replace(tzinfo=UTC))
    return NONE if value is None else value


def _absent(column: Column) -> object:
    return 0 if column.is_number else NONE


def _cell(value: object) -> object:
    if isinstance(value, int):  # Squid writes no such numbers
        return min(max(value, _INTEGERS.start), _INTEGERS.stop - 1)
    return None if value == NONE else value


def _value(column: Column) -> str:
    if column.name == TIME:
        return "ended"
    if column.name == HOST:
        return f"nullif(nullif(host, ''), '{NONE}')"
    if column.is_number:
        return (
            f"coalesce(f.{column.name}, {_default(column)})"
            if column.optional
            else f"f.{column.name}"
        )
    return f"nullif(f.{column.name}, '{NONE}')"


def _logged_type(column: Column) -> str:
    return "BIGINT" if column.is_number else "VARCHAR"


def _default(column: Column) -> object:
    return next(
        field.default
        for field in msgspec.structs.fields(Record)
        if field.name == column.name
    )


# --- SQL ------------------------------------------------------------------------------

_LAST_FIELD: Final = f"f.{FIELDS[-1].name}"
# simple enough for RE2 to extract it at once: a tenth of the time
_NAMED: Final = "([a-z0-9_.-]+)(?::[0-9]{1,4})?"
_HOST: Final = (
    f"CASE WHEN contains(f.url, '://') THEN regexp_extract(f.url, '^[a-z]+://{_NAMED}(?:[/?]|$)', 1)"
    f" ELSE regexp_extract(f.url, '^{_NAMED}$', 1) END"
)
_HOSTLESS: Final = f"(f.url = '{NONE}' OR (starts_with(f.url, 'error:') AND regexp_full_match(f.url, 'error:[a-z-]+')))"


def _structure() -> str:
    types = (f'"{field.name}":"{_logged_type(field)}"' for field in FIELDS)
    return "{" + ",".join(types) + "}"


def _written_again() -> str:
    """Write a line from its fields: up to the last one that is there, as a release ends
    where the next one goes on.
    """
    required = sum(not column.optional for column in FIELDS)
    last = (
        f"WHEN f.{FIELDS[n].name} IS NOT NULL THEN {_written(FIELDS[: n + 1])}"
        for n in range(len(FIELDS) - 1, required - 1, -1)
    )
    return f"CASE {' '.join(last)} ELSE {_written(FIELDS[:required])} END"


def _written(fields: Sequence[Column]) -> str:
    pieces: list[str] = []
    text = "{"
    for column in fields:
        quote = "" if column.is_number else '"'
        pieces += [f"'{text}\"{column.name}\":{quote}'", f"f.{column.name}"]
        text = f"{quote},"
    return f"concat({', '.join(pieces)}, '{text[:-1]}}}')"


# half lines are common
_PARSED: Final = (
    f"CASE WHEN ends_with(line, '\"}}') THEN from_json(line, '{_structure()}') END"
)
_TRIED: Final = (
    f"try(from_json(line, '{_structure()}'))"  # costs a fifth of the parsing
)
