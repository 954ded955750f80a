"""The report as text.

Clients chose hosts, URLs and user names, which `as_table` makes printable.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import chain
from typing import Final

from squidkeeper.base.formatting import (
    byte_size,
    milliseconds,
    quantity,
    thousands,
    timestamp,
)
from squidkeeper.policy.language.quotas import shown_cost
from squidkeeper.record.report.figures import Count, HostFigures, Report
from squidkeeper.record.table.rows import as_table

_ROWS_SHOWN: Final = 20  # of each section; JSON has all, and the page more
Rows = Sequence[Sequence[object]]


def text(report: Report) -> str:
    """Write the report as text: the sums, then a table for each section that holds
    something.
    """
    tables = (_table(*section) for section in _sections(report))
    return "".join([*_head(report), *chain.from_iterable(tables), *_left_out(report)])


def _head(report: Report) -> Iterator[str]:
    sums = report.summary
    if report.since and report.until:
        yield f"{timestamp(report.since)} to {timestamp(report.until)}\n"
    yield f"{quantity(sums.requests, 'request')}: {thousands(sums.allowed)} allowed, {thousands(sums.denied)} denied"
    yield f"; {thousands(sums.failed)} failed. {quantity(sums.clients, 'client')}, {quantity(sums.hosts, 'host')}, "
    yield f"{quantity(sums.tunnels, 'tunnel')}, {byte_size(sums.response_bytes)} to clients.\n"
    if report.clients_by != "client":
        yield f"Clients are counted by {report.clients_by}.\n"
    if sums.median_ms is not None and sums.p95_ms is not None:
        yield f"Of the allowed, half took up to {milliseconds(sums.median_ms)}, "
        yield f"95 % up to {milliseconds(sums.p95_ms)}.\n"


def _named(host: HostFigures) -> str:
    return f"{host.host} ({thousands(host.hosts)})" if host.hosts > 1 else host.host


def _sections(report: Report) -> Iterator[tuple[str, Sequence[str], Rows]]:
    yield (
        "hosts, the most requested first",
        ("host", "allowed", "denied", "sent"),
        [
            (_named(host), host.allowed, host.denied, byte_size(host.response_bytes))
            for host in report.traffic.hosts
        ],
    )
    yield (
        "clients",
        ("client", "allowed", "denied"),
        [
            (client.client, client.allowed, client.denied)
            for client in report.traffic.clients
        ],
    )
    yield (
        "denied, by rule",
        ("rule", "denied", "retried", "reason"),
        [
            (rule.rule, rule.denied, rule.retried, rule.reason)
            for rule in report.denials.rules
        ],
    )
    yield (
        "denied again and again",
        ("client", "method", "rule", "denied", "url"),
        [
            (retry.client, retry.method, retry.rule, retry.denied, retry.url)
            for retry in report.denials.retries
        ],
    )
    yield (
        "observed",
        ("observed", "requests", "clients"),
        [(row.observed, row.requests, row.clients) for row in report.observed.rows],
    )
    yield (
        "hosts first seen",
        ("host", "first", "client", "allowed", "denied"),
        [
            (one.host, timestamp(one.first), one.client, one.allowed, one.denied)
            for one in report.first_seen.hosts
        ],
    )
    yield (
        "failing upstreams",
        ("host", "requests", "5xx", "errors"),
        [
            (host.host, host.requests, host.server_errors, _names(host.errors))
            for host in report.upstreams.failing
        ],
    )
    yield (
        "ended by the client",
        ("client", "error", "requests", "host"),
        [
            (row.client, row.error, row.requests, row.host)
            for row in report.client_errors.rows
        ],
    )
    yield (
        "credentials",
        ("credential", "host", "requests", "refused", "failed"),
        [
            (use.credential, use.host, use.requests, use.refused, use.failed)
            for use in report.credentials.uses
        ],
    )
    used = (
        (("models", report.usage.models), ("clients of models", report.usage.clients))
        if report.usage
        else ()
    )
    for title, rows in used:
        yield (
            f"{title}, the dearest first",
            (
                "name",
                "requests",
                "reserved",
                "tokens_in",
                "cached",
                "tokens_out",
                "cost",
            ),
            [(*astuple(row)[:-1], shown_cost(row.cost)) for row in rows],
        )
    drift = report.drift.latest if report.drift else ()
    yield (
        "drift",
        ("time", "client", "method", "rule", "url"),
        [
            (
                timestamp(finding.time),
                finding.client,
                finding.method,
                finding.rule,
                finding.url,
            )
            for finding in drift
        ],
    )


def _names(counts: Sequence[Count]) -> str:
    return ", ".join(count.name for count in counts)


def _table(title: str, names: Sequence[str], rows: Rows) -> Iterator[str]:
    if rows:
        yield f"\n{title}\n"
        yield from as_table(names, rows[:_ROWS_SHOWN])
        if len(rows) > _ROWS_SHOWN:
            yield f"and {len(rows) - _ROWS_SHOWN} more, with --html PAGE or --json\n"


def _counted(left: Count) -> str:
    return (
        re.sub(r"^(connection|request|record|invalid line)s\b", r"\1", left.name)
        if left.count == 1
        else left.name
    )


def _left_out(report: Report) -> Iterator[str]:
    if report.left_out:
        yield "\nnot in these figures\n"
        yield from (
            f"{thousands(left_out.count)} {_counted(left_out)}\n"
            for left_out in report.left_out
        )
    if report.queried != report.summary.requests:
        yield f"With those that no rule decided, `squidkeeper query` counts {quantity(report.queried, 'request')}.\n"
    yield from (f"read in part: {file}\n" for file in report.damaged)
