"""`squidkeeper log` as it is called: files, filters, forms, and what it does with what
is no record.
"""

import gzip
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.cli.log import chosen_filters, log
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.record.log import filters
from squidkeeper.record.log.listing import (
    FindingRow,
    FindingTable,
    RequestRow,
    RequestTable,
)
from squidkeeper.record.log.record import parse_record
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS
from squidkeeper.record.table import listing
from squidkeeper.record.table.listing import select_rows
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import Table, open_table

from ..records import NOON, after_noon, record, record_line
from ..waiting import wait_for


def line(minute: float = 0, url: str = "https://open.example/x", **fields: Any) -> str:
    """A record that ended so many minutes after noon, as Squid writes it."""
    return record_line(
        **{"time": after_noon(60 * minute), "url": url, "revision": "-", **fields}
    ).decode()


DENIED: dict[str, Any] = {
    "verdict": "deny",
    "rule": "closed",
    "status": 403,
    "squid": "TCP_DENIED/HIER_NONE",
}
LINES = [
    line(0, observed="deny:no%20push"),
    line(
        1,
        "https://api.open.example/v1?x=1",
        user="ci-bot",
        status=404,
        request_id="1795683005.952.53.49078",
    ),
    line(
        2,
        "closed.example:443",
        method="CONNECT",
        connection="2",
        duration_ms=0,
        **{**DENIED, "status": 200},
    ),
    line(2, "https://closed.example/a/b?c", connection="2", **DENIED),
    line(3, "open.example:443", method="CONNECT", connection="3"),
    line(
        4,
        "http://203.0.113.7:8080/",
        client="2001:db8::7",
        method="POST",
        verdict="-",
        rule="-",
        status=503,
    ),
]
EVENTS = [event for number, event in enumerate(LINES) if number not in (2, 4)]


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def run(*arguments: str | Path) -> Said:
    done = CliRunner().invoke(main, ["log", *map(str, arguments)])
    return Said(done.exit_code, done.stdout, done.stderr)


def squidkeeper(
    *arguments: str | Path, **kind: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "squidkeeper", "log", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, **kind
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text("\n".join(LINES) + "\n")
    return path


POLICY = "version: 1\nrules:\n  - {name: open, action: allow, hosts: [open.example]}\n"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "policy.yaml").write_text(POLICY)
    return folder


# ── Forms ─────────────────────────────────────────────────────────────────────────────


def test_the_table_is_aligned_and_holds_the_whole_url(path: Path) -> None:
    said = run(path)
    assert said.lines == [
        "TIME                      CLIENT                VERDICT  RULE    STATUS  METHOD       MS  URL",
        "2026-11-25T12:00:00.000Z  192.168.137.2         allow    open       200  GET           3  https://open.example/x",
        "2026-11-25T12:01:00.000Z  ci-bot@192.168.137.2  allow    open       404  GET           3  "
        "https://api.open.example/v1?x=1",
        "2026-11-25T12:02:00.000Z  192.168.137.2         deny     closed     403  GET           3  "
        "https://closed.example/a/b?c",
        "2026-11-25T12:04:00.000Z  2001:db8::7           -        -          503  POST          3  "
        "http://203.0.113.7:8080/",
    ]
    assert said.err == (
        "6 records read, 4 requests shown. Not shown: the CONNECTs of 1 tunnel, and 1 that count with another "
        "(--connects shows all).\n"
    )
    assert said.code == 0


def test_json_lines_are_the_records_own(path: Path) -> None:
    assert run("--json", path).lines == EVENTS


def test_every_connect_is_shown_when_asked_for(path: Path) -> None:
    said = run("--json", "--connects", path)
    assert (said.lines, said.err) == (LINES, "")


COUNTED = {
    "host": {
        "open.example": 1,
        "api.open.example": 1,
        "closed.example": 1,
        "203.0.113.7": 1,
    },
    "rule": {"open": 2, "closed": 1, "-": 1},
    "client": {"192.168.137.2": 2, "ci-bot@192.168.137.2": 1, "2001:db8::7": 1},
    "status": {"200": 1, "404": 1, "403": 1, "503": 1},
    "path": {
        "https://open.example/x": 1,
        "https://api.open.example/v1": 1,
        "https://closed.example/a/b": 1,
        "http://203.0.113.7:8080/": 1,
        "open.example:443": 0,  # a tunnel
    },
}


@pytest.mark.parametrize("by", COUNTED)
def test_requests_are_counted_by_what_they_have_in_common(path: Path, by: str) -> None:
    counted = [json.loads(line) for line in run("--by", by, "--json", path).lines]
    assert {row[by]: row["requests"] for row in counted} == COUNTED[by]
    assert sum(row["denied"] for row in counted) == 1
    assert sum(row["bytes"] for row in counted) == 2000


