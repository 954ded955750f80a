"""What `squidkeeper log` shows of the table: filtered rows, as a table, lines or drift,
and rows counted by a key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from squidkeeper.base.errors import InvalidRecord
from squidkeeper.record.log.filters import MatchFilter, Selecting
from squidkeeper.record.log.listing import FindingRow, RequestRow
from squidkeeper.record.log.log_files import LINE_LIMIT, STDIN, open_nonblocking
from squidkeeper.record.log.record import NONE, format_time, parse_record, parse_time
from squidkeeper.record.table.columns import (
    FIELDS,
    IS_OPENED_TUNNEL,
    IS_TUNNEL,
    TIME,
    Column,
)
from squidkeeper.record.table.usage import USAGE
from squidkeeper.record.usage_ledger import UsageState

if TYPE_CHECKING:
    import duckdb

_BATCH: Final = 10_000
_KEY_AT_MOST: Final = 500  # characters; a client can invent any number of long paths
_PATH: Final = "split_part(url, '?', 1)"
MODEL: Final = "model"
CLIENT: Final = f"coalesce(user || '@', '') || coalesce(client, '{NONE}')"
KEYS: Final[Mapping[str, str]] = {
    "host": "host",
    "rule": "rule",
    "observed": "observed",
    "client": CLIENT,
    "gateway": "gateway",
    "status": "status::VARCHAR",
    "path": f"CASE WHEN length({_PATH}) > {_KEY_AT_MOST} THEN {_PATH}[:{_KEY_AT_MOST}] || '…' ELSE {_PATH} END",
}
KEY_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "client": ("client", "user"),
    "path": ("url",),
    MODEL: (),
}
_FEW: Final = 2000
_TIME: Final = "strftime(time, '%Y-%m-%dT%H:%M:%S.%gZ')"
# The columns of a request that its row is made of, beside the time.
ROW_FIELDS: Final = (
    "client",
    "user",
    "verdict",
    "rule",
    "status",
    "method",
    "duration_ms",
    "error",
    "url",
)
_FIRST_BYTES: Final = 1024 * 1024  # read in a moment
_GROWTH: Final = 16
_STEPS: Final = 3
_LINE_BYTES: Final = 1000  # of a usual line, or more


# Filters as SQL: the rows of `records` or `requests` for which all filters of
# `record/log/filters.py` hold.
#
# The period is none of them: `open_table` reads no more than it.


def select_rows(
    connection: duckdb.DuckDBPyConnection, rows: str, filters: Iterable[Selecting]
) -> str:
    """Create a view of the rows of a view for which all filters hold; return
    its name.
    """
    joins = [
        _join(connection, rows, f"wanted_{rows}_{number}", chosen)
        for number, chosen in enumerate(filters)
    ]
    connection.execute(
        f"CREATE OR REPLACE VIEW selected_{rows} AS SELECT r.* FROM {rows} AS r{''.join(joins)}"
    )
    return f"selected_{rows}"


def recorded_rules(
    connection: duckdb.DuckDBPyConnection, names: Iterable[str]
) -> set[str]:
    """Find which of some rules have decided a record."""
    wanted = list(names)
    found = connection.execute(
        "SELECT DISTINCT rule FROM records WHERE rule = ANY(?)", [wanted]
    )
    return {rule for (rule,) in found.fetchall()}


def fields_of(filters: Iterable[Selecting]) -> set[str]:
    """Name the columns that filters read."""
    return {
        field
        for one in filters
        for field in (one.fields if isinstance(one, MatchFilter) else (one.field,))
    }


def _join(
    connection: duckdb.DuckDBPyConnection, rows: str, table: str, chosen: Selecting
) -> str:
    if isinstance(chosen, MatchFilter):
        _create_matching(connection, rows, table, chosen)
        return f" SEMI JOIN {table} ON {' AND '.join(_same(name, table) for name in chosen.fields)}"
    kind = (
        "BIGINT"
        if all(isinstance(value, int) for value in chosen.values)
        else "VARCHAR"
    )
    wanted = [None if value == NONE else value for value in chosen.values]
    connection.execute(
        f"CREATE OR REPLACE TABLE {table} AS SELECT unnest(?::{kind}[]) AS {chosen.field}",
        [wanted],
    )
    return f" SEMI JOIN {table} ON {_same(chosen.field, table)}"


def _create_matching(
    connection: duckdb.DuckDBPyConnection, rows: str, table: str, wanted: MatchFilter
) -> None:
    names = ", ".join(wanted.fields)
    distinct = f"SELECT row_number() OVER () AS number, * FROM (SELECT DISTINCT {names} FROM {rows})"
    connection.execute(f"CREATE OR REPLACE TABLE {table}_found AS {distinct}")
    connection.execute(f"FROM {table}_found")
    matching: list[int] = []
    while found := connection.fetchmany(_BATCH):
        matching += [
            number
            for number, *values in found
            if wanted.matches(*(NONE if v is None else v for v in values))
        ]
    chosen = f"SELECT * FROM {table}_found SEMI JOIN (SELECT unnest(?::BIGINT[]) AS number) USING (number)"
    connection.execute(f"CREATE OR REPLACE TABLE {table} AS {chosen}", [matching])


def _same(name: str, table: str) -> str:
    return f"r.{name} IS NOT DISTINCT FROM {table}.{name}"


class Group(NamedTuple):
    """The counts of one key. `last` is the end of the newest one.

    `tunnels` are CONNECTs that the policy allowed, which are no requests: their rule is
    the first that could allow a request. A tunnel that passed through counts also as a
    request, at its end.

    Tokens and `cost` (in millionths) are those of metered requests. `reserved` are
    those that count for their reserve.
    """

    key: str
    last: str
    requests: int = 0
    denied: int = 0
    tunnels: int = 0
    bytes: int = 0
    reserved: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0


_USED: Final = Group._fields[-4:]
_PLAIN: Final = Group._fields[2:-4]  # what every request has
_METERED: Final = "metered_requests"


def with_usage(connection: duckdb.DuckDBPyConnection, view: str) -> str:
    """Create a view of the rows of a view with what each has used, by the table
    `usage`; return its name.
    """
    used = f"u.{MODEL}, (u.state <> '{UsageState.METERED}')::INT AS reserved, u.tokens_in, u.tokens_out, u.cost"
    connection.execute(
        f"CREATE OR REPLACE VIEW {_METERED} AS SELECT r.*, {used} FROM {view} AS r"
        f" LEFT JOIN {USAGE} AS u USING (request_id)"
    )
    return _METERED


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of rows by one of KEYS, counted once, in a table of the database.

    `shown` are their numbers.
    """

    connection: duckdb.DuckDBPyConnection
    shown: tuple[str, ...]

    @classmethod
    def count(
        cls,
        connection: duckdb.DuckDBPyConnection,
        rows: str,
        records: str,
        by: str,
        *,
        metered: bool = False,
    ) -> Groups:
        """Count the requests of a view, and the tunnels of a view of records.

        `metered`: the view is one of `with_usage`. By model, only the metered requests
        count.
        """
        key, used = (
            f"coalesce({KEYS.get(by, by)}, '{NONE}') AS key",
            _USED if metered else (),
        )
        sums = ", ".join(
            f"coalesce(sum({name}), 0) AS {name}" for name in ("bytes", *used)
        )
        requests = (
            f"SELECT count(*) FILTER (NOT {IS_TUNNEL}) AS requests, count(*) FILTER (verdict = 'deny') AS denied,"
            f" 0 AS tunnels, {sums}, max(time) AS last, {key}"
            f" FROM {rows}{' WHERE reserved IS NOT NULL' if by == MODEL else ''} GROUP BY key"
        )
        if by != MODEL:
            tunnels = f"count(*) AS tunnels, max(time) AS last, {key} FROM {records} WHERE {IS_TUNNEL} GROUP BY key"
            requests += f" UNION ALL BY NAME SELECT {tunnels}"
        shown = (*(("requests", "bytes") if by == MODEL else _PLAIN), *used)
        sums = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in shown)
        connection.execute(
            f"CREATE OR REPLACE TABLE counted AS SELECT {sums}, max(last) AS last, key FROM ({requests}) GROUP BY key"
        )
        return cls(connection, shown)

    def largest(self) -> dict[str, int]:
        """Return the largest of each number; nothing where there is no group."""
        columns = ", ".join(f"max({name})" for name in self.shown)
        (found,) = self.connection.execute(f"SELECT {columns} FROM counted").fetchall()
        return {
            name: int(value)
            for name, value in zip(self.shown, found, strict=True)
            if value is not None
        }

    def most_first(self) -> Iterator[Group]:
        """Yield the groups: the one that costs most, or else has the most requests,
        first.
        """
        order = (
            "cost DESC, requests DESC"
            if "cost" in self.shown
            else "requests DESC, tunnels DESC"
        )
        self.connection.execute(f"FROM counted ORDER BY {order}, key")
        while rows := self.connection.fetchmany(_BATCH):
            for *numbers, last, key in rows:
                counts = dict(zip(self.shown, map(int, numbers), strict=True))
                yield Group(key, format_time(last.replace(tzinfo=UTC)), **counts)


