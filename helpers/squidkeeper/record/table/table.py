"""The table: `records`, one row a line, and `requests`, one row a request, over
everything there is.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.record.chain.places import gateway_of
from squidkeeper.record.log.record import NONE
from squidkeeper.record.log.requests import HTTPS_PORT, WAIT
from squidkeeper.record.table.columns import (
    EVERY_ROW,
    FOLDED,
    IS_ANSWERED_INSIDE,
    IS_REQUEST_IF_SERVED,
    IS_SERVED,
    KIND,
    POSITION,
    TIME,
    Column,
    Partial,
    in_period,
    selected,
)
from squidkeeper.record.table.database import (
    MEMORY_LIMIT,
    Database,
    open_database,
    quoted,
    quoted_literally,
)
from squidkeeper.record.table.lines import Bounds, LineTable, Skipped
from squidkeeper.record.table.log_loader import LogChanged, LogLoader
from squidkeeper.record.table.sources import (
    PARQUET,
    OpenSources,
    TableSources,
    open_sources,
    with_local_archive,
)

if TYPE_CHECKING:
    import duckdb

_ATTEMPTS: Final = 3
_GATEWAY: Final = "gateway"
_EVERY: Final = "every_record"  # also those of the margin
# columns of parts of every release
_ESSENTIAL: Final = (
    TIME,
    "client",
    "method",
    "status",
)
_LOGS_FROM: Final = 2**60  # positions of lines of logs; archived parts are older
_PART_ROWS: Final = 2**40
# DuckDB's own functions end the whole query at bytes of a client that are not UTF-8.
_DECODERS: Final = (
    "CREATE MACRO url_decode(text) AS coalesce(TRY(system.main.url_decode(text)), text)",
    "CREATE MACRO decode(bytes) AS coalesce(TRY(system.main.decode(bytes)), bytes::VARCHAR)",
)
_LEFT_OUT: Final = (
    "left_out_records"  # by position, with that of the record that stands for it
)
_NAMES_TUNNEL: Final = f"starts_with(i.url, 'https://' || regexp_replace(c.url, '{HTTPS_PORT}$', '') || '/')"
_KEY: Final = ("client", "connection", "worker", "gateway")
# Most of a log is served, and is read in place. From constants DuckDB derives others.
_SERVED_VALUES: Final = {"verdict": "'allow'", "error": "NULL::VARCHAR"}
_NOT_SERVED: Final = "records_not_served"


@dataclass(frozen=True, slots=True)
class Table:
    """The views `records` and `requests`, and what could not be read.

    `paths` are what was read, `parts` Parquet files.

    A part is read by each query, a log once, into memory.
    """

    database: Database
    skipped: Skipped
    paths: tuple[Path, ...]
    parts: tuple[Path, ...] = ()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The connection that has the views."""
        return self.database.connection


@contextmanager
def open_table(
    sources: TableSources,
    since: datetime | None = None,
    until: datetime | None = None,
    threads: int | None = None,
    columns: Collection[str] | None = None,
    *,
    partial: Partial = EVERY_ROW,
    folds: bool = True,
    memory_limit: str = MEMORY_LIMIT,
) -> Iterator[Table]:
    """Read the sources; `UnreadableLog` if one cannot be read.

    The views hold `columns` (None: all), those that folding needs, and `partial` ones.
    Without `folds`, there is no view `requests`.
    """
    asked, some = _columns(sources, columns, partial, folds=folds)
    # a CONNECT, or its request, can be outside of the period
    around = (
        _moved(since, -WAIT),
        _moved(until, WAIT),
    )
    with (
        open_database(threads, memory_limit) as database,
        with_local_archive(sources, database.spill, *around) as local,
    ):
        table = _read(database, local, around, asked, some)
        period = in_period(since, until)
        for macro in _DECODERS:
            database.connection.execute(macro)
        database.connection.execute(
            f"CREATE VIEW records AS SELECT * FROM {_EVERY}{period}"
        )
        if folds:
            with table.database.bounded():
                requests = fold(table.database, _EVERY, asked)
            database.connection.execute(
                f"CREATE VIEW requests AS SELECT * FROM ({requests}){period}"
            )
        yield table