def test_counts_are_a_table_the_most_first(path: Path) -> None:
    assert run("--by", "rule", path).lines == [
        "REQUESTS  DENIED  TUNNELS  BYTES  LAST                      RULE",
        "       2       0        1   1000  2026-11-25T12:03:00.000Z  open",
        "       1       0        0    500  2026-11-25T12:04:00.000Z  -",
        "       1       1        0    500  2026-11-25T12:02:00.000Z  closed",
    ]


def test_a_tunnel_is_no_request_of_the_rule_that_could_allow_one(path: Path) -> None:
    connect = {"method": "CONNECT", "tunnel": "open.example%3A443"}
    failed = line(
        0, "open.example:443", error="ERR_SECURE_ACCEPT_FAIL", connection="1", **connect
    )
    opened = line(1, "open.example:443", connection="2", **connect)
    inside = line(2, "https://open.example/", connection="2")
    closed = line(
        3,
        "closed.example:443",
        rule="closed",
        verdict="deny",
        connection="3",
        method="CONNECT",
    )
    path.write_text("".join(f"{text}\n" for text in (failed, opened, inside, closed)))

    def counted(*options: str) -> dict[str, tuple[int, int, int]]:
        rows = map(json.loads, run("--by", "rule", "--json", *options, path).lines)
        return {
            row["rule"]: (row["requests"], row["denied"], row["tunnels"])
            for row in rows
        }

    # also the one that was opened
    assert counted() == {
        "open": (1, 0, 2),
        "closed": (1, 1, 0),
    }
    assert counted("--connects") == {"open": (1, 0, 2), "closed": (1, 1, 0)}


def test_a_path_that_is_counted_is_cut(path: Path) -> None:
    paths = [*("x" * 8000 + str(number) for number in range(5)), "short"]
    path.write_text(
        "".join(f"{line(0, f'https://open.example/{other}')}\n" for other in paths)
    )
    counted = {
        row["path"]: row["requests"]
        for row in map(json.loads, run("--by", "path", "--json", path).lines)
    }
    assert counted == {
        f"https://open.example/{'x' * 479}…": 5,
        "https://open.example/short": 1,
    }


ERROR = "503:ERR_SQUIDKEEPER_NO_ADDRESS"


def test_errors_have_a_column_where_a_shown_request_has_one(path: Path) -> None:
    path.write_text(f"{line(0)}\n{line(1, status=503, error=ERROR)}\n")
    assert run("--until", "2026-11-25T12:00:30Z", path).lines[0].split()[-2:] == [
        "MS",
        "URL",
    ]
    assert run(path).lines == [
        "TIME                      CLIENT         VERDICT  RULE  STATUS  METHOD       MS  "
        "ERROR                           URL",
        "2026-11-25T12:00:00.000Z  192.168.137.2  allow    open     200  GET           3  "
        "-                               https://open.example/x",
        "2026-11-25T12:01:00.000Z  192.168.137.2  allow    open     503  GET           3  "
        "503:ERR_SQUIDKEEPER_NO_ADDRESS  https://open.example/x",
    ]


@pytest.mark.parametrize("newest", [1, 2, 9])
def test_the_newest_requests_are_shown_the_newest_last(path: Path, newest: int) -> None:
    said = run("--json", "-n", str(newest), path)
    assert (said.lines, said.err) == (EVENTS[-newest:], "")
    assert (
        run("--json", "-n", str(newest), "--host", ".open.example", path).lines
        == EVENTS[:2][-newest:]
    )


def test_a_long_log_is_shown_in_several_periods_as_in_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("\n".join([*LINES, "no record"]) + "\n")
    whole, newest = [run(*options, path) for options in ([], ["-n", "3"])]
    opened: list[object] = []

    def noted(sources: TableSources, *period: object, **given: Any) -> object:
        opened.append(period)
        return open_table(sources, *period, **given)  # type: ignore[arg-type] # what it was called with

    monkeypatch.setattr("squidkeeper.cli.log_table.open_table", noted)
    monkeypatch.setattr("squidkeeper.record.table.listing._FIRST_BYTES", 500)
    monkeypatch.setattr("squidkeeper.record.table.listing._GROWTH", 2)
    monkeypatch.setattr("squidkeeper.record.table.listing._LINE_BYTES", 200)
    split = run(path)
    assert len(opened) == 4
    without_errors = [
        " ".join(line.replace("  ERROR", "").replace("  -      http", "  http").split())
        for line in split.lines
    ]
    assert without_errors == [" ".join(line.split()) for line in whole.lines]
    assert split.err == whole.err
    opened.clear()
    assert run("-n", "3", path) == newest
    assert opened[0] != (None, None)


