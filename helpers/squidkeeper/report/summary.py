"""All requests of the period, in one row of figures (floor 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from squidkeeper.report import figures
from squidkeeper.report.period import RecordCounts
from squidkeeper.report.quantiles import median, p95, ranked

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_HOSTS: Final = "SELECT host, sum(allowed) AS allowed FROM pairs GROUP BY host"
_SUMS: Final = f"""
    SELECT
        coalesce(sum(allowed), 0)::BIGINT, coalesce(sum(denied), 0)::BIGINT,
        coalesce(sum(response_bytes), 0)::BIGINT,
        coalesce(sum(failed), 0)::BIGINT,
        (SELECT count(*) FROM (SELECT DISTINCT client, "user" FROM pairs)),
        (SELECT count(*) FROM ({_HOSTS})),
        (SELECT count(*) FROM ({_HOSTS}) WHERE allowed > 0)
    FROM pairs
"""
_DURATIONS: Final = """
    SELECT duration_ms AS value, count(*) AS number FROM reported
    WHERE NOT denied AND method <> 'CONNECT' AND NOT unseen GROUP BY ALL
"""
_QUANTILES: Final = f"SELECT {median()}, {p95()} FROM ({ranked(_DURATIONS)})"


def summary(connection: DuckDBPyConnection, records: RecordCounts) -> figures.SummaryFigures:
    """Return the sums."""
    ((allowed, denied, response_bytes, failed, *different),) = connection.execute(_SUMS).fetchall()
    ((median_ms, p95_ms),) = connection.execute(_QUANTILES).fetchall()
    clients, hosts, hosts_allowed = different
    return figures.SummaryFigures(
        requests=allowed + denied,
        allowed=allowed,
        denied=denied,
        tunnels=records.tunnels,
        failed=failed,
        response_bytes=response_bytes,
        clients=clients,
        hosts=hosts,
        hosts_allowed=hosts_allowed,
        median_ms=median_ms,
        p95_ms=p95_ms,
    )
