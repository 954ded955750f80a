"""The figures of the report's SQL are those of a plain Python count of the same records."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squidkeeper.record.log.record import NONE, Record
from squidkeeper.record.report import figures
from squidkeeper.record.report.builder import COLUMNS, build_report
from squidkeeper.record.report.period import Period
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table

from ..markup import HOSTILE
from ..plain_reading import read_lines
from ..plain_report import plain_report
from ..records import NOON, after_noon, record

REASONS = {"no": "Because.", "default": None}
HOSTS = ("a.example", "B.example", "[::1]", "x" * 300, "", "user:secret@a.example", "%C3%BC.example", "a.example:444")
PATHS = ("", "/", "/x?q=1", "/x?q=2", "/x#y", "/" + "x" * 500, "/a@b")
TEXT = st.sampled_from(
    [NONE, "", "a", "a%2Cb", "b%2ca", "%FF", "%C3%A9", *(text for text in HOSTILE if text != "\ud800")]
)


def mostly(*usual: object, otherwise: st.SearchStrategy[object] = TEXT) -> st.SearchStrategy[object]:
    """Choose one of these nine times in ten, so that values repeat and requests are of every kind."""
    return st.integers(0, 9).flatmap(lambda chance: st.sampled_from(usual) if chance else otherwise)


URLS = st.builds(
    lambda start, host, path: f"{start}{host}{path}",
    st.sampled_from(["https://", "http://", ""]),
    st.sampled_from(HOSTS),
    st.sampled_from(PATHS),
)
FETCHED = st.sampled_from(
    [
        *(
            "https%3A%2F%2Fmirror.example%2Fx",
            "https%3A%2F%2Fmirror.example%3A444%2Fy",
            "https%3A%2F%2FMirror.example%2F",
        ),
        *("https%3a%2f%2fmirror.example%2fx", "https://mirror.example/", "https%3A%2F%2F%5B%3A%3A1%5D%2F", "%FF"),
    ]
)
ERRORS = (
    *("ERR_CONNECT_FAIL", "ERR_CLIENT_GONE", "ERR_SECURE_ACCEPT_FAIL", "ERR_ACCESS_DENIED"),
    "403:ERR_SQUIDKEEPER_TEXT",
)
RECORDS = st.builds(
    lambda after, **values: record(time=after_noon(after / 2), **values),
    after=st.integers(0, 60),
    client=mostly("192.0.2.1", "192.0.2.2", "2001:db8::1"),
    user=mostly(NONE, NONE, "ci", "c%C3%AFlia", "u" * 70),
    method=mostly("GET", "GET", "POST", "CONNECT"),
    url=mostly("a.example:443", "error:transaction-end-before-headers", otherwise=URLS) | URLS,
    status=st.sampled_from([200, 200, 0, 304, 400, 401, 403, 404, 500, 501, 503]),
    bytes=st.sampled_from([0, 1, 500, -1, 10**12]),
    duration_ms=st.sampled_from([0, 1, 2, 3, 50, 10**6]),
    verdict=st.sampled_from(["allow", "deny", NONE]),
    rule=mostly("no", "default", "credential-unavailable", NONE),
    credential=mostly(NONE, NONE, "token", "token%2Cother"),
    fetched=mostly(NONE, NONE, otherwise=FETCHED | TEXT),
    tunnel=st.sampled_from([NONE, "a.example%3A443"]),
    page=st.sampled_from([NONE, "denied", "asked"]),
    upstream=st.sampled_from([NONE, "203.0.113.1"]),
    upstream_ms=mostly(NONE, "0", "3", "10", "90000", otherwise=st.sampled_from([" 1", "1.5", "1e3", "-1", "9" * 30])),
    error=mostly(NONE, NONE, *ERRORS),
    observed=mostly(NONE, NONE, "deny:default", "deny:later", "allow:w%C3%AFder"),
    squid=mostly("TCP_MISS/HIER_DIRECT", "NONE_NONE_ABORTED/HIER_NONE", "TCP_TUNNEL/HIER_DIRECT"),
    connection=st.sampled_from(["1", "2"]),
)
MOMENTS = st.none() | st.integers(-5, 35).map(lambda seconds: NOON + timedelta(seconds=seconds))


INVALID = st.sampled_from([b"", b"no record", b'{"v":1}', b'{"v":2}'])


def report_of(lines: list[bytes], since: datetime | None, until: datetime | None) -> figures.Report:
    with NamedTemporaryFile() as log:
        log.writelines(b"%b\n" % line for line in lines)
        log.flush()
        with open_table(TableSources((Path(log.name),)), columns=COLUMNS) as table:
            invalid = table.skipped.count
            return build_report(
                table.connection, Period(since, until), files=(), now=NOON, reasons=REASONS, invalid=invalid
            )


@pytest.mark.parametrize("examples", [12, pytest.param(1000, marks=pytest.mark.long)])
def test_each_figure_is_that_of_a_plain_count(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(RECORDS | INVALID, max_size=60), MOMENTS, MOMENTS)
    def each_figure(records: list[Record | bytes], since: datetime | None, until: datetime | None) -> None:
        compare(records, since, until)

    each_figure()


def compare(records: list[Record | bytes], since: datetime | None, until: datetime | None) -> None:
    lines = [one if isinstance(one, bytes) else msgspec.json.encode(one) for one in records]
    reading = read_lines(lines)
    expected = plain_report(reading.records, since, until, now=NOON, reasons=REASONS, invalid=reading.invalid)
    assert msgspec.to_builtins(report_of(lines, since, until)) == msgspec.to_builtins(expected)