# ── Filters ───────────────────────────────────────────────────────────────────────────

FILTERS: list[tuple[tuple[str, ...], list[int]]] = [
    (("--client", "192.168.137.2"), [0, 1, 2]),
    (("--client", "192.168.137.0/30"), [0, 1, 2]),
    (("--client", "192.168.138.0/24"), []),
    (("--client", "2001:db8::/64"), [3]),
    (("--client", "2001:DB8:0::7"), [3]),
    (("--client", "ci-bot"), [1]),
    (("--client", "ci-bot", "--client", "2001:db8::7"), [1, 3]),
    (("--host", "open.example"), [0]),
    (("--host", ".open.example"), [0, 1]),
    (("--host", "*.open.example"), [1]),
    (("--host", "OPEN.example."), [0]),
    (("--host", "203.0.113.0/24"), [3]),
    (("--host", "open.example", "--host", "closed.example"), [0, 2]),
    (("--request-id", "1795683005.952.53.49078"), [1]),
    (("--request-id", "0.0.0"), []),
    (("--rule", "closed"), [2]),
    (("--rule", "closed", "--rule", "open"), [0, 1, 2]),
    (("--verdict", "allow"), [0, 1]),
    (("--verdict", "deny"), [2]),
    (("--verdict", "-"), [3]),
    (("--observed", "deny"), [0]),
    (("--observed", "deny:no push"), [0]),
    (("--observed", "deny:no", "--observed", "allow"), []),
    (("--status", "403"), [2]),
    (("--status", "4xx"), [1, 2]),
    (("--status", "4xx", "--status", "503"), [1, 2, 3]),
    (("--host", ".open.example", "--status", "4xx"), [1]),
    (("--failed",), [3]),
    (("--failed", "--verdict", "allow"), []),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    path = tmp_path_factory.mktemp("log") / "access.log"
    path.write_text("\n".join(LINES) + "\n")
    with open_table(TableSources(files=(path,))) as opened:
        yield opened


@pytest.mark.parametrize(
    ("options", "shown"), FILTERS, ids=[" ".join(options) for options, _ in FILTERS]
)
def test_a_filter_leaves_what_was_asked_for(
    table: Table, options: tuple[str, ...], shown: list[int]
) -> None:
    given = log.make_context("log", list(options)).params
    view = select_rows(
        table.connection,
        "requests",
        chosen_filters(given, Path("/nowhere"), NO_SESSIONS),
    )
    lines = [
        line.decode()
        for batch in listing.lines(table.connection, view, None)
        for line in batch
    ]
    assert lines == [EVENTS[number] for number in shown]


PERIODS: list[tuple[tuple[str, ...], list[int]]] = [
    (("--since", "2026-11-25T12:02:00Z"), [2, 3]),
    (("--since", "2026-11-25T13:02:00+01:00"), [2, 3]),
    (("--since", "2026-11-25 12:02"), [2, 3]),
    (("--since", "2026-11-26"), []),
    (("--until", "2026-11-25T12:02:00Z"), [0, 1]),
    (
        (
            "--since",
            "2026-11-25T12:01:00Z",
            "--until",
            "2026-11-25T12:02:00Z",
            "--status",
            "4xx",
        ),
        [1],
    ),
]


@pytest.mark.parametrize(
    ("options", "shown"), PERIODS, ids=[" ".join(options) for options, _ in PERIODS]
)
def test_a_period_leaves_what_ended_in_it(
    path: Path, options: tuple[str, ...], shown: list[int]
) -> None:
    assert run("--json", *options, path).lines == [EVENTS[number] for number in shown]


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({"status": 404}, False),
        ({"status": 500}, True),
        ({"status": 200, "error": "ERR_READ_ERROR"}, True),
        ({"status": 200, "error": "ERR_CLIENT_GONE"}, False),
        ({"status": 503, "error": "ERR_CLIENT_GONE"}, False),
        (
            {
                "status": 200,
                "error": "200:ERR_SQUIDKEEPER_TICKET",
                "rule": "ticket-page",
            },
            False,
        ),
        ({"status": 503, "verdict": "-"}, True),
        ({"status": 503, "verdict": "deny"}, False),
        ({"status": 431, "verdict": "-", "error": "ERR_TOO_BIG"}, False),
        (
            {
                "status": 431,
                "verdict": "-",
                "error": "ERR_TOO_BIG",
                "upstream": "192.0.2.1",
            },
            True,
        ),
        (
            {
                "status": 502,
                "verdict": "-",
                "method": "-",
                "url": "error:invalid-request",
            },
            False,
        ),
    ],
    ids=str,
)
def test_what_neither_policy_nor_client_caused_has_failed(
    path: Path, fields: dict[str, Any], failed: bool
) -> None:
    path.write_text(line(0, **fields) + "\n")
    assert len(run("--json", "--failed", path).lines) == failed
    assert report_of(path)["failed"] == failed


