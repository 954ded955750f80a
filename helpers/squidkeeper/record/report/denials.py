"""What was denied: by rule, and the requests that were denied again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.listing import shown_field
from squidkeeper.record.log.record import NONE, decode_field, redacted_url, truncate
from squidkeeper.record.report import figures
from squidkeeper.record.report.period import client_label, utc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

URL_SHOWN: Final = 400  # characters
Reasons = Callable[[str, str], str | None]  # of a rule, in a revision
_HOSTS_SHOWN = 5
_RETRIES_SHOWN = 20
_METHOD_SHOWN = 40

_DENIED: Final = r"""
    CREATE TEMP VIEW denied AS
    SELECT
        time, client, "user", method, host, rule, revision,
        regexp_replace(regexp_extract(url, '^[^?#]*'), '^((?i:[a-z][a-z0-9+.-]*)://)?[^/?#]*@', '\1***@') AS url
    FROM reported WHERE denied
"""
_DENYING: Final = """
    CREATE TEMP TABLE denying AS
    SELECT rule, row_number() OVER (ORDER BY rule) AS number FROM (SELECT DISTINCT rule FROM denied)
"""
# A retry is of the same client, method, and URL without query, fragment and password:
# of the same hash. Each can be another one, so a group has numbers alone. Texts in its
# state could not be spilled. A moment is a time and the number of a rule.
_SAME: Final = """md5_number(concat_ws(' ', client, "user", method, url))"""
_RULES_AT_MOST: Final = 2**20
_MOMENT: Final = f"(epoch_us(time)::HUGEINT * {_RULES_AT_MOST} + number)"
_TIME: Final = f"make_timestamp(({{moment}} // {_RULES_AT_MOST})::BIGINT)"
_NUMBER: Final = f"{{moment}} % {_RULES_AT_MOST}"
_REQUESTS: Final = f"""
    CREATE TEMP TABLE denied_requests AS
    SELECT {_SAME} AS same, count(*) AS denied, min({_MOMENT}) AS first, max({_MOMENT}) AS last
    FROM denied JOIN denying USING (rule) GROUP BY ALL
"""
_RULES: Final = f"""
    SELECT rule, denied, denied - coalesce(requests, 0), revision
    FROM (
        SELECT rule, count(*) AS denied, max_by(revision, time) AS revision FROM denied GROUP BY ALL
    ) JOIN denying USING (rule)
    LEFT JOIN (
        SELECT {_NUMBER.format(moment="first")} AS number, count(*) AS requests FROM denied_requests GROUP BY ALL
    ) USING (number)
    ORDER BY denied DESC, rule
"""
_HOSTS: Final = f"""
    SELECT rule, host, count(*) AS number FROM denied GROUP BY rule, host
    QUALIFY row_number() OVER (PARTITION BY rule ORDER BY number DESC, host) <= {_HOSTS_SHOWN}
    ORDER BY number DESC, host
"""
_RETRIED: Final = f"""
    CREATE TEMP TABLE retried AS
    FROM denied_requests WHERE denied > 1 ORDER BY denied DESC, last DESC, same LIMIT {_RETRIES_SHOWN}
"""
_RETRIES: Final = f"""
    SELECT
        client, "user", method, url, denying.rule, retried.denied,
        {_TIME.format(moment="first")}, {_TIME.format(moment="last")}
    FROM (SELECT DISTINCT client, "user", method, url, {_SAME} AS same FROM denied SEMI JOIN retried ON same = {_SAME})
    JOIN retried USING (same) JOIN denying ON number = {_NUMBER.format(moment="last")}
    ORDER BY retried.denied DESC, client, "user", method, url
"""


def denials(
    connection: DuckDBPyConnection,
    reasons: Reasons,
    over_time: Mapping[str, tuple[int, ...]],
) -> figures.DenialFigures:
    """Return what was denied; `reasons` tells that of a rule, `over_time` has the
    denials of each rule as logged.
    """
    for statement in (_DENIED, _DENYING, _REQUESTS, _RETRIED):
        connection.execute(statement)
    hosts = _hosts(connection)
    rules = connection.execute(_RULES).fetchall()
    return figures.DenialFigures(
        rules=tuple(
            _rule(
                rule,
                denied,
                retried,
                hosts[rule],
                reasons(decode_field(rule) or NONE, revision),
                over_time.get(rule, ()),
            )
            for rule, denied, retried, revision in rules
        ),
        retried=sum(retried for _, _, retried, _ in rules),
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
    reason: str | None,
    over_time: tuple[int, ...],
) -> figures.RuleDenials:
    rule = shown_field(logged) or NONE
    others = denied - sum(host.count for host in hosts)
    return figures.RuleDenials(
        rule, reason, denied, retried, tuple(hosts), others, over_time
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
