"""How upstream hosts answered: those that were slow, and those that failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from squidkeeper.record.report import figures
from squidkeeper.record.report.period import median, p95, ranked

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN = 15
_LEAST_REQUESTS = 10  # of a host, for a meaningful p95
_ERRORS_SHOWN = 5
_ERROR_SHOWN = 60  # characters

# No answer of the host: its client disconnected, or Squid or the cache answered.
_ANSWERS: Final = """
    CREATE TEMP TABLE answers AS
    SELECT
        upstream_host AS host, error, NOT unseen AS seen, upstream_ms, error IS NULL AND status >= 500 AS server_error,
        count(*) AS requests
    FROM answered
    WHERE NOT denied AND NOT ended_by_client AND (upstream IS NOT NULL OR error IS NOT NULL)
    GROUP BY ALL
"""
_WAITS: Final = r"""
    SELECT host, upstream_ms::BIGINT AS value, sum(requests) AS number FROM answers
    WHERE seen AND regexp_full_match(upstream_ms, '[0-9]{1,18}') GROUP BY ALL
"""
_UPSTREAMS: Final = f"""
    CREATE TEMP TABLE upstreams AS
    SELECT *
    FROM (
        SELECT
            host, sum(requests)::BIGINT AS requests,
            coalesce(sum(requests) FILTER (server_error), 0)::BIGINT AS server_errors,
            coalesce(sum(requests) FILTER (error IS NOT NULL), 0)::BIGINT AS errors
        FROM answers GROUP BY host
    ) LEFT JOIN (
        SELECT host, {median()} AS median_ms, {p95()} AS p95_ms, max(value) AS longest_ms
        FROM ({ranked(_WAITS, by="host")}) GROUP BY host
    ) USING (host)
"""
_COLUMNS = "host, requests, median_ms, p95_ms, coalesce(longest_ms, 0), server_errors"
_SLOWEST: Final = f"""
    SELECT {_COLUMNS} FROM upstreams WHERE requests >= {_LEAST_REQUESTS} AND p95_ms IS NOT NULL
    ORDER BY p95_ms DESC, host LIMIT {_SHOWN}
"""
_FAILING: Final = f"""
    SELECT {_COLUMNS} FROM upstreams WHERE server_errors + errors > 0
    ORDER BY server_errors + errors DESC, host LIMIT {_SHOWN}
"""
_ERRORS: Final = f"""
    SELECT host, left(error, {_ERROR_SHOWN}) AS name, sum(requests)::BIGINT AS number
    FROM answers WHERE error IS NOT NULL AND list_contains(?::VARCHAR[], host) GROUP BY host, name
    QUALIFY row_number() OVER (PARTITION BY host ORDER BY number DESC, name) <= {_ERRORS_SHOWN}
    ORDER BY number DESC, name
"""


def upstreams(connection: DuckDBPyConnection) -> figures.UpstreamFigures:
    """Return the slowest and the failing hosts."""
    connection.execute(_ANSWERS)
    connection.execute(_UPSTREAMS)
    slowest, failing = (
        connection.execute(query).fetchall() for query in (_SLOWEST, _FAILING)
    )
    errors: defaultdict[str, list[figures.Count]] = defaultdict(list)
    for host, name, number in connection.execute(
        _ERRORS, [[row[0] for row in (*slowest, *failing)]]
    ).fetchall():
        errors[host].append(figures.Count(name, number))
    return figures.UpstreamFigures(
        slowest=tuple(_upstream(row, errors) for row in slowest),
        least_requests=_LEAST_REQUESTS,
        failing=tuple(_upstream(row, errors) for row in failing),
    )


def _upstream(
    row: tuple[str, int, int | None, int | None, int, int],
    errors: Mapping[str, list[figures.Count]],
) -> figures.Upstream:
    host, requests, median_ms, p95_ms, longest_ms, server_errors = row
    return figures.Upstream(
        host,
        requests,
        median_ms,
        p95_ms,
        longest_ms,
        server_errors,
        tuple(errors[host]),
    )