def test_log_and_report_have_the_same_period_and_the_same_tunnels(path: Path) -> None:
    connect = {"method": "CONNECT", "connection": "2"}
    lines = (
        line(0),
        line(1, "open.example:443", **connect),
        line(2, "https://open.example/", connection="2"),
    )
    path.write_text(
        "".join(
            f"{text}\n"
            for text in (*lines, line(3, "open.example:443", status=502, **connect))
        )
    )
    since = "2026-11-25T12:00:00.000500"  # within the millisecond of the first
    tunnels = [
        json.loads(line)["tunnels"]
        for line in run("--by", "host", "--json", "--since", since, path).lines
    ]
    reported = report_of(path, "--since", since)
    assert (len(run("--json", "--since", since, path).lines), sum(tunnels)) == (3, 2)
    assert (reported["requests"], reported["tunnels"]) == (3, 2)


def report_of(path: Path, *options: str) -> dict[str, int]:
    """Return the summary of the report of a log."""
    result = CliRunner().invoke(main, ["report", "--json", *options, str(path)])
    summary: dict[str, int] = json.loads(result.stdout)["summary"]
    return summary


CLIENTS = """
version: 1
clients:
  agents: {networks: [192.168.137.0/24]}
  six: {networks: [2001:db8::/32]}
  ci: {users: [ci-bot, other-bot]}
rules: [{name: open, action: allow, clients: [agents, six, ci], hosts: [open.example]}]
"""


@pytest.mark.parametrize(
    ("clients", "shown"),
    [
        ("agents", [0, 1, 2]),
        ("six", [3]),
        ("ci", [1]),
        ("ci-bot", [1]),
        ("six --client ci", [1, 3]),
        ("other-bot", []),
    ],
)
def test_a_client_of_the_policy_is_found_by_its_name(
    path: Path, policy: Path, clients: str, shown: list[int]
) -> None:
    (policy / "policy.yaml").write_text(CLIENTS)
    said = run("--json", "--policy", policy, "--client", *clients.split(), path)
    assert (said.lines, said.err) == ([EVENTS[number] for number in shown], "")


KINDS_OF_CLIENTS = """
version: 1
clients:
  ci: {users: [ci-bot, "b\u00f6t"]}
  pinned: {networks: [10.0.0.0/8, "2001:db8::/32"], users: [ci-bot]}
  dev: {token_sha256: [{sha256: d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35}]}
rules: [{name: open, action: allow, clients: [ci, pinned, dev], hosts: [open.example]}]
"""


@pytest.mark.parametrize(
    ("name", "client", "user", "belongs"),
    [
        ("ci", "192.168.0.1", "ci-bot", True),
        ("ci", "192.168.0.1", "b%C3%B6t", True),
        ("ci", "192.168.0.1", "dev", False),
        ("pinned", "10.0.0.9", "ci-bot", True),
        ("pinned", "2001:db8::7", "ci-bot", True),
        ("pinned", "10.0.0.9", "-", False),
        ("pinned", "192.168.0.1", "ci-bot", False),
        ("dev", "192.168.0.1", "dev", True),
        ("dev", "192.168.0.1", "-", False),
        ("b\u00f6t", "192.168.0.1", "b%C3%B6t", True),
        ("-", "192.168.0.1", "-", False),
    ],
)
def test_each_kind_of_client_is_found_by_its_name(
    policy: Path, name: str, client: str, user: str, belongs: bool
) -> None:
    (policy / "policy.yaml").write_text(KINDS_OF_CLIENTS)
    given = log.make_context("log", ["--client", name]).params
    (wanted,) = chosen_filters(given, policy, NO_SESSIONS)
    assert wanted.holds(record(client=client, user=user)) is belongs


def test_a_client_that_the_policy_does_not_have_is_said(
    path: Path, policy: Path
) -> None:
    (policy / "policy.yaml").write_text(CLIENTS)
    said = run(
        "--json", "--policy", policy, "--client", "agent", "--client", "ci-bot", path
    )
    assert said.lines == [EVENTS[1]]
    assert said.err == (
        f"--client agent: not an address, network, client or user of the policy in {policy}. "
        "Only a proxy user of this name matches.\n"
    )
    (policy / "policy.yaml").write_text("nonsense")
    said = run("--json", "--policy", policy, "--client", "ci-bot", path)
    assert said.lines == [EVENTS[1]]
    assert (
        said.err
        == f"{policy} does not load: --client finds proxy users only, no clients of it.\n"
    )