def request_rows(
    connection: duckdb.DuckDBPyConnection, view: str, newest: int | None
) -> Iterator[list[RequestRow]]:
    """Yield the rows of a view in their order, a batch at a time; of `newest`, the last
    so many.
    """
    values = [
        _TIME,
        CLIENT,
        *(
            _text(name) if name not in _NUMBERS else name
            for name in RequestRow._fields[2:]
        ),
    ]
    for rows in _batches(connection, ", ".join(values), view, newest):
        yield [RequestRow._make(row) for row in rows]


def lines(
    connection: duckdb.DuckDBPyConnection, view: str, newest: int | None
) -> Iterator[list[bytes]]:
    """Yield the lines of the rows of a view: as they were logged, or with what a
    CONNECT adds to its request.
    """
    for rows in _batches(connection, f"raw, {_LINE}", view, newest):
        yield [line.encode() if raw is None else raw for raw, line in rows]


def count_rows(connection: duckdb.DuckDBPyConnection, view: str) -> int:
    """Count the rows of a view."""
    ((count,),) = connection.execute(f"SELECT count(*) FROM {view}").fetchall()
    return int(count)


def oldest_time(connection: duckdb.DuckDBPyConnection, view: str) -> datetime | None:
    """Return the end of the oldest request of a view; None if it has none."""
    ((oldest,),) = connection.execute(f"SELECT min(time) FROM {view}").fetchall()
    return oldest and oldest.replace(tzinfo=UTC)  # type: ignore[no-any-return] # a TIMESTAMP


