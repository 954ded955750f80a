"""Filters as SQL: the rows of `records` or `requests` for which all filters of `record/log/filters.py` hold.

The period is none of them: `open_table` reads no more than it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.filters import MatchFilter, Selecting
from squidkeeper.record.log.record import NONE

if TYPE_CHECKING:
    import duckdb

_BATCH: Final = 10_000


def select_rows(connection: duckdb.DuckDBPyConnection, rows: str, filters: Iterable[Selecting]) -> str:
    """Create a view of the rows of a view for which all filters hold; return its name."""
    joins = [_join(connection, rows, f"wanted_{rows}_{number}", one) for number, one in enumerate(filters)]
    connection.execute(f"CREATE OR REPLACE VIEW selected_{rows} AS SELECT r.* FROM {rows} AS r{''.join(joins)}")
    return f"selected_{rows}"


def fields_of(filters: Iterable[Selecting]) -> set[str]:
    """Name the columns that filters read."""
    return {field for one in filters for field in (one.fields if isinstance(one, MatchFilter) else (one.field,))}


def _join(connection: duckdb.DuckDBPyConnection, rows: str, table: str, one: Selecting) -> str:
    if isinstance(one, MatchFilter):
        _create_matching(connection, rows, table, one)
        return f" SEMI JOIN {table} ON {' AND '.join(_same(name, table) for name in one.fields)}"
    kind = "BIGINT" if all(isinstance(value, int) for value in one.values) else "VARCHAR"
    wanted = [None if value == NONE else value for value in one.values]
    connection.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT unnest(?::{kind}[]) AS {one.field}", [wanted])
    return f" SEMI JOIN {table} ON {_same(one.field, table)}"


def _create_matching(connection: duckdb.DuckDBPyConnection, rows: str, table: str, one: MatchFilter) -> None:
    names = ", ".join(one.fields)
    distinct = f"SELECT row_number() OVER () AS number, * FROM (SELECT DISTINCT {names} FROM {rows})"
    connection.execute(f"CREATE OR REPLACE TABLE {table}_found AS {distinct}")
    connection.execute(f"FROM {table}_found")
    matching: list[int] = []
    while found := connection.fetchmany(_BATCH):
        matching += [number for number, *values in found if one.matches(*(NONE if v is None else v for v in values))]
    chosen = f"SELECT * FROM {table}_found SEMI JOIN (SELECT unnest(?::BIGINT[]) AS number) USING (number)"
    connection.execute(f"CREATE OR REPLACE TABLE {table} AS {chosen}", [matching])


def _same(name: str, table: str) -> str:
    return f"r.{name} IS NOT DISTINCT FROM {table}.{name}"
