"""The short sections of the report, each with its SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.record import CLIENT_ERRORS, NONE, host_of
from squidkeeper.record.report import figures
from squidkeeper.record.report.figures import CLIENT_LEFT
from squidkeeper.record.report.period import (
    NO_HOST,
    Period,
    RecordCounts,
    client_label,
    median,
    p95,
    ranked,
    utc,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


_SHOWN: Final = 50

# Names are encoded, so a comma in `credential` is one between two names.
_USES: Final = """
    CREATE TEMP TABLE credential_uses AS
    SELECT
        name, upstream_host AS host, count(*) AS requests,
        count(*) FILTER (status IN (401, 403)) AS refused, count(*) FILTER (failed) AS failed
    FROM (
        SELECT unnest(string_split_regex(credential, ',|%2[Cc]')) AS name, upstream_host, status, failed
        FROM answered WHERE credential <> '' AND NOT denied
    ) GROUP BY ALL
"""
_SHOWN_USES: Final = (
    f"FROM credential_uses ORDER BY requests DESC, name, host LIMIT {_SHOWN}"
)
_UNAVAILABLE: Final = f"""
    SELECT host, count(*) AS number FROM denied WHERE rule = 'credential-unavailable'
    GROUP BY host ORDER BY number DESC, host LIMIT {_SHOWN}
"""


def credentials(connection: DuckDBPyConnection) -> figures.CredentialFigures:
    """Return what became of the requests that a credential was put into."""
    connection.execute(_USES)
    ((total,),) = connection.execute(
        "SELECT coalesce(sum(requests), 0)::BIGINT FROM credential_uses"
    ).fetchall()
    uses = [
        figures.CredentialUse(shown_field(name) or NONE, *counts)
        for name, *counts in connection.execute(_SHOWN_USES).fetchall()
    ]
    return figures.CredentialFigures(
        uses=tuple(sorted(uses, key=lambda use: (use.credential, -use.requests))),
        other_uses=total - sum(use.requests for use in uses),
        unavailable=tuple(
            figures.Count(*row) for row in connection.execute(_UNAVAILABLE).fetchall()
        ),
    )


_BY_DEFAULT: Final = "deny:default"
_OBSERVED_SUMS: Final = """
    SELECT count(observed), count(*) FILTER (denied AND page = 'asked') FROM reported
"""
_OBSERVED: Final = f"""
    SELECT observed, count(*) AS requests, count(DISTINCT (client, "user")), count(DISTINCT host)
    FROM reported WHERE observed IS NOT NULL GROUP BY observed
    ORDER BY observed <> '{_BY_DEFAULT}', requests DESC, observed LIMIT {_SHOWN}
"""


def observed(connection: DuckDBPyConnection) -> figures.ObservedFigures:
    """Return what rules that observe would have decided, what the default would deny
    first.
    """
    ((total, asked),) = connection.execute(_OBSERVED_SUMS).fetchall()
    rows = connection.execute(_OBSERVED).fetchall() if total else []
    return figures.ObservedFigures(
        total=total,
        asked=asked,
        rows=tuple(
            figures.ObservedRow(shown_field(name) or NONE, *counts)
            for name, *counts in rows
        ),
    )


_NEW_HOSTS: Final = f"""
    CREATE TEMP TABLE new_hosts AS
    SELECT
        host, min(first) AS first, sum(allowed)::BIGINT AS allowed, sum(denied)::BIGINT AS denied
    FROM pairs ANTI JOIN (
        SELECT DISTINCT coalesce(host, '{NO_HOST}') AS host FROM records WHERE {{before}}
    ) USING (host)
    GROUP BY host
"""
_SHOWN_HOSTS: Final = f"""
    SELECT host, first, pairs.client, pairs."user", shown.allowed, shown.denied
    FROM (FROM new_hosts ORDER BY allowed > 0 DESC, first DESC, host LIMIT {_SHOWN}) AS shown
    JOIN pairs USING (host, first)
    QUALIFY row_number() OVER (PARTITION BY host ORDER BY pairs.client, pairs."user") = 1
    ORDER BY shown.allowed > 0 DESC, first DESC, host
"""
_NEW_HOST_SUMS: Final = "SELECT count(*), count(*) FILTER (allowed > 0) FROM new_hosts"


def load_new_hosts(connection: DuckDBPyConnection, period: Period) -> None:
    """Make the table `new_hosts`: the hosts of the period that no record
    before it has.
    """
    connection.execute(_NEW_HOSTS.format(before=period.before))


def first_seen(
    connection: DuckDBPyConnection, records: RecordCounts
) -> figures.FirstSeen:
    """Return the new hosts."""
    ((total, allowed),) = connection.execute(_NEW_HOST_SUMS).fetchall()
    return figures.FirstSeen(
        compared=records.before,
        compared_since=records.oldest,
        total=total,
        allowed=allowed,
        hosts=tuple(
            figures.NewHost(
                host, utc(first), client_label(client, user), allowed, denied
            )
            for host, first, client, user, allowed, denied in connection.execute(
                _SHOWN_HOSTS
            ).fetchall()
        ),
    )


_CLIENTS_SHOWN: Final = 30

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
    FROM client_errors ORDER BY requests DESC, client, "user", error LIMIT {_CLIENTS_SHOWN}
"""


def client_errors(connection: DuckDBPyConnection) -> figures.ClientErrorFigures:
    """Return the clients that ended requests, by error."""
    connection.execute(_ERRORS)
    ((total,),) = connection.execute(
        "SELECT coalesce(sum(requests), 0)::BIGINT FROM client_errors"
    ).fetchall()
    return figures.ClientErrorFigures(
        total=total,
        rows=tuple(
            figures.ClientError(
                client_label(client, user),
                error,
                CLIENT_ERRORS[error],
                requests,
                utc(last),
                host,
            )
            for client, user, error, requests, last, host in connection.execute(
                _SHOWN_ERRORS
            ).fetchall()
        ),
    )


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


def summary(
    connection: DuckDBPyConnection, records: RecordCounts
) -> figures.SummaryFigures:
    """Return the sums."""
    ((allowed, denied, response_bytes, failed, *different),) = connection.execute(
        _SUMS
    ).fetchall()
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


# A plain `fetched` up to the end of its authority, which decides its host; any other
# one as a whole.
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
    """Make the view `answered`: `reported` with the host that the request was sent to
    as `upstream_host`.
    """
    origins = [origin for (origin,) in connection.execute(_ORIGINS).fetchall()]
    hosts = [host_of(unquote(origin)).text for origin in origins]
    connection.execute(
        _FETCHED_HOSTS, [origins, [NO_HOST if host == NONE else host for host in hosts]]
    )
    connection.execute(_ANSWERED)
