"""The requests of a period: what the sections of the report read, and what is in no
figure.

`Period.load` makes these in the database, text as logged and `-` where there is none:

- `reported`, a view of the requests of the period that are in the figures. Each query
  of it reads its columns alone.
- `left_out`, a table of the others, each with its `reason`.
- `pairs`, a table of the sums for each client and host of `reported`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.record import NONE
from squidkeeper.record.report.figures import CLIENT_LEFT, NO_REQUEST, REFUSED
from squidkeeper.record.table.columns import (
    ENDED_BY_CLIENT,
    HAS_FAILED,
    IS_OPENED_TUNNEL,
    IS_REFUSED,
    IS_TUNNEL,
    time_literal,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NO_HOST: Final = "(no valid host)"
_USER_SHOWN = 60  # characters

# Why a request that no rule has decided is in no figure; the first that holds counts.
_REASONS: Final = {
    NO_REQUEST: "method IS NULL OR starts_with(url, 'error:')",
    REFUSED: IS_REFUSED,
    CLIENT_LEFT: "status = 0 AND ended_by_client",
}
_REASON = " ".join(
    f"WHEN {condition} THEN '{reason}'" for reason, condition in _REASONS.items()
)
_TEXTS = ", ".join(
    f'coalesce("{name}", \'{NONE}\') AS "{name}"'
    for name in ("client", "user", "method", "rule", "revision", "url")
)
_COLUMNS: Final = f"""
    time, {_TEXTS}, coalesce(host, '{NO_HOST}') AS host, status, bytes, duration_ms, error, credential, fetched,
    upstream, upstream_ms, observed, page, coalesce(starts_with(squid, 'TCP_TUNNEL'), false) AS unseen
"""

# A row without a verdict is rare, and only its reason needs its URL, which is most of a
# row.
_UNJUDGED: Final = f"""
    CREATE TEMP TABLE unjudged AS
    SELECT
        {_COLUMNS}, false AS denied, {ENDED_BY_CLIENT} AS ended_by_client, {HAS_FAILED} AS failed,
        CASE {_REASON} END AS reason
    FROM {{requests}} WHERE verdict IS NULL AND {{within}}
"""
_REPORTED: Final = f"""
    CREATE TEMP VIEW reported AS
    SELECT {_COLUMNS}, verdict = 'deny' AS denied, {ENDED_BY_CLIENT} AS ended_by_client, {HAS_FAILED} AS failed
    FROM {{requests}} WHERE verdict IS NOT NULL AND {{within}}
    UNION ALL BY NAME
    SELECT * EXCLUDE reason FROM unjudged WHERE reason IS NULL
"""
_LEFT_OUT: Final = "CREATE TEMP VIEW left_out AS FROM unjudged WHERE reason IS NOT NULL"
_PAIRS: Final = """
    CREATE TEMP TABLE pairs AS
    SELECT
        client, "user", host, count(*) FILTER (NOT denied) AS allowed, count(*) FILTER (denied) AS denied,
        count(*) FILTER (failed) AS failed, sum(greatest(bytes, 0))::BIGINT AS response_bytes,
        min(time) AS first, max(time) AS last
    FROM reported GROUP BY ALL
"""

_RECORDS: Final = f"""
    SELECT
        count(*) FILTER ({{before}}), min(time) FILTER ({{before}}), count(*) FILTER ({{after}}),
        count(*) FILTER ({{within}}), count(*) FILTER ({{within}} AND {IS_TUNNEL}),
        count(*) FILTER ({{within}} AND {IS_OPENED_TUNNEL})
    FROM records
"""


class RecordCounts(NamedTuple):
    """How many records there are before, after and in the period; of its `tunnels`,
    `opened` are no requests.
    """

    before: int
    oldest: datetime | None
    after: int
    within: int
    tunnels: int
    opened: int


@dataclass(frozen=True, slots=True)
class Period:
    """A period, as given: None where it is open."""

    since: datetime | None = None
    until: datetime | None = None

    @property
    def before(self) -> str:
        """The condition in SQL for what ended before the period."""
        return f"time < {time_literal(self.since)}" if self.since else "false"

    @property
    def after(self) -> str:
        """The condition in SQL for what ended after the period."""
        return f"time >= {time_literal(self.until)}" if self.until else "false"

    @property
    def within(self) -> str:
        """The condition in SQL for what ended in the period."""
        since = f"time >= {time_literal(self.since)}" if self.since else "true"
        return f"{since} AND time < {time_literal(self.until)}" if self.until else since

    def load(self, connection: DuckDBPyConnection, requests: str = "requests") -> None:
        """Make `reported`, `left_out` and `pairs` of a view of requests."""
        for statement in (_UNJUDGED, _REPORTED, _LEFT_OUT, _PAIRS):
            connection.execute(statement.format(within=self.within, requests=requests))

    def count_records(self, connection: DuckDBPyConnection) -> RecordCounts:
        """Count the records before, after and in the period."""
        conditions = {"before": self.before, "after": self.after, "within": self.within}
        (row,) = connection.execute(_RECORDS.format(**conditions)).fetchall()
        return RecordCounts(row[0], utc(row[1]) if row[1] else None, *row[2:])


def client_label(client: str, user: str) -> str:
    """Name a client: its address, and the proxy user if there is one."""
    name = shown_field(user)
    return client if name is None else f"{client} {name[:_USER_SHOWN]}"


def utc(at: datetime) -> datetime:
    """Add the zone to a time of the table."""
    return at.replace(tzinfo=UTC)


# Exact quantiles: the smallest value that at least a share of all does not exceed.
#
# DuckDB's `quantile_disc` has the same definition and keeps every value in memory.
# Values with their numbers take less, and sorting them spills.


def ranked(counted: str, by: str = "") -> str:
    """Write the query that adds to rows of `value` and `number` how many values are in
    them and in smaller ones.
    """
    partition = f"PARTITION BY {by}" if by else ""
    return f"""
        SELECT *, sum(number) OVER ({partition} ORDER BY value) AS seen, sum(number) OVER ({partition}) AS total
        FROM ({counted})
    """


def median() -> str:
    """Write the aggregate of ranked rows for the median."""
    return "min(value) FILTER (seen * 2 >= total)"


def p95() -> str:
    """Write the aggregate of ranked rows for the value that 95 % do not exceed."""
    return "min(value) FILTER (seen * 20 >= total * 19)"
