"""Builds the report and its drift from the table of records.

A section has its SQL beside its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.drift import DriftChecker, Effective
from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.record import NONE, redacted_url, truncate
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions
from squidkeeper.record.report import figures, sections
from squidkeeper.record.report.denials import URL_SHOWN, Reasons, denials
from squidkeeper.record.report.period import Period, RecordCounts, utc
from squidkeeper.record.report.traffic import Steps, timeline, traffic
from squidkeeper.record.report.upstreams import upstreams
from squidkeeper.record.report.usage import usage
from squidkeeper.record.table.columns import Partial
from squidkeeper.record.table.drift_table import DriftTable
from squidkeeper.record.table.sessions import (
    SESSION_KEY,
    is_of_sessions,
    with_session_keys,
)
from squidkeeper.record.table.usage import USAGE

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COLUMNS: Final = (  # of the table, that the report reads
    *(
        "time",
        "client",
        "user",
        "host",
        "method",
        "status",
        "bytes",
        "duration_ms",
        "verdict",
        "rule",
        "error",
    ),
    *("credential", "fetched", "upstream", "upstream_ms", "squid", "observed", "page"),
)
OF_DENIALS: Final = Partial(frozenset({"url", "revision"}))
_FIRST_AND_LAST: Final = "SELECT min(first), max(last) FROM pairs"
_LEFT_OUT: Final = "SELECT reason, count(*) FROM left_out GROUP BY ALL"
_SHOWN = 50

_CLIENT: Final = f"coalesce({SESSION_KEY}, '{NONE}') AS client, NULL AS \"user\""
_BY_SESSIONS: Final = f"CREATE TEMP VIEW requests_by_sessions AS SELECT * REPLACE ({_CLIENT}) FROM {{view}}"
_USAGE_BY_SESSIONS: Final = f"""
    CREATE TEMP VIEW usage_by_sessions AS SELECT u.* REPLACE ({_CLIENT}) FROM {USAGE} u LEFT JOIN
        (SELECT request_id, any_value({SESSION_KEY}) AS {SESSION_KEY} FROM requests_by_sessions GROUP BY 1)
        USING (request_id)
"""
_RECORDS: Final = "CREATE TEMP VIEW checked AS FROM records WHERE {within}"
_KINDS: Final = "SELECT kind, count(*) AS number FROM drift GROUP BY kind ORDER BY number DESC, kind"
_LATEST: Final = f"""
    SELECT time, coalesce(client, '{NONE}'), coalesce(method, '{NONE}'), coalesce(url, '{NONE}'),
        finding_rule, reason, kind
    FROM drift ORDER BY time DESC, client, method, url LIMIT {_SHOWN}
"""


@dataclass(frozen=True, slots=True)
class CountedClients:
    """What a client is in a report, by `by` of `record/table/sessions.py`; `client`: an
    address and a proxy user.
    """

    by: str = "client"
    sessions: RecordedSessions = NO_SESSIONS

    @property
    def columns(self) -> tuple[str, ...]:
        """What the table has to have beside `COLUMNS`."""
        return ("session", "request_id") if is_of_sessions(self.by) else ()

    def requests(self, connection: DuckDBPyConnection) -> str:
        """Make a view of the requests with what their clients are; return its name."""
        if not is_of_sessions(self.by):
            return "requests"
        (view,) = with_session_keys(connection, ("requests",), self.by, self.sessions)
        connection.execute(_BY_SESSIONS.format(view=view))
        return "requests_by_sessions"

    def usage(self, connection: DuckDBPyConnection) -> str:
        """Make the same of what metered requests have used."""
        if not is_of_sessions(self.by):
            return USAGE
        connection.execute(_USAGE_BY_SESSIONS)
        return "usage_by_sessions"


_EACH: Final = CountedClients()


def build_report(
    connection: DuckDBPyConnection,
    period: Period,
    *,
    files: Iterable[str],
    now: datetime,
    reasons: Reasons,
    invalid: int = 0,
    damaged: Iterable[str] = (),
    drift: figures.DriftFigures | None = None,
    with_usage: bool = False,
    clients: CountedClients = _EACH,
) -> figures.Report:
    """Build the report of a period from the views `requests` and `records`.

    Records from before the period show which hosts are new. `reasons` tells that of a
    rule, `invalid` the lines that are no records, `damaged` the files that were read
    in part. `with_usage`: there is a table `usage`. `clients`: what counts as one.
    """
    records = period.count_records(connection)
    period.load(connection, clients.requests(connection))
    sections.load_new_hosts(connection, period)
    sections.load_answered(connection)
    since, until = _period(connection, period)
    sums = sections.summary(connection, records)
    steps = Steps.of(since, until)
    over_time, denials_over_time = timeline(connection, steps)
    return figures.Report(
        format=figures.FORMAT,
        made_at=now,
        files=tuple(files),
        since=since,
        until=until,
        clients_by=clients.by,
        summary=sums,
        timeline=over_time,
        traffic=traffic(connection),
        denials=denials(connection, reasons, denials_over_time),
        observed=sections.observed(connection),
        credentials=sections.credentials(connection),
        first_seen=sections.first_seen(connection, records),
        upstreams=upstreams(connection),
        client_errors=sections.client_errors(connection),
        usage=usage(connection, steps, clients.usage(connection))
        if with_usage
        else None,
        drift=drift,
        left_out=tuple(
            sorted(
                _left_out(connection, records, sums.requests, invalid),
                key=lambda one: (-one.count, one.name),
            )
        ),
        damaged=tuple(damaged),
    )


def _period(
    connection: DuckDBPyConnection, given: Period
) -> tuple[datetime | None, datetime | None]:
    ((first, last),) = connection.execute(_FIRST_AND_LAST).fetchall()
    return given.since or (utc(first) if first else None), given.until or (
        utc(last) if last else None
    )


def _left_out(
    connection: DuckDBPyConnection, records: RecordCounts, requests: int, invalid: int
) -> Iterator[figures.Count]:
    reasons = dict(connection.execute(_LEFT_OUT).fetchall())
    counts = {
        "invalid lines": invalid,
        "records before the period": records.before,
        "records after the period": records.after,
        "CONNECTs and requests that count with another": (
            records.within - records.opened - requests - sum(reasons.values())
        ),
        **reasons,
    }
    return (figures.Count(name, count) for name, count in counts.items() if count)


def drift(
    connection: DuckDBPyConnection,
    period: Period,
    checker: DriftChecker,
    effective: Iterable[Effective],
) -> figures.DriftFigures:
    """Compare the records of a period with the policies that were in force; `effective`
    are these policies.
    """
    connection.execute(_RECORDS.format(within=period.within))
    DriftTable(connection, "checked", checker, effective)
    kinds = tuple(figures.Count(*row) for row in connection.execute(_KINDS).fetchall())
    return figures.DriftFigures(
        total=sum(kind.count for kind in kinds),
        unchecked=checker.unchecked,
        cut=checker.cut,
        kinds=kinds,
        latest=tuple(_finding(row) for row in connection.execute(_LATEST).fetchall()),
    )


def _finding(row: tuple[datetime, str, str, str, str, str, str]) -> figures.DriftRow:
    time, client, method, logged, rule, reason, kind = row
    url, cut = truncate(redacted_url(logged), URL_SHOWN)
    return figures.DriftRow(
        utc(time), client, shown_field(method) or NONE, url, cut, rule, reason, kind
    )
