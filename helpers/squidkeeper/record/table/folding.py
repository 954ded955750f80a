"""Records to requests, in SQL: without CONNECTs that opened a tunnel, and without what counts twice.

`record/log/tunnels.py` tells why. Connections are told apart by client, number, worker and gateway. Each worker of
Squid numbers its connections from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.tunnels import HTTPS_PORT, WAIT
from squidkeeper.record.table.columns import POSITION, Column
from squidkeeper.record.table.conditions import IS_ANSWERED_INSIDE, IS_REQUEST_IF_SERVED, IS_SERVED
from squidkeeper.record.table.database import Database

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_LEFT_OUT: Final = "left_out_records"  # by position, with that of the record that stands for it
_NAMES_TUNNEL: Final = f"starts_with(i.url, 'https://' || regexp_replace(c.url, '{HTTPS_PORT}$', '') || '/')"
_KEY: Final = ("client", "connection", "worker", "gateway")
# Most of a log is served, and is read in place. From constants DuckDB derives others.
_SERVED_VALUES: Final = {"verdict": "'allow'", "error": "NULL::VARCHAR"}
_NOT_SERVED: Final = "records_not_served"


def fold(database: Database, records: str, columns: tuple[Column, ...]) -> str:
    """Find what is left out of a relation's records; return a SELECT of the requests."""
    connection = database.connection
    added = f"hash({', '.join(_KEY)}) AS connection_hash, {IS_ANSWERED_INSIDE} AS waits"
    connection.execute(
        f"CREATE OR REPLACE TABLE {_NOT_SERVED} AS SELECT *, {added} FROM {records} WHERE NOT {IS_SERVED}"
    )
    connection.execute(f"CREATE OR REPLACE TABLE {_LEFT_OUT} AS {_left_out()}")
    names = ", ".join(column.name for column in columns)
    served = ", ".join(f"{_SERVED_VALUES.get(column.name, column.name)} AS {column.name}" for column in columns)
    return (
        f"SELECT {served}, {POSITION} FROM {records} WHERE {IS_SERVED} AND {IS_REQUEST_IF_SERVED} UNION ALL"
        f" SELECT {names}, {POSITION} FROM {_NOT_SERVED} ANTI JOIN {_LEFT_OUT} USING ({POSITION})"
    )


def standing(connection: DuckDBPyConnection, ids: Iterable[str]) -> dict[str, str]:
    """Give the request IDs of the records that stand for left-out ones, by the IDs of these."""
    found = connection.execute(
        f"SELECT o.request_id, s.request_id FROM {_LEFT_OUT} AS l JOIN {_NOT_SERVED} AS o USING ({POSITION})"
        f" JOIN {_NOT_SERVED} AS s ON s.{POSITION} = l.stands WHERE list_contains(?, o.request_id)",
        [[*ids]],
    )
    return dict(found.fetchall())


def _left_out() -> str:
    """Pair each CONNECT that Squid answered inside with what came inside: decided requests stand, else the CONNECT."""
    same = " AND ".join(f"c.{name} IS NOT DISTINCT FROM i.{name}" for name in _KEY)
    pairs = (
        f"SELECT c.{POSITION} AS connect, i.{POSITION} AS inside, i.verdict IS NULL AS undecided"
        f" FROM {_NOT_SERVED} AS c JOIN {_NOT_SERVED} AS i"
        f" ON c.connection_hash = i.connection_hash AND {same} AND c.waits AND i.method IS DISTINCT FROM 'CONNECT'"
        f" AND (i.verdict IS NULL OR {_NAMES_TUNNEL}) AND (i.time, i.{POSITION}) > (c.time, c.{POSITION})"
        f" AND i.time <= c.time + to_milliseconds({WAIT // timedelta(milliseconds=1)})"
    )
    return (
        f"SELECT if(undecided, inside, connect) AS {POSITION}, min(if(undecided, connect, inside)) AS stands"
        f" FROM ({pairs}) GROUP BY ALL"
    )
