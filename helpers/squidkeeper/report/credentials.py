"""Credentials used (floor 7): the hosts that they were sent to, and those whose value was unavailable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from squidkeeper.record.record import NONE, decode_field
from squidkeeper.report import figures

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN = 50

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
_SHOWN_USES: Final = f"FROM credential_uses ORDER BY requests DESC, name, host LIMIT {_SHOWN}"
_UNAVAILABLE: Final = f"""
    SELECT host, count(*) AS number FROM denied WHERE rule = 'credential-unavailable'
    GROUP BY host ORDER BY number DESC, host LIMIT {_SHOWN}
"""


def credentials(connection: DuckDBPyConnection) -> figures.CredentialFigures:
    """Return what became of the requests that a credential was put into."""
    connection.execute(_USES)
    ((total,),) = connection.execute("SELECT coalesce(sum(requests), 0)::BIGINT FROM credential_uses").fetchall()
    uses = [
        figures.CredentialUse(decode_field(name) or NONE, *counts)
        for name, *counts in connection.execute(_SHOWN_USES).fetchall()
    ]
    return figures.CredentialFigures(
        uses=tuple(sorted(uses, key=lambda use: (use.credential, -use.requests))),
        other_uses=total - sum(use.requests for use in uses),
        unavailable=tuple(figures.Count(*row) for row in connection.execute(_UNAVAILABLE).fetchall()),
    )