def _columns(
    sources: TableSources,
    columns: Collection[str] | None,
    partial: Partial,
    *,
    folds: bool,
) -> tuple[tuple[Column, ...], Partial]:
    """Return the columns to read, and which of them not every row needs: folding needs
    most of its columns only of what was not served.
    """
    if columns is None:
        return selected(None), EVERY_ROW
    every = {*columns, *KIND, *([_GATEWAY] if sources.gateways else [])}
    some = {*partial.names, *(FOLDED if folds else ())} - every
    return selected(every | some), Partial(frozenset(some), partial.where)


def _read(
    database: Database,
    sources: TableSources,
    period: tuple[datetime | None, datetime | None],
    columns: tuple[Column, ...],
    partial: Partial,
) -> Table:
    for _ in range(_ATTEMPTS):
        with open_sources(sources, *period) as found:
            skipped = Skipped(damaged=list(found.damaged), missing=found.missing)
            database = database.with_disk(found.log_bytes)
            lines = LineTable(database, columns, Bounds.of(*period), partial)
            loader = LogLoader(database, lines, skipped)
            try:
                with database.bounded():
                    for log in found.logs:
                        loader.load(log)
            except LogChanged:
                continue
            _check_named(database, sources.files)
            rows = f"SELECT * FROM ({_everything(database, found, lines, columns)}){_of_gateways(sources.gateways)}"
            database.connection.execute(f"CREATE VIEW {_EVERY} AS {rows}")
            return Table(database, skipped, tuple(found.paths), found.parts)
    raise UnreadableLog(
        f"{sources.log or sources.files[0]}: was cut each time while it was read: try again"
    )


def _moved(at: datetime | None, by: timedelta) -> datetime | None:
    try:
        return at and at + by
    except OverflowError:
        return at


def _everything(
    database: Database,
    found: OpenSources,
    lines: LineTable,
    columns: tuple[Column, ...],
) -> str:
    names = ", ".join(column.name for column in columns)
    logs = f"SELECT {names}, ({POSITION} + {_LOGS_FROM})::BIGINT AS {POSITION} FROM ({lines.relation()})"
    if not found.parts:
        return logs
    return f"{_archived(database, found.parts, columns)} UNION ALL {logs}"


def _archived(
    database: Database, parts: tuple[Path, ...], columns: tuple[Column, ...]
) -> str:
    """Read parts in place.

    A part of an earlier release lacks columns; lines that are no records have no time.
    """
    files = ", ".join(map(quoted_literally, parts))
    read = f"read_parquet([{files}], union_by_name=true, hive_partitioning=false)"
    there = {
        row[0]
        for row in database.connection.execute(
            f"DESCRIBE SELECT * FROM {read}"
        ).fetchall()
    }
    values = ", ".join(
        f"{_gateways(parts, there)} AS {_GATEWAY}"
        if column.name == _GATEWAY
        else column.name
        if column.name in there
        else _absent(column)
        for column in columns
    )
    position = f"(file_index * {_PART_ROWS} + file_row_number)::BIGINT AS {POSITION}"
    return f"SELECT {values}, {position} FROM {read} WHERE {TIME} IS NOT NULL"


def _gateways(parts: Iterable[Path], there: Container[str]) -> str:
    """Tell the gateway of each row: the one in whose archive it is, whatever it says
    itself; else what it says.
    """
    said = _GATEWAY if _GATEWAY in there else "NULL"
    cases, end = "", 0
    for gateway, group in groupby(
        gateway_of(part.parent.parent.name) for part in parts
    ):
        end += sum(1 for _ in group)
        value = f"'{gateway}'" if gateway else said
        cases += f" WHEN file_index < {end} THEN {value}"
    return f"(CASE{cases} END)::VARCHAR"