@pytest.mark.parametrize("options", [(), ("--json",), ("--by", "host")], ids=str)
def test_a_rule_that_neither_policy_nor_record_has_is_said(
    path: Path, policy: Path, options: tuple[str, ...]
) -> None:
    wanted = [f"--rule={name}" for name in ("opne", "closed", "default", "nosuch")]
    said = run(*options, "--policy", policy, *wanted, path)
    unknown = f"no such rule, neither in the policy ({policy}) nor in what was read"
    assert [line for line in said.err.splitlines() if "--rule" in line] == [
        f"--rule opne: {unknown}, did you mean 'open'?",
        f"--rule nosuch: {unknown}",
    ]
    assert said.lines


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("3d", 259_200), ("1w", 604_800)],
)
def test_spans_count_back_from_now(span: str, seconds: int) -> None:
    assert filters.parse_time_option(span, NOON) == NOON - timedelta(seconds=seconds)


REFUSED = [
    (
        ("--since", "yesterday"),
        "'yesterday' is not a time, expected 15m, 2h, 3d or one like 20",
    ),
    (("--since", "999999w"), "'999999w' is not a time"),
    (
        ("--status", "4x"),
        "'4x' is not a status, expected one such as 403, or a class such as 4xx",
    ),
    (
        ("--status", "9xx"),
        "'9xx' is not a status, expected one such as 403, or a class such as 4xx",
    ),
    (
        ("--host", "https://open.example/"),
        "is not a host pattern, expected example.com, .example.com",
    ),
    (
        ("--status", "099"),
        "'099' is not a status, expected one such as 403, or a class such as 4xx",
    ),
    (
        ("--since", "1m", "--until", "1h"),
        "the period ends before it begins: expected a time of --until after that of",
    ),
    (
        ("--until", "2026-11-25", "--since", "2026-11-25"),
        "the period ends before it begins",
    ),
    (("--archive", "/nonexistent"), "/nonexistent: there is no archive here"),
    (("--archive", "/etc"), "/etc: there is no archive here"),
    (("--follow", "--by", "host"), "--follow reads one log while it is written"),
    (("--drift", "--by", "host"), "--drift shows each request that it finds"),
    (("--follow", "-"), "--follow reads one log while it is written"),
    (("--follow", "-n", "3"), "--follow reads one log while it is written"),
    (("-n", "3", "--by", "host"), "--by counts all requests"),
    (("-n", "0"), "0 is not in the range x>=1"),
]


@pytest.mark.parametrize(
    ("options", "why"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED]
)
def test_what_cannot_be_meant_is_refused_with_what_was_expected(
    options: tuple[str, ...], why: str
) -> None:
    said = run(*options)
    assert said.code == 2
    assert why in " ".join(said.err.split())


@pytest.mark.parametrize(
    "options", [(), ("--by", "host"), ("--connects",), ("-n", "3")], ids=str
)
def test_what_was_read_is_said_where_nothing_is_shown(
    path: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "empty.log").touch()
    assert run(*options, tmp_path / "empty.log") == (
        0,
        "",
        "0 records read, no request shown.\n",
    )
    text = "0 records read from 2026-11-26 00:00:00 until 2026-11-27 00:00:00, no request shown.\n"
    assert run(*options, "--since", "2026-11-26", "--until", "2026-11-27", path) == (
        0,
        "",
        text,
    )
    (tmp_path / "empty.log").write_text(line() + "\n")
    assert run("--rule", "none", tmp_path / "empty.log") == (
        0,
        "",
        "1 record read, no request shown.\n",
    )


# ── Files ─────────────────────────────────────────────────────────────────────────────


def test_rotated_and_compressed_files_are_read_in_the_order_of_time(
    tmp_path: Path,
) -> None:
    files = [
        tmp_path / name for name in ("access.log", "access.log.1", "access.log.2.gz")
    ]
    for minute, file in zip((20, 10, 0), files, strict=True):
        content = f"{line(minute)}\n".encode()
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    assert [
        json.loads(line)["time"][11:16] for line in run("--json", *files).lines
    ] == ["12:00", "12:10", "12:20"]


@pytest.mark.system
@pytest.mark.parametrize("source", ["<(cat {})", "- <{}"])
def test_a_pipe_and_standard_input_are_read(path: Path, source: str) -> None:
    command = f"{sys.executable} -m squidkeeper log --json {source.format(path)}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == EVENTS


