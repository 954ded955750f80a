"""Hosts that had not been requested before (floor 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from squidkeeper.report import figures
from squidkeeper.report.period import NO_HOST, Period, RecordCounts, client_label, utc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN = 50

_NEW_HOSTS: Final = f"""
    CREATE TEMP TABLE new_hosts AS
    SELECT
        host, min(first) AS first, min(struct_pack(first := first, client := client, "user" := "user")) AS request,
        sum(allowed)::BIGINT AS allowed, sum(denied)::BIGINT AS denied
    FROM pairs ANTI JOIN (
        SELECT DISTINCT coalesce(host, '{NO_HOST}') AS host FROM records WHERE {{before}}
    ) USING (host)
    GROUP BY host
"""
_SHOWN_HOSTS: Final = f"""
    SELECT host, first, request.client, request."user", allowed, denied FROM new_hosts
    ORDER BY allowed > 0 DESC, first DESC, host LIMIT {_SHOWN}
"""
_ALL: Final = "SELECT count(*), count(*) FILTER (allowed > 0) FROM new_hosts"


def load_new_hosts(connection: DuckDBPyConnection, period: Period) -> None:
    """Make the table `new_hosts`: the hosts of the period that no record before it has."""
    connection.execute(_NEW_HOSTS.format(before=period.before))


def first_seen(connection: DuckDBPyConnection, records: RecordCounts) -> figures.FirstSeen:
    """Return the new hosts."""
    ((total, allowed),) = connection.execute(_ALL).fetchall()
    return figures.FirstSeen(
        compared=records.before,
        compared_since=records.oldest,
        total=total,
        allowed=allowed,
        hosts=tuple(
            figures.NewHost(host, utc(first), client_label(client, user), allowed, denied)
            for host, first, client, user, allowed, denied in connection.execute(_SHOWN_HOSTS).fetchall()
        ),
    )