def count_records(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """Count records, and the CONNECTs of opened tunnels among them."""
    ((records, tunnels),) = connection.execute(
        f"SELECT count(*), count(*) FILTER ({IS_OPENED_TUNNEL}) FROM records"
    ).fetchall()
    return records, tunnels


def has_error(
    connection: duckdb.DuckDBPyConnection, view: str, newest: int | None
) -> bool:
    """Whether a row that is shown has an error."""
    rows = connection.execute(
        f"SELECT 1 {_rows(view, newest)} WHERE error IS NOT NULL LIMIT 1"
    ).fetchall()
    return bool(rows)


def finding_rows(
    connection: duckdb.DuckDBPyConnection, newest: int | None
) -> Iterator[list[FindingRow]]:
    """Yield the findings of a `DriftTable` in their order."""
    values = f"{_TIME}, {CLIENT}, kind, finding_rule, status, {_text('method')}, {_text('url')}"
    for rows in _batches(connection, values, "drift", newest):
        yield [FindingRow._make(row) for row in rows]


def findings(
    connection: duckdb.DuckDBPyConnection, newest: int | None
) -> Iterator[list[tuple[str, str, str, bytes]]]:
    """Yield kind, rule, reason and line of the findings of a `DriftTable`, in their
    order.
    """
    for rows in _batches(
        connection, f"kind, finding_rule, reason, raw, {_LINE}", "drift", newest
    ):
        yield [
            (*found, line.encode() if raw is None else raw)
            for *found, raw, line in rows
        ]


def _batches(
    connection: duckdb.DuckDBPyConnection, values: str, view: str, newest: int | None
) -> Iterator[list[tuple[Any, ...]]]:
    connection.execute(f"SELECT {values} {_rows(view, newest)} ORDER BY time, position")
    while batch := connection.fetchmany(_FEW):
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
_MEMBERS: Final = ", ".join(f"{field.name} := {_field(field)}" for field in FIELDS)
_LINE: Final = f"to_json(struct_pack({_MEMBERS}))::VARCHAR"


# Times at which a long log is divided: to show its first lines early, or to read its
# newest lines alone.
#
# A period is cheap to read where the rest of a log is not of it: `open_table` does not
# parse those lines. The times are read from the log, at some of its bytes.


def early_times(oldest: Path) -> list[datetime]:
    """Return times at which to divide a log, the first after few lines; none where it
    is short or compressed.
    """
    return sorted(
        {at for offset in _sizes(_FIRST_BYTES) if (at := _time_at(oldest, offset))}
    )


def late_times(newest: Path, lines: int) -> Iterator[datetime]:
    """Yield times further and further back, from which on a log may hold so many of the
    lines that are wanted.
    """
    size = _size(newest)
    for length in _sizes(max(_FIRST_BYTES, lines * _LINE_BYTES)):
        if length < size and (at := _time_at(newest, size - length)):
            yield at


def _sizes(first: int) -> list[int]:
    return [first * _GROWTH**step for step in range(_STEPS)]


def _size(path: Path) -> int:
    try:
        return 0 if path == STDIN else os.stat(path).st_size
    except OSError:
        return 0


def _time_at(path: Path, offset: int) -> datetime | None:
    if _size(path) <= offset:
        return None
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            file.seek(offset)
            lines = file.read(2 * LINE_LIMIT).split(b"\n")[1:-1]
        return next(map(parse_time, map(parse_record, lines)), None)
    except (OSError, InvalidRecord, ValueError):
        return None
