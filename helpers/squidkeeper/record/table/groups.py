"""Rows counted by host, rule, client, status, path or what was observed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.record.log.record import NONE, format_time
from squidkeeper.record.table.conditions import IS_TUNNEL

if TYPE_CHECKING:
    import duckdb

_BATCH: Final = 10_000
_KEY_AT_MOST: Final = 500  # characters; a client can invent any number of long paths
_PATH: Final = "split_part(url, '?', 1)"
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
KEY_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {"client": ("client", "user"), "path": ("url",)}


class Group(NamedTuple):
    """The counts of one key. `last` is the end of the newest one.

    `tunnels` are CONNECTs that the policy allowed, which are no requests: their rule is the first that could allow a
    request. A tunnel that passed through counts also as a request, at its end.
    """

    requests: int
    denied: int
    tunnels: int
    bytes: int
    last: str
    key: str


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of rows by one of KEYS, counted once, in a table of the database."""

    connection: duckdb.DuckDBPyConnection

    @classmethod
    def count(cls, connection: duckdb.DuckDBPyConnection, rows: str, records: str, by: str) -> Groups:
        """Count the requests of a view, and the tunnels of a view of records."""
        key = f"coalesce({KEYS[by]}, '{NONE}') AS key"
        requests = (
            f"SELECT count(*) FILTER (NOT {IS_TUNNEL}) AS requests, count(*) FILTER (verdict = 'deny') AS denied,"
            f" 0 AS tunnels, sum(bytes) AS bytes, max(time) AS last, {key} FROM {rows} GROUP BY key"
        )
        tunnels = f"SELECT 0, 0, count(*), 0, max(time), {key} FROM {records} WHERE {IS_TUNNEL} GROUP BY key"
        sums = ", ".join(f"sum({name}) AS {name}" for name in Group._fields[:4])
        connection.execute(
            f"CREATE OR REPLACE TABLE counted AS SELECT {sums}, max(last) AS last, key"
            f" FROM ({requests} UNION ALL {tunnels}) GROUP BY key"
        )
        return cls(connection)

    def widths(self) -> tuple[int, int, int, int]:
        """Return how many digits each of the four numbers has at most."""
        columns = ", ".join(f"coalesce(max(length({name}::VARCHAR)), 0)" for name in Group._fields[:4])
        ((requests, denied, tunnels, sent),) = self.connection.execute(f"SELECT {columns} FROM counted").fetchall()
        return requests, denied, tunnels, sent

    def most_first(self) -> Iterator[Group]:
        """Yield the groups, the one with the most requests first."""
        self.connection.execute("FROM counted ORDER BY requests DESC, tunnels DESC, key")
        while rows := self.connection.fetchmany(_BATCH):
            for requests, denied, tunnels, sent, last, key in rows:
                numbers = int(requests), int(denied), int(tunnels), int(sent)
                yield Group(*numbers, format_time(last.replace(tzinfo=UTC)), key)
