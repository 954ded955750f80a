"""Records compared with the policy: requests that were served and should not have been,
and nothing else.
"""

import gc
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from weakref import ref

import pytest
from cachetools import LRUCache

from squidkeeper.policy.engine import CompiledPolicy, Stage, decide
from squidkeeper.policy.policy_store.loading import load, load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.record.log.drift import (
    DriftChecker,
    DriftKind,
    Finding,
    PastPolicies,
    was_served,
)
from squidkeeper.record.log.record import NONE, Record, format_time

from .. import records

POLICY = """
version: 1
clients:
  agents: {networks: [192.168.137.0/24]}
  ci: {users: [ci-bot]}
  dev:
    token_sha256:
      - {sha256: d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35, expires: 2026-11-25T12:00:00Z}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: no-admin, action: deny, hosts: [paths.example], paths: [/admin/**]}
  - {name: brackets, action: allow, hosts: [brackets.example], paths: ["/a[1]"]}
  - {name: lapses, action: allow, hosts: [lapses.example], expires: 2026-11-25T12:00:00Z}
  - {name: reading, action: allow, hosts: [reading.example], methods: [GET]}
  - name: open
    action: allow
    hosts: [open.example, paths.example, api.example, old.example, moved.example, "2001:db8::10", 203.0.113.7]
  - {name: front, action: allow, hosts: [front.example]}
  - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}
rewrites:
  - {name: front, hosts: [front.example], to: "https://api.example{path}"}
  - {name: moved, hosts: [moved.example], to: "https://open.example{path}", redirect: 308}
secrets:
  token: {env: DRIFT_TEST_TOKEN}
credentials:
  - {name: api, hosts: [api.example], paths: [/v1/**], bearer: token}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledPolicy:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy.yaml").write_text(POLICY)
    return load(folder, datetime(2026, 11, 25, tzinfo=UTC)).compiled


@pytest.fixture
def drift(compiled: CompiledPolicy) -> DriftChecker:
    return DriftChecker({compiled.revision: compiled}.get, lambda: compiled)


@pytest.fixture
def record(compiled: CompiledPolicy) -> Callable[..., Record]:
    def make(url: str, **fields: Any) -> Record:
        values = {
            "time": "2026-11-25T11:00:00.000Z",
            "url": url,
            "revision": compiled.revision,
        }
        if url.startswith("https://"):
            host = url.split("/")[2].partition(":")[0]
            values |= {"sni": host, "tunnel": quote(f"{host}:443", safe="")}
        return records.record(**{**values, **fields})

    return make


CONNECT = {"method": "CONNECT", "squid": "NONE_NONE/HIER_DIRECT"}
NOT_SERVED: list[dict[str, Any]] = [
    {
        "squid": "NONE_NONE/HIER_NONE",
        "method": "CONNECT",
        "verdict": "deny",
    },  # each request inside is denied
    {
        "squid": "TCP_DENIED/HIER_NONE",
        "status": 403,
        "error": "403:ERR_SQUIDKEEPER_DENIED",
        "verdict": "deny",
    },
    {"squid": "TCP_DENIED_ABORTED/HIER_NONE", "status": 403, "verdict": "deny"},
    {
        "squid": "TCP_DENIED/HIER_NONE",
        "status": 407,
        "error": "ERR_CACHE_ACCESS_DENIED",
        "verdict": NONE,
    },
    {
        "squid": "TCP_DENIED/HIER_NONE",
        "method": "CONNECT",
        "verdict": "deny",
        "error": "403:ERR_SQUIDKEEPER_DENIED",
    },
    {
        "squid": "NONE_NONE/HIER_NONE",
        "status": 403,
        "error": "403:ERR_SQUIDKEEPER_DENIED",
        "verdict": "deny",
    },
    {
        "squid": "TCP_DENIED_REPLY/HIER_NONE",
        "status": 403,
        "error": "403:ERR_SQUIDKEEPER_DENIED",
        "verdict": "deny",
    },
    {
        "squid": "TCP_DENIED_REPLY/HIER_DIRECT",
        "status": 403,
        "error": "ERR_SECURE_CONNECT_FAIL",
        "verdict": "deny",
    },
    {
        "squid": "NONE_NONE/HIER_NONE",
        "status": 400,
        "error": "ERR_INVALID_URL",
        "verdict": NONE,
    },
    {"squid": "NONE_NONE/HIER_NONE", "status": 0, "verdict": NONE},
    {
        "squid": "NONE_NONE/HIER_DIRECT",
        "status": 503,
        "error": "ERR_SECURE_CONNECT_FAIL",
        "verdict": NONE,
    },
    {
        "squid": "NONE_NONE_ABORTED/HIER_NONE",
        "method": "CONNECT",
        "error": "ERR_CLIENT_GONE",
        "verdict": "deny",
    },
    {
        "squid": "NONE_NONE_ABORTED/HIER_NONE",
        "method": "CONNECT",
        "error": "ERR_READ_ERROR",
        "verdict": "deny",
    },
    {"squid": "NONE_NONE_ABORTED/HIER_NONE", "method": "CONNECT"},
    {
        "squid": "NONE_NONE/HIER_NONE",
        "method": "CONNECT",
        "error": "ERR_PROTOCOL_UNKNOWN",
    },
    {
        "squid": "TCP_MISS/HIER_NONE",
        "status": 503,
        "error": "ERR_CANNOT_FORWARD",
        "verdict": "deny",
    },
    {"squid": "TCP_MISS_ABORTED/HIER_NONE", "status": 0, "verdict": "deny"},
]
SERVED: list[dict[str, Any]] = [
    {},
    {"squid": "TCP_MISS/HIER_DIRECT", "status": 404},
    {
        "squid": "TCP_MISS_ABORTED/HIER_DIRECT",
        "status": 502,
        "error": "ERR_INVALID_RESP",
    },
    {"squid": "TCP_MEM_HIT/HIER_NONE"},
    {"squid": "TCP_HIT/HIER_NONE"},
    {"squid": "TCP_IMS_HIT/HIER_NONE", "status": 304},
    {"squid": "TCP_REFRESH_MODIFIED/HIER_DIRECT"},
    {"squid": "TCP_REFRESH_UNMODIFIED/HIER_DIRECT", "status": 304},
    {"squid": "TCP_MISS/FIRSTUP_PARENT"},
    {
        "squid": "TCP_DENIED_REPLY/HIER_DIRECT",
        "status": 403,
        "error": "ERR_ACCESS_DENIED",
    },
    {"squid": "TCP_REDIRECT/HIER_NONE", "status": 308},
    {"squid": "NONE_NONE/HIER_DIRECT", "method": "CONNECT"},
    {"squid": "NONE_NONE/HIER_NONE", "method": "CONNECT"},
    {"squid": "TCP_TUNNEL/HIER_DIRECT", "method": "CONNECT"},
]


def words(fields: dict[str, Any]) -> str:
    return " ".join(map(str, fields.values())) or "plain"


@pytest.mark.parametrize("fields", NOT_SERVED, ids=words)
def test_what_squid_denied_or_answered_itself_is_not_served(
    drift: DriftChecker, record: Callable[..., Record], fields: dict[str, Any]
) -> None:
    served = record("https://closed.example/", **fields)
    assert not was_served(served)
    assert drift.check(served) is None


@pytest.mark.parametrize("fields", SERVED, ids=words)
def test_what_came_of_an_origin_or_a_cache_or_opened_a_tunnel_is_served(
    drift: DriftChecker, record: Callable[..., Record], fields: dict[str, Any]
) -> None:
    url = (
        "closed.example:443"
        if fields.get("method") == "CONNECT"
        else "http://closed.example/"
    )
    served = record(url, **fields)
    assert was_served(served)
    assert found(drift.check(served)) == ("allowed", "closed")
    assert found(
        drift.check(record(url, **{**fields, "rule": NONE, "verdict": NONE}))
    ) == ("unasked", "none")


SPLICED = {**CONNECT, "squid": "TCP_TUNNEL/HIER_DIRECT"}


@pytest.mark.parametrize(
    ("host", "sni", "fields", "finding"),
    [
        ("pinned.example", "pinned.example", SPLICED, None),
        ("pinned.example", "PINNED.example.", SPLICED, None),
        ("pinned.example", "-", CONNECT, None),  # the first line, of the CONNECT
        ("open.example", "open.example", CONNECT, None),
        ("pinned.example", "-", SPLICED, ("allowed", "authority-mismatch")),
        ("pinned.example", "open.example", SPLICED, ("allowed", "authority-mismatch")),
        (
            "open.example",
            "open.example",
            SPLICED,
            ("allowed", "invalid-request"),
        ),  # the policy has it bumped
        ("closed.example", "closed.example", SPLICED, ("allowed", "closed")),
    ],
)
def test_a_tunnel_that_passed_through_is_drift_unless_the_policy_passes_it_through(
    drift: DriftChecker,
    record: Callable[..., Record],
    host: str,
    sni: str,
    fields: dict[str, Any],
    finding: tuple[str, str] | None,
) -> None:
    for _ in range(2):  # once decided, once remembered
        served = record(
            f"{host}:443", **fields, sni=sni, tunnel=quote(f"{host}:443", safe="")
        )
        assert found(drift.check(served)) == finding


def test_the_second_line_of_a_tunnel_is_not_taken_for_the_first(
    drift: DriftChecker, record: Callable[..., Record]
) -> None:
    same = {"sni": "open.example", "tunnel": "open.example%3A443"}
    assert drift.check(record("open.example:443", **CONNECT, **same)) is None
    assert found(drift.check(record("open.example:443", **SPLICED, **same))) == (
        "allowed",
        "invalid-request",
    )


def found(finding: Finding | None) -> tuple[str, str] | None:
    return (finding.kind.value, finding.rule) if finding else None


TOO_MANY_READINGS = "/a/..;/b//..;c/../d;e/..//f./.;/g//../h;i//..;/" * 3


def test_some_paths_can_be_read_in_too_many_ways(compiled: CompiledPolicy) -> None:
    url = f"https://open.example{TOO_MANY_READINGS}"
    match = compiled.match(request_to("GET", url))
    assert (
        decide(compiled, match, datetime.now(UTC), Stage.URL).rule == "invalid-request"
    )


DUE: list[tuple[str, dict[str, Any]]] = [
    ("http://open.example/x?y", {}),
    ("https://open.example/x", {}),
    ("open.example:443", CONNECT),
    (
        "open.example:443",
        {**CONNECT, "tunnel": "open.example%3A443"},
    ),  # its own answer names it so
    ("https://paths.example/public", {}),
    ("https://reading.example/x", {"rule": "reading"}),
    ("reading.example:443", {**CONNECT, "rule": "reading"}),
    ("http://%5B2001:db8::10%5D/", {}),
    ("http://[2001:db8::10]:80/", {}),
    ("http://203.0.113.7/", {}),
    ("https://api.example/v1/x", {"credential": "api"}),
    (
        "https://api.example/v1/x",
        {},
    ),  # a value that another release withheld is not drift
    ("https://api.example/other", {}),
    (
        "http://front.example/v1/x",
        {"credential": "api", "fetched": "https%3A%2F%2Fapi.example%2Fv1%2Fx"},
    ),
    (
        "http://moved.example/x",
        {
            "squid": "TCP_REDIRECT/HIER_NONE",
            "fetched": "https%3A%2F%2Fopen.example%2Fx",
        },
    ),
    ("http://brackets.example/a%5B1%5D", {"rule": "brackets"}),  # sent as [ and ]
    (
        f"https://open.example{TOO_MANY_READINGS}",
        {},
    ),  # the host is open whole: nobody is asked about its paths
    (
        "http://open.example/%ff%00",
        {"squid": "TCP_DENIED/HIER_NONE", "status": 403, "verdict": "deny"},
    ),
    ("https://open.example/x", {"sni": NONE}),
    ("https://open.example/x", {"sni": "OPEN.example"}),
]


@pytest.mark.parametrize(
    ("url", "fields"), DUE, ids=[f"{url[:40]} {words(fields)}" for url, fields in DUE]
)
def test_what_the_policy_allows_is_no_finding(
    drift: DriftChecker, record: Callable[..., Record], url: str, fields: dict[str, Any]
) -> None:
    assert drift.check(record(url, **fields)) is None
    assert drift.unchecked == 0


UNDUE: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("https://closed.example/x", {}, ("allowed", "closed")),
    ("closed.example:443", CONNECT, ("allowed", "closed")),
    ("https://paths.example/admin/x", {}, ("allowed", "no-admin")),
    ("https://paths.example/%61dmin/x", {}, ("allowed", "no-admin")),
    ("https://paths.example/x/..%2fadmin/x", {}, ("allowed", "ambiguous-path")),
    ("https://unknown.example/x", {}, ("allowed", "default")),
    ("https://reading.example/x", {"method": "POST"}, ("allowed", "default")),
    ("http://open.example:8080/x", {}, ("allowed", "default")),
    ("https://open.example/%00", {}, ("allowed", "invalid-request")),
    (
        "https://open.example/x",
        {"tunnel": "closed.example%3A443"},
        ("allowed", "authority-mismatch"),
    ),
    (
        "https://open.example/x",
        {"sni": "closed.example"},
        ("allowed", "authority-mismatch"),
    ),
    ("https://open.example/x", {"tunnel": NONE}, ("allowed", "invalid-request")),
    ("http://10.0.0.5/x", {}, ("allowed", "default")),
    (
        "https://open.example/x",
        {"verdict": "deny", "rule": "closed"},
        ("allowed", "closed"),
    ),
    ("https://open.example/x", {"rule": NONE, "verdict": NONE}, ("unasked", "none")),
    ("https://open.example/x", {"revision": NONE}, ("unasked", "none")),
    (
        "open.example:443",
        {**CONNECT, "rule": NONE, "verdict": NONE},
        ("unasked", "none"),
    ),
    ("https://open.example/x", {"credential": "api"}, ("credential", "open")),
    ("https://api.example/other", {"credential": "api"}, ("credential", "open")),
    ("https://api.example/v1/x", {"credential": "api,other"}, ("credential", "open")),
    (
        "https://api.example/v1/x",
        {"credential": "api", "method": "OPTIONS"},
        ("credential", "open"),
    ),
    ("http://api.example/v1/x", {"credential": "api"}, ("credential", "open")),
    (
        "http://front.example/v1/x",
        {},
        ("allowed", "policy-unavailable"),
    ),  # it went where it was sent, not rewritten
    ("http://not a host/", {}, ("allowed", "invalid-request")),
]


@pytest.mark.parametrize(
    ("url", "fields", "finding"),
    UNDUE,
    ids=[f"{url[:40]} {words(fields)}" for url, fields, _ in UNDUE],
)
def test_what_the_policy_does_not_allow_is_found(
    drift: DriftChecker,
    record: Callable[..., Record],
    url: str,
    fields: dict[str, Any],
    finding: tuple[str, str],
) -> None:
    for _ in range(2):  # once judged, once remembered
        assert found(drift.check(record(url, **fields))) == finding


@pytest.mark.parametrize(
    ("keys", "finding"),
    [("sealed_tokens: {keys: [token]}", None), ("", ("credential", "open"))],
)
def test_a_sealed_token_is_due_where_the_policy_has_a_key_for_it(
    tmp_path: Path,
    record: Callable[..., Record],
    keys: str,
    finding: tuple[str, str] | None,
) -> None:
    (tmp_path / "policy.yaml").write_text(f"{POLICY}{keys}\n")
    policy = load(tmp_path, datetime(2026, 11, 25, tzinfo=UTC)).compiled
    assert policy is not None
    drift = DriftChecker(lambda _: policy, lambda: policy)
    sealed = record("https://open.example/x", credential="sealed-token")
    checked = drift.check(sealed)
    assert (checked and found(checked)) == finding


AROUND_NOON = [
    ("2026-11-25T11:59:59.990Z", 5, True),
    (
        "2026-11-25T12:00:02.000Z",
        0,
        True,
    ),  # Squid's answer of before noon was still kept
    ("2026-11-25T12:00:30.000Z", 29_000, True),  # it began before
    ("2026-11-25T12:00:04.000Z", 500, False),
    ("2026-11-25T13:00:00.000Z", 5, False),
]


@pytest.mark.parametrize("what", ["a rule", "a token"])
@pytest.mark.parametrize(
    ("time", "duration_ms", "due"), AROUND_NOON, ids=[time for time, *_ in AROUND_NOON]
)
def test_what_lapses_counts_as_long_as_its_answers_are_kept(
    drift: DriftChecker,
    record: Callable[..., Record],
    time: str,
    duration_ms: int,
    due: bool,
    what: str,
) -> None:
    is_rule = what == "a rule"
    fields = {"rule": "lapses"} if is_rule else {"user": "dev"}
    served = record(
        f"http://{'lapses' if is_rule else 'open'}.example/",
        time=time,
        duration_ms=duration_ms,
        **fields,
    )
    for _ in range(2):  # once decided, once remembered
        assert found(drift.check(served)) == (
            None if due else ("allowed", "default" if is_rule else "login-refused")
        )


def test_what_cannot_be_held_against_a_revision_is_counted(
    drift: DriftChecker, record: Callable[..., Record]
) -> None:
    assert drift.check(record("https://open.example/", revision="gone")) is None
    assert drift.check(record("https://lapses.example/", time="no time")) is None
    assert (
        drift.check(record("https://lapses.example/", time="2026-11-25T11:00:00"))
        is None
    )
    assert drift.check(record("https://lapses.example/", duration_ms=2**62)) is None
    assert drift.unchecked == 4


LONG = "l" * 5000


def test_a_url_that_the_record_cuts_off_is_counted_apart_where_it_decides(
    drift: DriftChecker, record: Callable[..., Record]
) -> None:
    def cut(url: str, **fields: str) -> Finding | None:
        return drift.check(record(url[:4096], cut="5021:" + "0" * 32, **fields))

    assert cut(f"https://closed.example/{LONG}") == Finding(
        DriftKind.ALLOWED, "closed", "The rule closed denies this."
    )
    assert drift.cut == 0
    assert cut(f"https://paths.example/{LONG}") is None
    assert cut(f"https://open.example/{LONG}", credential="api") is None
    assert drift.check(record("http://front.example/", fetched="x" * 4096)) is None
    assert (drift.cut, drift.unchecked) == (3, 0)


def test_revisions_that_are_kept_are_judged_by_and_others_looked_for_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled: CompiledPolicy,
    record: Callable[..., Record],
) -> None:
    clock = [100.0]
    monkeypatch.setattr("squidkeeper.record.log.drift.time.monotonic", lambda: clock[0])
    write_policy(tmp_path / "policy", POLICY)
    sources = read_sources(tmp_path / "policy")
    revision = load_sources(
        sources, datetime(2026, 11, 25, tzinfo=UTC)
    ).compiled.revision
    kept = PastPolicies(tmp_path / "revisions")
    assert kept(revision) is None
    store_revision(sources, revision, tmp_path / "revisions")
    assert kept(revision) is None  # a disk is not read for each line
    clock[0] += 2
    found_policy = kept(revision)
    assert found_policy is not None
    assert found_policy.revision == revision
    assert kept(revision) is found_policy
    assert kept("../../etc") is None
    assert found(
        DriftChecker(kept).check(record("https://closed.example/", revision=revision))
    ) == (
        "allowed",
        "closed",
    )
    assert (
        PastPolicies(tmp_path / "none", lambda: compiled)(compiled.revision) is compiled
    )


@pytest.mark.parametrize(
    ("seconds_after", "duration_ms", "expected"),
    [(59, 2, None), (62, 2, ("allowed", "closed")), (62, 10_000, None)],
)
def test_what_an_outdated_revision_allowed_is_held_against_the_one_that_had_replaced_it(
    tmp_path: Path,
    record: Callable[..., Record],
    seconds_after: int,
    duration_ms: int,
    expected: tuple[str, str] | None,
) -> None:
    replaced = datetime(2026, 11, 25, 10, tzinfo=UTC)
    old = kept_at(
        tmp_path,
        "version: 1\ndefaults: {action: allow}\n",
        replaced - timedelta(hours=1),
    )
    kept_at(
        tmp_path,
        "version: 1\nrules: [{name: closed, action: deny, hosts: [closed.example]}]\n",
        replaced,
    )
    policies = PastPolicies(tmp_path / "revisions")
    served = record(
        "https://closed.example/",
        revision=old,
        time=format_time(replaced + timedelta(seconds=seconds_after)),
        duration_ms=duration_ms,
    )
    finding = DriftChecker(policies, replacing=policies.replacing).check(served)
    assert (finding and found(finding)) == expected
    assert finding is None or finding.reason.startswith(
        f"Decided by {old}, long replaced. "
    )


def test_a_policy_that_was_put_back_is_not_outdated(
    tmp_path: Path, record: Callable[..., Record]
) -> None:
    allows, first = (
        "version: 1\ndefaults: {action: allow}\n",
        datetime(2026, 11, 25, 10, tzinfo=UTC),
    )
    old = kept_at(tmp_path, allows, first)
    kept_at(tmp_path, "version: 1\n", first + timedelta(minutes=10))
    assert kept_at(tmp_path, allows, first + timedelta(minutes=20)) == old
    policies = PastPolicies(tmp_path / "revisions")
    for minutes in (5, 25, 90):
        served = record(
            "https://open.example/",
            revision=old,
            time=format_time(first + timedelta(minutes=minutes)),
        )
        assert (
            DriftChecker(policies, replacing=policies.replacing).check(served) is None
        )


def kept_at(folder: Path, policy: str, loaded: datetime) -> str:
    (folder / "policy").mkdir(exist_ok=True)
    (folder / "policy/policy.yaml").write_text(policy)
    sources = read_sources(folder / "policy")
    revision = load_sources(sources, loaded).compiled.revision
    store_revision(sources, revision, folder / "revisions")
    os.utime(folder / "revisions" / revision, (loaded.timestamp(), loaded.timestamp()))
    return revision


def test_only_so_many_policies_are_held_in_memory(
    tmp_path: Path, record: Callable[..., Record]
) -> None:
    """Whatever is remembered of what was judged by them."""
    kept = PastPolicies(tmp_path / "revisions")
    drift = DriftChecker(kept)
    policies = []
    for number in range(12):
        write_policy(
            tmp_path / "policy",
            POLICY.replace("rules:", f"defaults: {{reason: r{number}}}\nrules:"),
        )
        sources = read_sources(tmp_path / "policy")
        revision = load_sources(sources, datetime.now(UTC)).compiled.revision
        store_revision(sources, revision, tmp_path / "revisions")
        compiled = kept(revision)
        assert compiled is not None
        assert drift.check(record("https://open.example/", revision=revision)) is None
        policies.append(ref(compiled))
    del compiled
    gc.collect()
    assert [policy() is not None for policy in policies] == [False] * 8 + [True] * 4


def write_policy(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "policy.yaml").write_text(text)


def test_a_record_without_a_tunnel_that_it_needs_is_not_confused_with_one_remembered(
    drift: DriftChecker, record: Callable[..., Record]
) -> None:
    assert drift.check(record("https://open.example/x")) is None
    assert found(drift.check(record("https://open.example/x", tunnel="x"))) == (
        "allowed",
        "authority-mismatch",
    )
    assert found(
        drift.check(record("https://open.example/x", client="10.9.9.9", method="TRACE"))
    ) == (
        "allowed",
        "invalid-request",
    )


def test_made_up_hosts_are_remembered_within_bounds(
    drift: DriftChecker, record: Callable[..., Record]
) -> None:
    drift._hosts._hosts = LRUCache(170_000, getsizeof=drift._hosts._hosts.getsizeof)
    for number in range(250):
        assert found(drift.check(record(f"http://h{number}.example/"))) == (
            "allowed",
            "default",
        )
        assert found(drift.check(record("http://closed.example/"))) == (
            "allowed",
            "closed",
        )
    assert 50 < len(drift._hosts._hosts) < 150
    assert any("closed.example" in key[3] for key in drift._hosts._hosts), (
        "what is asked for again stays"
    )
    before = len(drift._hosts._hosts)
    assert found(drift.check(record(f"http://{'x' * 8000}/"))) == (
        "allowed",
        "invalid-request",
    )
    assert len(drift._hosts._hosts) == before


CLIENTS = [
    ({}, "agents"),
    ({"user": "ci-bot"}, "agents"),  # of both; the first in the policy names it
    ({"client": "10.0.0.1", "user": "ci-bot"}, "ci"),
    ({"client": "10.0.0.1"}, "none"),
    ({"client": "no address"}, "none"),
    ({"client": "10.0.0.1", "user": "ci%2Dbot"}, "ci"),
    ({"revision": NONE}, "agents"),
    ({"revision": "gone"}, "agents"),
]


@pytest.mark.parametrize(
    ("fields", "name"), CLIENTS, ids=[words(fields) for fields, _ in CLIENTS]
)
def test_a_client_is_named_as_the_policy_names_it(
    drift: DriftChecker,
    record: Callable[..., Record],
    fields: dict[str, Any],
    name: str,
) -> None:
    assert drift.client_name(record("http://open.example/", **fields)) == name


def test_without_any_policy_no_client_has_a_name(record: Callable[..., Record]) -> None:
    assert (
        DriftChecker(lambda _: None).client_name(record("http://open.example/"))
        == "none"
    )
