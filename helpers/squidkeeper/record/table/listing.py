"""Rows of the table as `squidkeeper log` shows them: for its table, as lines of the access log, or drift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from squidkeeper.record.log.listing import FindingRow, RequestRow
from squidkeeper.record.log.record import NONE
from squidkeeper.record.table.columns import FIELDS, TIME, Column
from squidkeeper.record.table.conditions import IS_OPENED_TUNNEL
from squidkeeper.record.table.groups import CLIENT

if TYPE_CHECKING:
    import duckdb

_BATCH: Final = 2000
_TIME: Final = "strftime(time, '%Y-%m-%dT%H:%M:%S.%gZ')"
# The columns of a request that its row is made of, beside the time.
ROW_FIELDS: Final = ("client", "user", "verdict", "rule", "status", "method", "duration_ms", "error", "url")


def request_rows(connection: duckdb.DuckDBPyConnection, view: str, newest: int | None) -> Iterator[list[RequestRow]]:
    """Yield the rows of a view in their order, a batch at a time; of `newest`, the last so many."""
    values = [_TIME, CLIENT, *(_text(name) if name not in _NUMBERS else name for name in RequestRow._fields[2:])]
    for rows in _batches(connection, ", ".join(values), view, newest):
        yield [RequestRow._make(row) for row in rows]


def lines(connection: duckdb.DuckDBPyConnection, view: str, newest: int | None) -> Iterator[list[bytes]]:
    """Yield the lines of the rows of a view: as they were logged, or with what a CONNECT adds to its request."""
    for rows in _batches(connection, f"raw, {_LINE}", view, newest):
        yield [line.encode() if raw is None else raw for raw, line in rows]


def count_rows(connection: duckdb.DuckDBPyConnection, view: str) -> int:
    """Count the rows of a view."""
    ((count,),) = connection.execute(f"SELECT count(*) FROM {view}").fetchall()
    return int(count)


def count_records(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """Count records, and the CONNECTs of opened tunnels among them."""
    ((records, tunnels),) = connection.execute(
        f"SELECT count(*), count(*) FILTER ({IS_OPENED_TUNNEL}) FROM records"
    ).fetchall()
    return records, tunnels


def has_error(connection: duckdb.DuckDBPyConnection, view: str, newest: int | None) -> bool:
    """Tell whether a row that is shown has an error."""
    rows = connection.execute(f"SELECT 1 {_rows(view, newest)} WHERE error IS NOT NULL LIMIT 1").fetchall()
    return bool(rows)


def finding_rows(connection: duckdb.DuckDBPyConnection, newest: int | None) -> Iterator[list[FindingRow]]:
    """Yield the findings of a `DriftTable` in their order."""
    values = f"{_TIME}, {CLIENT}, kind, finding_rule, status, {_text('method')}, {_text('url')}"
    for rows in _batches(connection, values, "drift", newest):
        yield [FindingRow._make(row) for row in rows]


def findings(connection: duckdb.DuckDBPyConnection, newest: int | None) -> Iterator[list[tuple[str, str, str, bytes]]]:
    """Yield kind, rule, reason and line of the findings of a `DriftTable`, in their order."""
    for rows in _batches(connection, f"kind, finding_rule, reason, raw, {_LINE}", "drift", newest):
        yield [(*found, line.encode() if raw is None else raw) for *found, raw, line in rows]


def _batches(
    connection: duckdb.DuckDBPyConnection, values: str, view: str, newest: int | None
) -> Iterator[list[tuple[Any, ...]]]:
    connection.execute(f"SELECT {values} {_rows(view, newest)} ORDER BY time, position")
    while batch := connection.fetchmany(_BATCH):
        yield batch


def _rows(view: str, newest: int | None) -> str:
    limited = f"FROM (FROM {view} ORDER BY time DESC, position DESC LIMIT {newest})"
    return f"FROM {view}" if newest is None else limited


def _text(name: str) -> str:
    return f"coalesce({name}, '{NONE}')"


def _field(column: Column) -> str:
    if column.is_number:
        return column.name
    return _TIME if column.name == TIME else _text(column.name)


_NUMBERS: Final = frozenset(column.name for column in FIELDS if column.is_number)
_LINE: Final = f"to_json(struct_pack({', '.join(f'{one.name} := {_field(one)}' for one in FIELDS)}))::VARCHAR"
