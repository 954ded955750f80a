"""The figures of a report of 1,500 drawn records, in two periods, are those that were
counted in plain Python.

tests/data/report.json has these, a section in each line. It was written when a plain
count of the same records, and a thousand others, agreed with each figure. After a
change that is meant, this writes it again, for review: `PYTHONPATH=. .venv/bin/python
-m tests.record.test_report_figures`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from squidkeeper.record.log.record import NONE
from squidkeeper.record.report import figures
from squidkeeper.record.report.builder import COLUMNS, OF_DENIALS, build_report
from squidkeeper.record.report.period import Period
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table

from ..markup import HOSTILE
from ..records import NOON, after_noon, record_line

SNAPSHOT = Path(__file__).parents[1] / "data/report.json"
PERIODS = ((None, None), (20, 100))  # seconds after noon
INVALID = (b"", b"no record", b'{"v":1}', b'{"v":2}')
TEXTS = (
    NONE,
    "",
    "a",
    "a%2Cb",
    "b%2ca",
    "%FF",
    "%C3%A9",
    *(text for text in HOSTILE if text != "\ud800"),
)
HOSTS = (
    "a.example",
    "B.example",
    "[::1]",
    "x" * 300,
    "",
    "user:secret@a.example",
    "%C3%BC.example",
    "a.example:444",
)
PATHS = ("", "/", "/x?q=1", "/x?q=2", "/x#y", "/" + "x" * 500, "/a@b")
URLS = (
    *(
        f"{start}{host}{path}"
        for start in ("https://", "http://", "")
        for host in HOSTS
        for path in PATHS
    ),
    *(f"https://h{number}.example/x" for number in range(60)),
)
FETCHED = (
    *(
        f"https%3A%2F%2F{host}"
        for host in (
            "mirror.example%2Fx",
            "mirror.example%3A444%2Fy",
            "Mirror.example%2F",
        )
    ),
    *(
        "https%3a%2f%2fmirror.example%2fx",
        "https://mirror.example/",
        "https%3A%2F%2F%5B%3A%3A1%5D%2F",
        "%FF",
    ),
)
ERRORS = (
    "ERR_CONNECT_FAIL",
    "ERR_CLIENT_GONE",
    "ERR_SECURE_ACCEPT_FAIL",
    "ERR_ACCESS_DENIED",
    "403:ERR_SQUIDKEEPER_X",
)
# Nine times in ten one of the first, so that values repeat and requests are of every
# kind; else one of the second.
FIELDS: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    "client": (("192.0.2.1", "192.0.2.2", "2001:db8::1"), TEXTS),
    "user": ((NONE, NONE, "ci", "c%C3%AFlia", "u" * 70), TEXTS),
    "method": (("GET", "GET", "POST", "CONNECT"), TEXTS),
    "url": (
        (*URLS, *["https://a.example/x", "a.example:443"] * 20),
        ("error:transaction-end-before-headers", NONE),
    ),
    "status": ((200, 200, 304, 403, 503), (0, 400, 401, 404, 500, 501)),
    "bytes": ((0, 1, 500), (-1, 10**12)),
    "duration_ms": ((0, 1, 2, 3, 50), (10**6,)),
    "verdict": (("allow", "allow", "deny"), (NONE,)),
    "rule": (("no", "default", "credential-unavailable"), TEXTS),
    "credential": ((NONE, NONE, "token", "token%2Cother"), TEXTS),
    "fetched": ((NONE,), (*FETCHED, *TEXTS)),
    "tunnel": ((NONE, "a.example%3A443"), ("a.example%3A443%20first",)),
    "page": ((NONE, "denied"), ("asked",)),
    "upstream": ((NONE, "203.0.113.1", "203.0.113.1"), (NONE,)),
    "upstream_ms": (
        ("0", "3", "10", "90000"),
        (NONE, " 1", "1.5", "1e3", "-1", "9" * 30),
    ),
    "error": ((NONE, NONE, NONE, NONE, *ERRORS), TEXTS),
    "observed": (
        (NONE, NONE, NONE, "deny:default", "deny:later"),
        ("allow:w%C3%AFder", *TEXTS),
    ),
    "squid": (
        ("TCP_MISS/HIER_DIRECT", "NONE_NONE/HIER_NONE"),
        ("NONE_NONE_ABORTED/HIER_NONE", "TCP_TUNNEL/HIER_DIRECT"),
    ),
    "connection": (("1", "2"), ("3",)),
}


def lines() -> Iterator[bytes]:
    chosen = random.Random(1)
    for number in range(1500):
        fields = {
            name: chosen.choice(both[chosen.random() > 0.9])
            for name, both in FIELDS.items()
        }
        yield record_line(time=after_noon(number // 10), **fields)
        if number % 100 == 0:
            yield INVALID[number // 100 % len(INVALID)]


def reports() -> Iterator[dict[str, Any]]:
    """Report each period of the same log."""
    with NamedTemporaryFile() as log:
        log.writelines(line + b"\n" for line in lines())
        log.flush()
        for period in PERIODS:
            since, until = (
                None if after is None else NOON + timedelta(seconds=after)
                for after in period
            )
            with open_table(
                TableSources((Path(log.name),)), columns=COLUMNS, partial=OF_DENIALS
            ) as table:
                report = build_report(
                    table.connection,
                    Period(since, until),
                    files=(),
                    now=NOON,
                    reasons=lambda rule, _: {"no": "Because."}.get(rule),
                    invalid=table.skipped.count,
                )
            yield json.loads(figures.as_json(report))


def test_each_figure_is_that_of_a_plain_count() -> None:
    expected = json.loads(SNAPSHOT.read_text())
    for period, report, known in zip(PERIODS, reports(), expected, strict=True):
        assert {
            name: value for name, value in report.items() if value != known[name]
        } == {}, period


if __name__ == "__main__":
    written = [
        {name: json.dumps(value) for name, value in report.items()}
        for report in reports()
    ]
    texts = (
        ",\n".join(f'"{name}": {value}' for name, value in one.items())
        for one in written
    )
    SNAPSHOT.write_text("[{\n" + "\n},{\n".join(texts) + "\n}]\n")