MISSING = "no such file or directory"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none", f"/none: {MISSING}"),
        ("", ": is a directory"),
        ("\x1b]0;\x07", f"/\\x1b]0;\\x07: {MISSING}"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, why: str
) -> None:
    assert run(tmp_path / name) == (2, "", f"Error: {tmp_path}{why}\n")


def test_lines_that_are_no_record_are_counted_and_the_first_is_named(
    path: Path,
) -> None:
    path.write_text(f"{line()}\nnot json\n{line(v=9)}\n{{}}\n{line(1)}\n")
    said = run("--json", path)
    assert said.lines == [line(), line(1)]
    assert said.err.startswith(
        f"3 invalid lines skipped; the first: {path}:2: not a squidkeeper record"
    )
    assert said.code == 0


@pytest.mark.parametrize(
    "time", ["yesterday", "\x1b[2J", "2026-11-25T12:00:00", "0001-01-01T00:00:00Z"]
)
def test_a_line_without_a_valid_time_is_no_record(path: Path, time: str) -> None:
    path.write_text(f"{line(time=time)}\n{line(1)}\n")
    said = run("--json", path)
    assert said.lines == [line(1)]
    expected = f"1 invalid line skipped; the first: {path}:1: not a squidkeeper record: its time is not a valid time\n"
    assert said.err == expected


def test_what_is_no_log_at_all_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_text("root:$6$salt$hash:19000:0:99999:7:::\n")
    said = run(secret)
    assert "hash" not in said.out + said.err
    assert "1 invalid line skipped" in said.err


# ── Terminals ─────────────────────────────────────────────────────────────────────────

ESCAPES = "\x1b]0;owned\x07 \x9b31m \u202e \x00 \x7f"


@pytest.mark.parametrize(
    "options",
    [[], ["--json"], ["--by", "path"], ["--by", "rule", "--json"], ["--drift"]],
    ids=str,
)
def test_nothing_in_a_log_steers_the_terminal(path: Path, options: list[str]) -> None:
    fields = {"rule": f"r{ESCAPES}", "client": f"c{ESCAPES}", "method": f"m{ESCAPES}"}
    path.write_text(
        json.dumps(
            {**json.loads(line()), **fields, "url": f"https://a.example/{ESCAPES}"}
        )
        + "\n"
    )
    raw = (
        path.read_text()
        .replace("\\u009b", "\x9b")
        .replace("\\u202e", "\u202e")
        .replace("\\u007f", "\x7f")
    )
    path.write_text(raw)  # a JSON string may hold these as they are
    parse_record(path.read_bytes().rstrip())
    said = run(*options, path)
    assert said.out
    assert all(line.isprintable() for line in said.lines)


