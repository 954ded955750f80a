"""What was denied: by rule, and the requests that were denied again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.record import NONE, redacted_url, truncate
from squidkeeper.record.report import figures
from squidkeeper.record.report.period import client_label, utc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

URL_SHOWN: Final = 400  # characters
_HOSTS_SHOWN = 5
_RETRIES_SHOWN = 20
_METHOD_SHOWN = 40

_DENIED: Final = r"""
    CREATE TEMP TABLE denied AS
    SELECT
        time, client, "user", method, host, rule,
        regexp_replace(regexp_extract(url, '^[^?#]*'), '^((?i:[a-z][a-z0-9+.-]*)://)?[^/?#]*@', '\1***@') AS url
    FROM reported WHERE denied
"""
# A retry is of the same client, method, and URL without query, fragment and password.
_REQUESTS: Final = """
    CREATE TEMP TABLE denied_requests AS
    SELECT
        client, "user", method, url, count(*) AS denied,
        min({'time': time, 'rule': rule}) AS first, max({'time': time, 'rule': rule}) AS last
    FROM denied GROUP BY ALL
"""
_RULES: Final = """
    SELECT rule, denied, denied - coalesce(requests, 0)
    FROM (SELECT rule, count(*) AS denied FROM denied GROUP BY ALL)
    LEFT JOIN (SELECT first.rule AS rule, count(*) AS requests FROM denied_requests GROUP BY ALL) USING (rule)
    ORDER BY denied DESC, rule
"""
_HOSTS: Final = f"""
    SELECT rule, host, count(*) AS number FROM denied GROUP BY rule, host
    QUALIFY row_number() OVER (PARTITION BY rule ORDER BY number DESC, host) <= {_HOSTS_SHOWN}
    ORDER BY number DESC, host
"""
_RETRIES: Final = f"""
    SELECT client, "user", method, url, last.rule, denied, first.time, last.time
    FROM denied_requests WHERE denied > 1
    ORDER BY denied DESC, client, "user", method, url LIMIT {_RETRIES_SHOWN}
"""


def denials(
    connection: DuckDBPyConnection,
    reasons: Mapping[str, str | None],
    over_time: Mapping[str, tuple[int, ...]],
) -> figures.DenialFigures:
    """Return what was denied; `reasons` are those of the rules, `over_time` the denials
    of each rule as logged.
    """
    connection.execute(_DENIED)
    connection.execute(_REQUESTS)
    hosts = _hosts(connection)
    rules = connection.execute(_RULES).fetchall()
    return figures.DenialFigures(
        rules=tuple(
            _rule(rule, denied, retried, hosts[rule], reasons, over_time.get(rule, ()))
            for rule, denied, retried in rules
        ),
        retried=sum(retried for _, _, retried in rules),
        retries=tuple(_retried(row) for row in connection.execute(_RETRIES).fetchall()),
    )


def _hosts(connection: DuckDBPyConnection) -> Mapping[str, list[figures.Count]]:
    hosts: defaultdict[str, list[figures.Count]] = defaultdict(list)
    for rule, host, count in connection.execute(_HOSTS).fetchall():
        hosts[rule].append(figures.Count(host, count))
    return hosts


def _rule(
    logged: str,
    denied: int,
    retried: int,
    hosts: list[figures.Count],
    reasons: Mapping[str, str | None],
    over_time: tuple[int, ...],
) -> figures.RuleDenials:
    rule = shown_field(logged) or NONE
    others = denied - sum(host.count for host in hosts)
    return figures.RuleDenials(
        rule, reasons.get(rule), denied, retried, tuple(hosts), others, over_time
    )


def _retried(
    row: tuple[str, str, str, str, str, int, datetime, datetime],
) -> figures.Retried:
    client, user, method, url, rule, denied, first, last = row
    shown, cut = truncate(redacted_url(url), URL_SHOWN)
    return figures.Retried(
        client=client_label(client, user),
        method=(shown_field(method) or NONE)[:_METHOD_SHOWN],
        url=shown,
        cut=cut,
        rule=shown_field(rule) or NONE,
        denied=denied,
        first=utc(first),
        last=utc(last),
    )
