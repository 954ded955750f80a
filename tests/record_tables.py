"""Records as a table of DuckDB, without a log."""

from __future__ import annotations

from typing import Any

import duckdb
import msgspec

from squidkeeper.record.log.record import NONE, Record, host_of, parse_time
from squidkeeper.record.table.columns import FIELDS
from squidkeeper.record.table.row_judging import insert


def insert_records(
    connection: duckdb.DuckDBPyConnection, table: str, records: list[Record]
) -> None:
    """Make a table of records, as the view of requests has them."""
    rows = []
    for record in records:
        values: dict[str, Any] = {
            **msgspec.structs.asdict(record),
            "host": host_of(record.url).text,
        }
        values["time"] = parse_time(record).replace(tzinfo=None)
        rows.append(
            tuple(None if value == NONE else value for value in values.values())
        )
    typed = ", ".join(f"{field.name} {field.sql_type}" for field in FIELDS)
    insert(connection, table, f"{typed}, host VARCHAR", rows)
