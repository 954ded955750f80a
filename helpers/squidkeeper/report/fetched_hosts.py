"""The hosts that rewrites led to (floor 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from squidkeeper.record.record import NONE
from squidkeeper.record.urls import host_of
from squidkeeper.report.period import NO_HOST

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# A plain `fetched` up to the end of its authority, which decides its host; any other one as a whole.
_ORIGIN: Final = r"""
    coalesce(nullif(regexp_extract(fetched, '^https?%3A%2F%2F[A-Za-z0-9._-]+(?:%3A[0-9]+)?%2F'), ''), fetched)
"""
_ORIGINS: Final = f"SELECT DISTINCT {_ORIGIN} FROM reported WHERE fetched IS NOT NULL"
_FETCHED_HOSTS: Final = """
    CREATE TEMP TABLE fetched_hosts AS
    SELECT unnest(?::VARCHAR[]) AS origin, unnest(?::VARCHAR[]) AS fetched_host
"""
_ANSWERED: Final = f"""
    CREATE TEMP VIEW answered AS
    SELECT reported.*, coalesce(fetched_host, host) AS upstream_host
    FROM reported LEFT JOIN fetched_hosts ON origin = {_ORIGIN}
"""


def load_answered(connection: DuckDBPyConnection) -> None:
    """Make the view `answered`: `reported` with the host that the request was sent to as `upstream_host`."""
    origins = [origin for (origin,) in connection.execute(_ORIGINS).fetchall()]
    hosts = [host_of(unquote(origin)).text for origin in origins]
    connection.execute(_FETCHED_HOSTS, [origins, [NO_HOST if host == NONE else host for host in hosts]])
    connection.execute(_ANSWERED)