def terminal(
    *arguments: str | Path, stdout_too: bool, **environment: str
) -> tuple[str, str]:
    """Run with stderr, and with stdout too, on a terminal; give what was written to it
    and to a piped stdout.
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "squidkeeper", "log", *map(str, arguments)],
        stdout=theirs if stdout_too else subprocess.PIPE,
        stderr=theirs,
        stdin=theirs,
        env={**os.environ, "TERM": "xterm", **environment},
    ) as process:
        os.close(theirs)
        piped = b"" if process.stdout is None else process.stdout.read()
        drawn = b"".join(_until_closed(ours))
    os.close(ours)
    return drawn.decode(), piped.decode()


def _until_closed(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            yield os.read(descriptor, 65_536)
        except OSError:
            return


@pytest.mark.system
def test_the_verdict_is_coloured_on_a_terminal_alone(path: Path) -> None:
    drawn, _ = terminal(path, stdout_too=True)
    assert "\x1b[31mdeny\x1b[0m" in drawn
    assert "\x1b[" not in terminal(path, stdout_too=True, NO_COLOR="1")[0]
    assert "\x1b[" not in run(path).out


@pytest.mark.system
@pytest.mark.parametrize("columns", [60, 80, 132])
@pytest.mark.parametrize("options", [(), ("--by", "path")], ids=str)
def test_a_line_fits_the_terminal_and_a_pipe_has_all_of_it(
    path: Path, policy: Path, options: tuple[str, ...], columns: int
) -> None:
    url = f"https://open.example/{'long/' * 30}end?key=value"
    fields: dict[str, Any] = {
        "rule": f"rule-{'x' * 40}",
        "client": "2001:db8:1111:2222:3333:4444:5:6",
    }
    path.write_text("\n".join([line(url=url, **fields), *LINES]) + "\n")
    command: list[str | Path] = [*options, "--policy", policy, path]
    drawn, _ = terminal(*command, stdout_too=True, NO_COLOR="1", COLUMNS=str(columns))
    shown = [row for row in drawn.splitlines() if re.search(r"2026-11-|\d\d:\d\d", row)]
    assert shown
    assert [row for row in shown if len(row) > columns] == []
    piped = run(*command)
    assert options or (url in piped.out and fields["rule"] in piped.out)


@pytest.mark.parametrize("columns", range(40, 200, 7))
def test_each_width_of_a_terminal_holds_time_verdict_status_and_host(
    columns: int,
) -> None:
    row = RequestRow(
        "2026-11-26T10:00:00.123Z",
        "someone@192.168.137.10",
        "deny",
        "a-rule-of-a-long-name",
        403,
        "OPTIONS",
        12_345,
        "503:ERR_SQUIDKEEPER_NO_ADDRESS",
        f"https://open.example/{'long/' * 30}end",
    )
    table = RequestTable(coloured=False, with_error=True, terminal=columns)
    header, shown = table.lines([row]).splitlines()
    assert max(len(header), len(shown)) <= columns
    for part in ("10:00:00", "  deny  ", " 403  ", "open.e"):
        assert part in shown
    assert shown.endswith("nd")
    found = FindingRow(
        row.time, row.client, "allowed", row.rule, row.status, row.method, row.url
    )
    lines = FindingTable(columns).lines([found]).splitlines()
    assert max(map(len, lines)) <= columns
    assert ("10:00:00" in lines[1], "allowed" in lines[1]) == (True, True)


@pytest.mark.system
def test_a_reader_that_goes_away_ends_it_quietly(path: Path) -> None:
    path.write_text(f"{line()}\n" * 50_000)
    command = f"set -o pipefail; {sys.executable} -m squidkeeper log {path} | head -n 2"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False
    )
    assert (len(done.stdout.splitlines()), done.stderr, done.returncode) == (2, "", 0)


# ── Drift ─────────────────────────────────────────────────────────────────────────────


def audited(path: Path, policy: Path, *fields: dict[str, Any]) -> None:
    """Write a log of the revision that is in force."""
    revision = load(policy, NOON).compiled.revision
    urls = (
        "http://open.example/",
        "http://closed.example/",
        "http://open.example/unasked",
    )
    own: list[dict[str, Any]] = [{}, {}, {"rule": "-", "verdict": "-"}]
    lines = [
        line(n, url, **{"revision": revision, **own[n]}) for n, url in enumerate(urls)
    ]
    path.write_text(
        "\n".join(
            [*lines, *(line(9, "http://open.example/", **field) for field in fields)]
        )
        + "\n"
    )


def test_drift_is_shown_with_what_the_policy_says(path: Path, policy: Path) -> None:
    audited(path, policy)
    said = run("--drift", "--policy", policy, "--state", path.parent, path)
    assert said.lines == [
        "TIME                      CLIENT           DRIFT       RULE                STATUS  METHOD   URL",
        "2026-11-25T12:01:00.000Z  192.168.137.2    allowed     default                200  GET      "
        "http://closed.example/",
        "2026-11-25T12:02:00.000Z  192.168.137.2    unasked     none                   200  GET      "
        "http://open.example/unasked",
    ]
    assert (said.code, said.err) == (1, "")


def test_a_url_that_the_record_cuts_off_is_marked_and_drift_counts_it_apart(
    path: Path, policy: Path
) -> None:
    url = f"http://open.example/{'l' * 4076}"
    revision = load(policy, NOON).compiled.revision
    path.write_text(
        f"{line(0, url, revision=revision, cut='9000:ab')}\n{line(1, url[:-1], revision=revision)}\n"
    )
    assert [line.endswith("l… (cut)") for line in run(path).lines] == [
        False,
        True,
        False,
    ]
    said = run("--drift", "--policy", policy, "--state", path.parent, path)
    assert (
        said.err
        == "1 served request not checked: the access log has only the beginning of a URL that decides\n"
    )
    assert (said.code, said.lines) == (0, [])


def test_drift_is_an_object_with_the_record_in_it(path: Path, policy: Path) -> None:
    audited(path, policy)
    said = run(
        "--drift",
        "--json",
        "--host",
        "closed.example",
        "--policy",
        policy,
        "--state",
        path.parent,
        path,
    )
    (found,) = map(json.loads, said.lines)
    assert (found["drift"], found["rule"]) == ("allowed", "default")
    assert found["reason"] == "No rule of the policy allows this request."
    assert found["record"] == json.loads(path.read_text().splitlines()[1])


def test_what_cannot_be_checked_is_said_and_is_no_drift(
    path: Path, policy: Path
) -> None:
    audited(path, policy, {"revision": "000000000000"})
    said = run(
        "--drift",
        "--rule",
        "open",
        "--since",
        "2026-11-25T12:05:00Z",
        "--policy",
        policy,
        "--state",
        "/gone",
        path,
    )
    assert (said.code, said.out) == (0, "")
    assert (
        said.err
        == "1 served request not checked: the revision that decided is not stored in /gone/revisions\n"
    )


def test_a_policy_that_does_not_load_leaves_the_revisions_that_are_kept(
    path: Path, policy: Path
) -> None:
    audited(path, policy)
    revision = load(policy, NOON).compiled.revision
    store_revision(read_sources(policy), revision, path.parent / "revisions")
    (policy / "policy.yaml").write_text("nonsense")
    said = run("--drift", "--policy", policy, "--state", path.parent, path)
    assert (said.code, len(said.lines), said.err) == (1, 3, "")


# ── Following ─────────────────────────────────────────────────────────────────────────


class Following:
    """`squidkeeper log --follow --json` and the lines it has shown."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [
            sys.executable,
            "-m",
            "squidkeeper",
            "log",
            "--follow",
            "--json",
            *map(str, arguments),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._out, self._err = self.process.stdout, self.process.stderr

    def next(self) -> str:
        return self._out.readline().rstrip("\n")

    def complaint(self) -> str:
        return self._err.readline().rstrip("\n")

    def interrupt(self) -> str:
        self.process.send_signal(2)
        _, err = self.process.communicate(timeout=60)
        return err


