"""The report as text. Clients chose hosts, URLs and user names, which `as_table` makes printable."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from squidkeeper.base.formatting import byte_size, milliseconds, quantity, thousands, timestamp
from squidkeeper.record.report.figures import Count, Report
from squidkeeper.record.table.rows import as_table

_ROWS_SHOWN: Final = 20  # of each section; JSON has all, and the page more
Rows = Sequence[Sequence[object]]


def text(report: Report) -> str:
    """Write the report as text: the sums, then a table for each section that holds something."""
    tables = (_table(*section) for section in _sections(report))
    return "".join([*_head(report), *chain.from_iterable(tables), *_left_out(report)])


def _head(report: Report) -> Iterator[str]:
    sums = report.summary
    if report.since and report.until:
        yield f"{timestamp(report.since)} to {timestamp(report.until)}\n"
    yield f"{quantity(sums.requests, 'request')}: {thousands(sums.allowed)} allowed, {thousands(sums.denied)} denied"
    yield f"; {thousands(sums.failed)} failed. {quantity(sums.clients, 'client')}, {quantity(sums.hosts, 'host')}, "
    yield f"{quantity(sums.tunnels, 'tunnel')}, {byte_size(sums.response_bytes)} to clients.\n"
    if sums.median_ms is not None and sums.p95_ms is not None:
        yield f"Of the allowed, half took up to {milliseconds(sums.median_ms)}, "
        yield f"95 % up to {milliseconds(sums.p95_ms)}.\n"


def _sections(report: Report) -> Iterator[tuple[str, Sequence[str], Rows]]:
    yield (
        "hosts, the most requested first",
        ("host", "allowed", "denied", "sent"),
        [(one.host, one.allowed, one.denied, byte_size(one.response_bytes)) for one in report.traffic.hosts],
    )
    yield (
        "clients",
        ("client", "allowed", "denied"),
        [(one.client, one.allowed, one.denied) for one in report.traffic.clients],
    )
    yield (
        "denied, by rule",
        ("rule", "denied", "retried", "reason"),
        [(one.rule, one.denied, one.retried, one.reason) for one in report.denials.rules],
    )
    yield (
        "denied again and again",
        ("client", "method", "rule", "denied", "url"),
        [(one.client, one.method, one.rule, one.denied, one.url) for one in report.denials.retries],
    )
    yield (
        "observed",
        ("observed", "requests", "clients"),
        [(one.observed, one.requests, one.clients) for one in report.observed.rows],
    )
    yield (
        "hosts first seen",
        ("host", "first", "client", "allowed", "denied"),
        [(one.host, timestamp(one.first), one.client, one.allowed, one.denied) for one in report.first_seen.hosts],
    )
    yield (
        "failing upstreams",
        ("host", "requests", "5xx", "errors"),
        [(one.host, one.requests, one.server_errors, _names(one.errors)) for one in report.upstreams.failing],
    )
    yield (
        "ended by the client",
        ("client", "error", "requests", "host"),
        [(one.client, one.error, one.requests, one.host) for one in report.client_errors.rows],
    )
    yield (
        "credentials",
        ("credential", "host", "requests", "refused", "failed"),
        [(one.credential, one.host, one.requests, one.refused, one.failed) for one in report.credentials.uses],
    )
    drift = report.drift.latest if report.drift else ()
    yield (
        "drift",
        ("time", "client", "method", "rule", "url"),
        [(timestamp(one.time), one.client, one.method, one.rule, one.url) for one in drift],
    )


def _names(counts: Sequence[Count]) -> str:
    return ", ".join(one.name for one in counts)


def _table(title: str, names: Sequence[str], rows: Rows) -> Iterator[str]:
    if rows:
        yield f"\n{title}\n"
        yield from as_table(names, rows[:_ROWS_SHOWN])
        if len(rows) > _ROWS_SHOWN:
            yield f"and {len(rows) - _ROWS_SHOWN} more, with --html PAGE or --json\n"


def _left_out(report: Report) -> Iterator[str]:
    if report.left_out:
        yield "\nnot in these figures\n"
        yield from (f"{thousands(one.count)} {one.name}\n" for one in report.left_out)
    if report.queried != report.summary.requests:
        yield f"With those that no rule decided, `squidkeeper query` counts {quantity(report.queried, 'request')}.\n"
    yield from (f"read in part: {one}\n" for one in report.damaged)
