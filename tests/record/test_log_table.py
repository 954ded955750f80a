"""What `squidkeeper log` shows by the table is what a plain Python reading shows, of
any records.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.record.log import filters
from squidkeeper.record.log.drift import DriftChecker, Effective, PastPolicies
from squidkeeper.record.log.listing import RequestRow, request_row
from squidkeeper.record.log.record import NONE, Record, format_time, parse_record
from squidkeeper.record.table import listing
from squidkeeper.record.table.columns import JUDGED
from squidkeeper.record.table.drift_table import DriftTable
from squidkeeper.record.table.listing import select_rows
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import Table, open_table

from ..plain_reading import counted, fold, read_lines
from ..records import NOON, after_noon, record_line

POLICY = """
version: 1
clients:
  agents: {networks: [192.168.137.0/24]}
  ci: {users: [ci-bot, "b\\u00f6t"]}
  pinned: {networks: [10.0.0.0/8], users: [ci-bot]}
  dev: {token_sha256: [{sha256: d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35}]}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: no-admin, action: deny, hosts: [paths.example], paths: [/admin/**]}
  - {name: lapses, action: allow, hosts: [lapses.example], expires: 2026-11-25T12:00:00Z}
  - {name: reading, action: allow, hosts: [reading.example], methods: [GET]}
  - {name: asked, action: allow, hosts: [query.example], query: {q: "1"}}
  - {name: open, action: allow, clients: [agents, ci, dev], hosts: [open.example, paths.example, api.example]}
  - {name: front, action: allow, hosts: [front.example]}
  - {name: whole, action: allow, hosts: [whole.example], paths: [/v1/x, /admin/**]}
  - {name: between, action: allow, hosts: [between.example], paths: ["/v1/*"]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://api.example{path}"}
secrets:
  token: {env: DRIFT_TEST_TOKEN}
credentials:
  - {name: api, hosts: [api.example], paths: [/v1/**], bearer: token}
"""
NEWER = "version: 1\nrules:\n  - {name: only, action: allow, hosts: [open.example], methods: [GET]}\n"


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[CompiledPolicy]:
    found = []
    for text in (POLICY, NEWER):
        folder = tmp_path_factory.mktemp("policy")
        (folder / "policy.yaml").write_text(text)
        found.append(load(folder, datetime(2026, 11, 24, tzinfo=UTC)).compiled)
    return found


# --- records --------------------------------------------------------------------------

NAMES = [
    f"{name}.example"
    for name in (
        "open",
        "paths",
        "closed",
        "lapses",
        "reading",
        "query",
        "api",
        "front",
        "whole",
        "between",
    )
]
PATHS = (
    "/",
    *("/v1/x", "/v1/x/", "/v1/x.", "/v1/x?y", "/v1/y", "/v1"),
    "/admin/x",
    "/x?q=1",
    "/x?q=2&p",
    "/%61dmin/x",
    "/a//b",
    "/x#y",
    "/" + "l" * 4100,
    '/"\\\x00\u00e9',
)
URLS = [
    *(
        f"{scheme}://{host}{path}"[:4096]
        for scheme in ("http", "https")
        for host in NAMES
        for path in PATHS
    ),
    *(f"{host}:443" for host in NAMES),
    *(
        "-",
        "error:x",
        "http://[2001:db8::7]/",
        "http://OPEN.example:80",
        "https://open.example?x",
        "x://y://z",
    ),
]
CHOICES: dict[str, tuple[Any, ...]] = {
    "client": (
        "192.168.137.2",
        "192.168.137.2",
        "10.0.0.9",
        "2001:db8::7",
        "no address",
        NONE,
    ),
    "user": (NONE, NONE, "ci-bot", "dev", "b%C3%B6t", "%ff", "agents"),
    "method": ("GET", "GET", "GET", "POST", "CONNECT", NONE, '"'),
    "url": tuple(URLS),
    "status": (200, 200, 200, 101, 403, 404, 500, 503, 0),
    "bytes": (0, 1, 2**40),
    "duration_ms": (0, 3, 3, 3, 70_000, 2**62),
    "verdict": ("allow", "allow", "allow", "deny", NONE),
    "rule": ("open", "closed", "r\u202e", NONE),
    "credential": (NONE, NONE, "api", "api,other"),
    "fetched": (NONE, NONE, "https%3A%2F%2Fapi.example%2Fv1%2Fx"),
    "sni": (NONE, "open.example", "closed.example"),
    "tunnel": (NONE, "open.example%3A443", "closed.example%3A443%20first"),
    "error": (
        NONE,
        NONE,
        NONE,
        "ERR_CLIENT_GONE",
        "503:ERR_SQUIDKEEPER_NO_ADDRESS",
        '"\\',
    ),
    "squid": (
        *(
            "TCP_MISS/HIER_DIRECT",
            "TCP_MISS/HIER_DIRECT",
            "NONE_NONE/HIER_NONE",
            "TCP_DENIED/HIER_NONE",
        ),
        *(
            "TCP_DENIED_REPLY/HIER_DIRECT",
            "TCP_TUNNEL/HIER_DIRECT",
            "NONE_NONE_ABORTED/HIER_NONE",
            NONE,
        ),
    ),
    "connection": ("1", "2"),
    "hidden": (NONE, NONE, "fragment", "userinfo"),
    "request_id": ("1.2.3.4", NONE),
    "worker": (NONE, "2"),
    "page": (NONE, "denied"),
}
LINES = 400
SEEDS = [
    *range(2),
    *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40)),
]


def written(folder: Path, seed: int, revisions: list[str]) -> TableSources:
    """Write a log of random records, most of them nearly as Squid writes them, a few
    lines in another form.
    """
    chosen = random.Random(seed)
    path = folder / "access.log"
    lines = [_line(chosen, number, revisions) for number in range(LINES)]
    path.write_bytes(b"\n".join([*lines, b"no record", b""]))
    return TableSources(files=(path,))


def _line(chosen: random.Random, number: int, revisions: list[str]) -> bytes:
    url = chosen.choice(URLS)
    host = url.partition("://")[2].partition("/")[0]
    inside = {"sni": host, "tunnel": f"{host}%3A443"} if url.startswith("https") else {}
    connect = (
        {"method": "CONNECT", "squid": "NONE_NONE/HIER_NONE"}
        if url.endswith(":443")
        else {}
    )
    names = chosen.sample(list(CHOICES), chosen.choice((0, 1, 2, 3, len(CHOICES))))
    changed = {name: chosen.choice(CHOICES[name]) for name in names}
    at = after_noon(number // 4 + chosen.choice((0, 0.001, 10, 10.001)))
    line = record_line(
        time=at,
        revision=chosen.choice(revisions),
        **{"url": url, **inside, **connect, **changed},
    )
    return line if chosen.random() < 0.8 else line.replace(b'","', b'", "', 1)


def plain(sources: TableSources) -> list[Record]:
    return read_lines(sources.files[0].read_bytes().splitlines()).records


def shown(table: Table, view: str, newest: int | None = None) -> list[Record]:
    return [
        parse_record(line)
        for lines in listing.lines(table.connection, view, newest)
        for line in lines
    ]


# --- filters and forms ----------------------------------------------------------------

CLIENTS = [
    "192.168.137.2",
    "10.0.0.0/8",
    "2001:db8::/32",
    "agents",
    "ci",
    "pinned",
    "dev",
    "ci-bot",
    "b\u00f6t",
    "nobody",
]
FILTERS: dict[str, Callable[[CompiledPolicy], filters.Selecting]] = {
    **{
        f"client {who}": lambda policy, who=who: filters.of_client(
            [who], policy.source.clients
        )  # type: ignore[misc]
        for who in CLIENTS
    },
    "clients": lambda policy: filters.of_client(
        ["10.0.0.9", "dev"], policy.source.clients
    ),
    "host": lambda _: filters.of_host(["open.example"]),
    "hosts": lambda _: filters.of_host([".example", "2001:db8::/32"]),
    "any host": lambda _: filters.of_host(["*"]),
    "rule": lambda _: filters.of_rule(["open", NONE]),
    "no rule": lambda _: filters.of_rule(["'; DROP TABLE loaded_lines"]),
    "verdict": lambda _: filters.of_verdict("deny"),
    "no verdict": lambda _: filters.of_verdict(NONE),
    "status": lambda _: filters.of_status(["4xx", "200"]),
    "request ID": lambda _: filters.of_request_id(["1.2.3.4"]),
    "failed": lambda _: filters.failed(),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_each_filter_and_each_form_is_that_of_the_plain_reading(
    tmp_path: Path, policies: list[CompiledPolicy], seed: int
) -> None:
    policy = policies[0]
    sources = written(tmp_path, seed, [policy.revision])
    records = plain(sources)
    requests = fold(records).requests
    with open_table(sources) as table:
        assert shown(table, "records") == records
        assert shown(table, "requests") == requests
        assert shown(table, "requests", 5) == requests[-5:]
        assert listing.count_records(table.connection) == (
            len(records),
            fold(records).tunnels,
        )
        assert rows(table, "requests") == list(map(request_row, requests))
        for name, made in FILTERS.items():
            grant = made(policy)
            assert shown(
                table, select_rows(table.connection, "requests", [grant])
            ) == list(filter(grant.holds, requests)), name
        both = [FILTERS["hosts"](policy), FILTERS["status"](policy)]
        view = select_rows(table.connection, "requests", both)
        assert shown(table, view) == [
            asked for asked in requests if all(holding.holds(asked) for holding in both)
        ]
        for by in listing.KEYS:
            assert by_key(table, by) == [
                (
                    key,
                    row.requests,
                    row.denied,
                    row.tunnels,
                    row.bytes,
                    format_time(row.last),
                )
                for key, row in sorted(
                    counted(requests, records, by).items(),
                    key=lambda one: (-one[1].requests, -one[1].tunnels, one[0]),
                )
            ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_columns_that_are_needed_are_enough(
    tmp_path: Path, policies: list[CompiledPolicy], seed: int
) -> None:
    policy = policies[0]
    sources = written(tmp_path, seed, [policy.revision])
    records = plain(sources)
    with open_table(sources, columns=listing.ROW_FIELDS) as table:
        assert rows(table, "requests") == list(map(request_row, fold(records).requests))
    with open_table(sources, columns=listing.ROW_FIELDS, folds=False) as table:
        assert rows(table, "records") == list(map(request_row, records))
        assert listing.count_records(table.connection) == (
            len(records),
            fold(records).tunnels,
        )
        with pytest.raises(duckdb.CatalogException):
            rows(table, "requests")


def rows(table: Table, view: str) -> list[RequestRow]:
    return [
        row
        for batch in listing.request_rows(table.connection, view, None)
        for row in batch
    ]


def by_key(table: Table, by: str) -> list[tuple[str, int, int, int, int, str]]:
    counts = listing.Groups.count(
        table.connection, "requests", "records", by
    ).most_first()
    return [
        (
            count.key,
            count.requests,
            count.denied,
            count.tunnels,
            count.bytes,
            count.last,
        )
        for count in counts
    ]


# --- drift ----------------------------------------------------------------------------


def checker(
    policies: list[CompiledPolicy], effective: tuple[Effective, ...]
) -> DriftChecker:
    """Judge by two revisions, of which the second replaces the first."""
    past = PastPolicies(Path("/nowhere"))
    past._read_at = float("inf")
    past._effective = effective
    past._places = {
        revision.revision: place for place, revision in enumerate(effective)
    }
    past._known.update({policy.revision: policy for policy in policies})
    return DriftChecker(past, replacing=past.replacing)


def test_drift_of_every_path_of_a_host_is_that_of_each_record(
    tmp_path: Path, policies: list[CompiledPolicy]
) -> None:
    path = tmp_path / "access.log"
    revision = policies[0].revision
    urls = [url for url in URLS if url.startswith("https://")]
    lines = [_served(url, revision) for url in (*urls, *reversed(urls))]
    path.write_bytes(b"\n".join([*lines, b""]))
    expected = [
        record.url
        for record in map(parse_record, lines)
        if checker(policies, ()).check(record)
    ]
    with open_table(TableSources(files=(path,))) as table:
        DriftTable(table.connection, "records", checker(policies, ()))
        found = [
            parse_record(line).url
            for batch in listing.findings(table.connection, None)
            for *_, line in batch
        ]
        ((asked,),) = table.connection.execute(
            "SELECT count(*) FROM drift_questions"
        ).fetchall()
    assert found == expected
    assert len(expected) > 40
    assert asked < len(urls), "what has one answer is asked once"


def test_drift_tells_a_denial_without_a_rule_and_clients_without_an_address_apart(
    tmp_path: Path, policies: list[CompiledPolicy]
) -> None:
    path = tmp_path / "access.log"
    undecided = {"rule": NONE, "revision": NONE}
    different: tuple[dict[str, Any], ...] = (
        *({"verdict": verdict, **undecided} for verdict in ("deny", NONE)),
        *(
            {"client": client, "revision": policies[0].revision}
            for client in ("no address", "another", NONE)
        ),
    )
    lines = [
        record_line(time=after_noon(at), **fields)
        for at, fields in enumerate(different * 20)
    ]
    path.write_bytes(b"\n".join([*lines, b""]))
    expected = [
        found.reason
        for record in map(parse_record, lines)
        if (found := checker(policies, ()).check(record))
    ]
    with open_table(TableSources(files=(path,))) as table:
        DriftTable(table.connection, "records", checker(policies, ()))
        told = [
            reason
            for batch in listing.findings(table.connection, None)
            for _, _, reason, _ in batch
        ]
    assert told == expected
    assert len({*expected}) == len(different)


def _served(url: str, revision: str) -> bytes:
    host = url.split("/")[2].partition("?")[0]
    return record_line(url=url, revision=revision, sni=host, tunnel=f"{host}%3A443")


@pytest.mark.parametrize("seed", SEEDS)
def test_drift_is_that_of_each_record(
    tmp_path: Path, policies: list[CompiledPolicy], seed: int
) -> None:
    revisions = [
        policies[0].revision,
        policies[1].revision,
        policies[0].revision,
        "000000000000",
        NONE,
    ]
    effective = tuple(
        Effective(policy.revision, NOON + timedelta(seconds=60 * number))
        for number, policy in enumerate(policies)
    )
    sources = written(tmp_path, seed, revisions)
    one_by_one, at_once = checker(policies, effective), checker(policies, effective)
    expected = [
        (one, str(found.kind), found.rule, found.reason)
        for one in plain(sources)
        if (found := one_by_one.check(one))
    ]
    with open_table(sources) as table:
        DriftTable(table.connection, "records", at_once, effective)
        judged = [
            (parse_record(line), kind, rule, reason)
            for batch in listing.findings(table.connection, None)
            for kind, rule, reason, line in batch
        ]
    with open_table(sources, columns=JUDGED, folds=False) as table:
        DriftTable(table.connection, "records", checker(policies, effective), effective)
        of_few_columns = (
            "SELECT kind, finding_rule, reason FROM drift ORDER BY time, position"
        )
        few = table.connection.execute(of_few_columns).fetchall()
    assert few == [tuple(answer) for _, *answer in judged]
    assert judged == expected
    assert {kind for _, kind, *_ in judged} >= {"allowed", "unasked"}
    assert any("long replaced" in reason for *_, reason in judged)
    assert (at_once.unchecked, at_once.cut) == (one_by_one.unchecked, one_by_one.cut)