@pytest.mark.system
def test_a_log_is_followed_through_a_rotation_from_a_time_on(path: Path) -> None:
    path.with_name("access.log.1").write_text(f"{line(-5)}\n")
    path.write_text(f"{line(0)}\n")
    os.utime(path.with_name("access.log.1"), (NOON.timestamp(), NOON.timestamp()))
    following = Following("--since", "2026-11-25T11:55:00Z", path)
    assert [following.next(), following.next()] == [line(-5), line(0)]
    path.rename(path.with_name("access.log.0"))
    path.write_text(f"{line(1)}\n{line(2, **DENIED)}\n")
    assert [following.next(), following.next()] == [line(1), line(2, **DENIED)]
    assert following.interrupt() == ""
    assert following.process.returncode == 0


@pytest.mark.system
def test_a_followed_log_shows_what_comes_and_a_denied_connect_at_once(
    path: Path,
) -> None:
    following = Following("--rule", "closed", path)
    wait_until_open(following.process.pid, path)
    with path.open("a") as file:
        file.write(f"{line(5)}\n{LINES[2]}\n")
    assert following.next() == LINES[2]
    following.interrupt()


@pytest.mark.system
def test_a_log_that_is_not_there_is_waited_for_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    following = Following(path)
    assert following.complaint() == f"{path}: missing or unreadable; waiting for it."
    path.write_text(f"{line(1)}\n")
    assert following.next() == line(1)
    following.interrupt()


@pytest.mark.system
def test_who_may_not_read_the_record_is_told_who_may(path: Path) -> None:
    path.chmod(0o600)
    for folder in path.parents[:3]:
        folder.chmod(0o755)
    done = squidkeeper(path, user="nobody")
    assert (done.returncode, done.stdout) == (2, "")
    refused = f"Error: {path}: permission denied: only root and Squid's account can read the access log\n"
    assert done.stderr == refused
    done = squidkeeper("--follow", path, user="nobody")
    assert (done.returncode, done.stderr) == (2, refused)


def wait_until_open(pid: int, path: Path) -> None:
    def is_open() -> bool:
        links = Path(f"/proc/{pid}/fd").iterdir()
        return any(os.path.realpath(link) == str(path) for link in links)

    wait_for(is_open, "the log to be opened")


@pytest.mark.system
def test_an_account_that_may_not_look_into_the_state_folder_reads_a_log(
    path: Path, policy: Path
) -> None:
    audited(path, policy)
    closed = path.parent / "state"
    closed.mkdir(mode=0)
    as_nobody = (
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--reuid=0",
        sys.executable,
        "-m",
        "squidkeeper",
    )
    command = (
        *as_nobody,
        "log",
        "--policy",
        str(closed),
        "--state",
        str(closed),
        str(path),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4)
    done = subprocess.run(
        (*command, "--drift"), capture_output=True, text=True, check=False
    )
    unchecked = f"2 served requests not checked: the revision that decided is not stored in {closed}/revisions\n"
    assert (done.returncode, done.stderr) == (1, unchecked)


def test_without_a_file_the_newest_rotated_log_is_read_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a rotation the log is empty, and looks as if there had been no
    request.
    """
    monkeypatch.setattr("squidkeeper.cli.options.DEFAULT_LOG", path)
    before = run().out
    assert before == run(path).out
    path.rename(path.with_name(f"{path.name}.1"))
    path.touch()
    assert run().out == before