def _check_named(database: Database, files: Iterable[Path]) -> None:
    import duckdb

    for file in files:
        if file.suffix != PARQUET:
            continue
        read = f"DESCRIBE SELECT * FROM read_parquet([{quoted_literally(file)}])"
        try:
            there = {row[0] for row in database.connection.execute(read).fetchall()}
        except duckdb.Error as error:
            raise UnreadableLog(f"{file}: {str(error).splitlines()[0]}") from error
        missing = [column for column in _ESSENTIAL if column not in there]
        if missing:
            what = f"its columns are not those of an archived part: there is no {', no '.join(missing)}"
            raise UnreadableLog(
                f"{file}: {what}: name a file of an archive, or the result of SELECT * FROM records"
            )


def _absent(column: Column) -> str:
    return f"{'0' if column.is_number else 'NULL'}::{column.sql_type} AS {column.name}"


def _of_gateways(names: Collection[str]) -> str:
    return (
        f" WHERE coalesce({_GATEWAY}, '{NONE}') IN ({', '.join(map(quoted, names))})"
        if names
        else ""
    )


# Records to requests, in SQL: without CONNECTs that opened a tunnel, and without what
# counts twice.
#
# `record/log/requests.py` tells why. Connections are told apart by client, number,
# worker and gateway. Each worker of Squid numbers its connections from 1.


def fold(database: Database, records: str, columns: tuple[Column, ...]) -> str:
    """Find what is left out of a relation's records; return a SELECT of the
    requests.
    """
    connection = database.connection
    not_served, left_out = database.place(_NOT_SERVED), database.place(_LEFT_OUT)
    added = f"hash({', '.join(_KEY)}) AS connection_hash, {IS_ANSWERED_INSIDE} AS waits"
    connection.execute(
        f"CREATE OR REPLACE TABLE {not_served} AS SELECT *, {added} FROM {records} WHERE NOT {IS_SERVED}"
    )
    connection.execute(f"CREATE OR REPLACE TABLE {left_out} AS {_left_out(not_served)}")
    names = ", ".join(column.name for column in columns)
    served = ", ".join(
        f"{_SERVED_VALUES.get(column.name, column.name)} AS {column.name}"
        for column in columns
    )
    return (
        f"SELECT {served}, {POSITION} FROM {records} WHERE {IS_SERVED} AND {IS_REQUEST_IF_SERVED} UNION ALL"
        f" SELECT {names}, {POSITION} FROM {not_served} ANTI JOIN {left_out} USING ({POSITION})"
    )


def standing(database: Database, ids: Iterable[str]) -> dict[str, str]:
    """Return the request IDs of the records that stand for left-out ones, by the IDs of
    these.
    """
    not_served, left_out = database.place(_NOT_SERVED), database.place(_LEFT_OUT)
    found = database.connection.execute(
        f"SELECT o.request_id, s.request_id FROM {left_out} AS l JOIN {not_served} AS o USING ({POSITION})"
        f" JOIN {not_served} AS s ON s.{POSITION} = l.stands WHERE list_contains(?, o.request_id)",
        [[*ids]],
    )
    return dict(found.fetchall())


def _left_out(not_served: str) -> str:
    """Pair each CONNECT that Squid answered inside with what came inside: decided
    requests stand, else the CONNECT.
    """
    same = " AND ".join(f"c.{name} IS NOT DISTINCT FROM i.{name}" for name in _KEY)
    pairs = (
        f"SELECT c.{POSITION} AS connect, i.{POSITION} AS inside, i.verdict IS NULL AS undecided"
        f" FROM {not_served} AS c JOIN {not_served} AS i"
        f" ON c.connection_hash = i.connection_hash AND {same} AND c.waits AND i.method IS DISTINCT FROM 'CONNECT'"
        f" AND (i.verdict IS NULL OR {_NAMES_TUNNEL}) AND (i.time, i.{POSITION}) > (c.time, c.{POSITION})"
        f" AND i.time <= c.time + to_milliseconds({WAIT // timedelta(milliseconds=1)})"
    )
    return (
        f"SELECT if(undecided, inside, connect) AS {POSITION}, min(if(undecided, connect, inside)) AS stands"
        f" FROM ({pairs}) GROUP BY ALL"
    )
