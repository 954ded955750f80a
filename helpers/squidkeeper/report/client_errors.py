"""Requests that their clients ended (floor 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from squidkeeper.record.record import CLIENT_ERRORS
from squidkeeper.report import figures
from squidkeeper.report.figures import CLIENT_LEFT
from squidkeeper.report.period import client_label, utc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN = 30

_ERRORS: Final = f"""
    CREATE TEMP TABLE client_errors AS
    SELECT client, "user", error, count(*) AS requests, max({{'time': time, 'host': host}}) AS last
    FROM (
        SELECT client, "user", error, time, host FROM reported WHERE ended_by_client AND NOT denied
        UNION ALL
        SELECT client, "user", error, time, host FROM left_out WHERE reason = '{CLIENT_LEFT}'
    ) GROUP BY ALL
"""
_SHOWN_ERRORS: Final = f"""
    SELECT client, "user", error, requests, last.time, last.host
    FROM client_errors ORDER BY requests DESC, client, "user", error LIMIT {_SHOWN}
"""


def client_errors(connection: DuckDBPyConnection) -> figures.ClientErrorFigures:
    """Return the clients that ended requests, by error."""
    connection.execute(_ERRORS)
    ((total,),) = connection.execute("SELECT coalesce(sum(requests), 0)::BIGINT FROM client_errors").fetchall()
    return figures.ClientErrorFigures(
        total=total,
        rows=tuple(
            figures.ClientError(client_label(client, user), error, CLIENT_ERRORS[error], requests, utc(last), host)
            for client, user, error, requests, last, host in connection.execute(_SHOWN_ERRORS).fetchall()
        ),
    )
