"""The table `usage`: a row for each metered request, from the ledger of usage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.record.log.log_files import read_failure
from squidkeeper.record.log.record import NONE
from squidkeeper.record.table.columns import in_period
from squidkeeper.record.usage_ledger import UsageEntry, UsageState, read_entries

if TYPE_CHECKING:
    from squidkeeper.record.table.database import Database

USAGE: Final = "usage"
_LINES: Final = "usage_lines"
# others are numbers
_TYPES: Final = {
    bool: "BOOLEAN",
    str: "VARCHAR",
    UsageState: "VARCHAR",
}
COLUMNS: Final = {
    field.name: "TIMESTAMP"
    if field.name == "time"
    else _TYPES.get(field.type, "BIGINT")
    for field in msgspec.structs.fields(UsageEntry)
    if field.name != "v"
}


def create_usage(
    database: Database,
    files: Sequence[Path],
    since: datetime | None = None,
    until: datetime | None = None,
) -> bool:
    """Create the table, of what counts in a period, from files of the ledger; returns
    whether it has rows.

    `UnreadableLog` where one cannot be read. Where none was written, the table is
    empty.
    """
    connection = database.connection
    typed = ", ".join(f"{name} {sql_type}" for name, sql_type in COLUMNS.items())
    connection.execute(f"CREATE TABLE {_LINES} ({typed})")
    try:
        database.insert(_LINES, COLUMNS, _rows(files))
    except OSError as error:
        raise UnreadableLog(f"{files[-1]}: {read_failure(error)}") from error
    newest = "row_number() OVER (PARTITION BY request_id ORDER BY settled DESC, time DESC) = 1"
    counting = f"SELECT * FROM {_LINES} QUALIFY {newest}"
    connection.execute(
        f"CREATE TABLE {USAGE} AS SELECT * FROM ({counting}){in_period(since, until)} ORDER BY time"
    )
    return bool(connection.execute(f"SELECT 1 FROM {USAGE} LIMIT 1").fetchall())


def _rows(files: Sequence[Path]) -> Iterator[dict[str, object]]:
    for entry in read_entries(files):
        values = ((name, getattr(entry, name)) for name in COLUMNS)
        yield {name: None if value == NONE else value for name, value in values}
