"""Drift: requests that were served although the policy in force denied them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.drift import DriftChecker
from squidkeeper.record.log.past_policies import Effective
from squidkeeper.record.log.record import NONE, decode_field
from squidkeeper.record.log.urls import redacted_url, truncate
from squidkeeper.record.report import figures
from squidkeeper.record.report.denials import URL_SHOWN
from squidkeeper.record.report.period import Period, utc
from squidkeeper.record.table.drift import DriftTable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SHOWN = 50

_RECORDS: Final = "CREATE TEMP VIEW checked AS FROM records WHERE {within}"
_KINDS: Final = "SELECT kind, count(*) AS number FROM drift GROUP BY kind ORDER BY number DESC, kind"
_LATEST: Final = f"""
    SELECT time, coalesce(client, '{NONE}'), coalesce(method, '{NONE}'), coalesce(url, '{NONE}'),
        finding_rule, reason, kind
    FROM drift ORDER BY time DESC, client, method, url LIMIT {_SHOWN}
"""


def drift(
    connection: DuckDBPyConnection, period: Period, checker: DriftChecker, effective: Iterable[Effective]
) -> figures.DriftFigures:
    """Compare the records of a period with the policies that were in force; `effective` are these policies."""
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
    return figures.DriftRow(utc(time), client, decode_field(method) or NONE, url, cut, rule, reason, kind)
