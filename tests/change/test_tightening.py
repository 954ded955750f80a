"""What a policy is narrowed to: within what it was, and nothing that was asked for is
denied.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import strategies as st

from squidkeeper.base.faults import Location
from squidkeeper.change.tightening.edits import Edits, proposed_edits, with_edits
from squidkeeper.change.tightening.findings import (
    Findings,
    KeptFor,
    Kind,
    Unused,
    findings,
)
from squidkeeper.change.tightening.narrowing import Field, Narrowing
from squidkeeper.change.tightening.proof import proven
from squidkeeper.change.tightening.usage import measure
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.decision import Decision
from squidkeeper.policy.engine.explain import quotas_in
from squidkeeper.policy.language.model import Action, Policy
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.record.log.record import Record

from ..conftest import NOW, few_and_many, hold_for
from ..policy.test_engine_properties import (
    GRANT,
    HOSTS,
    NOTHING,
    TIMES,
    credentials,
    matches,
    policy_of,
    rewrites,
    urls,
)
from ..record_tables import insert_records
from .test_replay import (
    COMMON,
    PLAIN_URLS,
    POLICIES,
    RECORDS,
    logged,
    passes,
    plain_request,
    plainly_decided,
    tunnel,
)


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def check_narrowed(
    connection: duckdb.DuckDBPyConnection,
    records: list[Record],
    policy: Policy,
    others: list[Record],
) -> None:
    insert_records(connection, "plain_records", records)
    old = CompiledPolicy(policy)
    use = measure(connection, old, "plain_records")
    edits = proven(
        connection, policy, proposed_edits(policy, use, NOW), NOW, "plain_records"
    )
    new = CompiledPolicy(with_edits(policy, edits))
    for record in [*records, *others]:
        was, would = plainly_decided(old, record), plainly_decided(new, record)
        if was is None or would is None:
            continue
        assert passes(was) >= passes(would)
        assert passes(was) == passes(would) or record not in records
        if passes(would):
            assert counts(old, record, was) <= counts(new, record, would)


def counts(policy: CompiledPolicy, record: Record, decision: Decision) -> set[object]:
    """The counts of quotas that a request is in."""
    quotas = quotas_in(policy, policy.match(plain_request(record)), decision)
    return {
        (quota.name, decision.rule if quota.per is Counted.RULE else None)
        for quota in quotas
    }


# Allows above a default that denies, so that most of a policy can be narrowed; and
# requests that they allow.
DRAWN = st.builds(
    list.__add__,
    st.lists(
        st.tuples(
            st.sampled_from([*[Action.ALLOW] * 6, Action.DENY, Action.ASK, GRANT]),
            matches,
            st.sampled_from([False] * 7 + [True]),
            st.sampled_from([*[None] * 5, *TIMES]),
            st.sampled_from([False] * 7 + [True]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([[], [(Action.ALLOW, NOTHING, False, None, False)]]),
)
NARROWABLE = st.builds(
    lambda drawn, default, rewritten, injected, counted: replace(
        policy_of(drawn, default, rewritten, injected), quotas=tuple(counted)
    ),
    DRAWN,
    st.sampled_from([Action.DENY, Action.DENY, Action.ASK]),
    st.one_of(st.just([]), rewrites),
    st.one_of(st.just([]), credentials),
    st.lists(
        st.builds(
            Quota,
            name=st.sampled_from("pq"),
            location=st.just(Location("policy.yaml")),
            unit=st.sampled_from(QuotaUnit),
            limit=st.just(1),
            window=st.just(Window.DAY),
            per=st.sampled_from(Counted),
            rules=st.none()
            | st.sets(st.sampled_from(["r0", "r1", "g2", "default"]), min_size=1).map(
                frozenset
            ),
        ),
        max_size=2,
        unique_by=lambda quota: quota.name,
    ),
)
ASKED = st.lists(
    st.builds(
        logged,
        st.sampled_from(["GET", "HEAD", "POST", "MADE-UP"]),
        PLAIN_URLS | PLAIN_URLS | urls,
        **COMMON,
    )
    | st.builds(tunnel, st.sampled_from(HOSTS[:4]), st.just(False), **COMMON),
    min_size=1,
    max_size=15,
)


@few_and_many(8, 400)
def test_a_narrowed_policy_denies_nothing_of_its_record_and_opens_nothing(
    connection: duckdb.DuckDBPyConnection, examples: int
) -> None:
    many = examples > 100
    records, policies = (
        (RECORDS | ASKED, POLICIES | NARROWABLE) if many else (ASKED, NARROWABLE)
    )
    hold_for(
        lambda given, policy, others: check_narrowed(connection, given, policy, others),
        records,
        policies,
        records,
        examples=examples,
    )


# --- cases ----------------------------------------------------------------------------


def loaded(text: str, folder: Path) -> CompiledPolicy:
    (folder / "policy.yaml").write_text(f"version: 1\n{textwrap.dedent(text)}")
    return load(folder, NOW).compiled


def get(url: str, method: str = "GET", **fields: Any) -> Record:
    return logged(method, url, **{"client": "192.0.2.1", **fields})


def found_in(
    connection: duckdb.DuckDBPyConnection, policy: CompiledPolicy, *records: Record
) -> tuple[Findings, dict[str, dict[str, tuple[str, ...] | None]]]:
    insert_records(connection, "plain_records", list(records))
    use = measure(connection, policy, "plain_records")
    edits = proven(
        connection,
        policy.source,
        proposed_edits(policy.source, use, NOW),
        NOW,
        "plain_records",
    )
    found = findings(policy.source, use, edits, NOW)
    narrower = {
        rule.rule.name: {
            str(change.field): change.narrower for change in rule.narrowings
        }
        for rule in found.narrowed
    }
    return found, narrower


API = "https://api.example"
NARROWED: list[tuple[str, list[Record], dict[str, tuple[str, ...] | None]]] = [
    ("hosts: [api.example, old.example], schemes: [https]", [get(f"{API}/{n}?q", "PUT") for n in "ab"], {
        "hosts": ("api.example",), "methods": ("PUT",), "paths": ("/a", "/b")}),
    ("hosts: [.api.example], schemes: [https], methods: [GET], paths: [/x]", [get(f"{API}/x")], {
        "hosts": ("api.example",)}),
    ("hosts: ['**.w.example.com'], schemes: [https], methods: [GET], paths: [/x]",
        [get(f"https://a{n}.b.w.example.com/x", client=f"192.0.2.{n}") for n in range(9)], {
        "hosts": ("*.b.w.example.com",)}),
    ("hosts: ['*'], schemes: [https], methods: [GET], paths: [/x]", [get("https://203.0.113.7/x"), get(f"{API}/x")], {
        "hosts": ("203.0.113.7", "api.example")}),
    ("schemes: [https], methods: [GET], paths: [/x]", [get(f"{API}/x")], {"hosts": ("api.example",)}),
    ("hosts: [api.example], methods: [GET], paths: [/x]", [get(f"{API}/x")], {"schemes": ("https",)}),
    ("hosts: [api.example], methods: [GET], paths: [/x]", [get("http://api.example/x")], {}),
    ("hosts: [api.example], schemes: [https], paths: [/x]", [get(f"{API}/x", "HEAD"), get(f"{API}/x", "DELETE")], {
        "methods": ("GET", "HEAD", "DELETE")}),
    ("hosts: [api.example], schemes: [https], paths: [/x]", [get(f"{API}/x", "MADE-UP")], {}),
    ("hosts: [api.example], schemes: [https], methods: [GET, POST, MADE-UP], paths: [/x]",
        [get(f"{API}/x", "MADE-UP")], {"methods": ("MADE-UP",)}),
    ("hosts: [api.example], schemes: [https], methods: [GET]", [get(f"{API}/v1/items/{n}/x") for n in range(20)], {
        "paths": ("/v1/items/*/x",)}),
    ("hosts: [api.example], schemes: [https], methods: [GET], paths: [/v1/**, /v2/**, 'regex:/v3/.*']",
        [get(f"{API}/v1/a"), get(f"{API}/v3/b")], {"paths": ("/v1/a", "regex:/v3/.*")}),
    ("hosts: [api.example], schemes: [https], methods: [GET], paths: [/x/*/y]",
        [get(f"{API}/x/{n}/y") for n in range(20)], {}),
    ("hosts: [api.example], schemes: [https], methods: [GET]", [get(f"{API}/a/..%2fb")], {}),
    ("hosts: [api.example], schemes: [https], methods: [GET], paths: [/items/5/*]", [get(f"{API}/items/5/a")], {}),
    ("hosts: [.api.example.com], schemes: [https], methods: [GET], paths: [/x]",
        [get(f"https://a.b{n}.api.example.com/x", client=f"192.0.2.{n}") for n in range(15)], {}),
    ("hosts: [api.example], clients: [near, far], schemes: [https], methods: [GET], paths: [/x]", [get(f"{API}/x")], {
        "clients": ("near",)}),
    ("hosts: [api.example], schemes: [https], query: {q: '1'}, methods: [GET], paths: [/x]", [get(f"{API}/x?q=1")], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "records", "expected"),
    NARROWED,
    ids=[str(n) for n in range(len(NARROWED))],
)
def test_a_rule_is_narrowed_to_what_was_used_of_each_field(
    connection: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    fields: str,
    records: list[Record],
    expected: dict[str, tuple[str, ...] | None],
) -> None:
    policy = loaded(
        f"{CLIENTS}rules: [{{name: one, action: allow, {fields}}}]", tmp_path
    )
    found, narrower = found_in(connection, policy, *records)
    assert narrower.get("one", {}) == expected
    assert found.use.rules["one"].requests == len(records)


CLIENTS = (
    "clients: {near: {networks: [192.0.2.0/24]}, far: {networks: [198.51.100.0/24]}}\n"
)
UNUSED = f"""
{CLIENTS}lists: {{block: {{file: block.txt}}}}
presets: [npm@2]
rules:
  - {{name: no-x, action: deny, hosts: [api.example], paths: [/x]}}
  - {{name: blocked, action: deny, lists: [block]}}
  - {{name: maybe, action: ask, hosts: [ask.example]}}
  - {{name: trial, action: deny, hosts: [trial.example], observe: true}}
  - {{name: nightly, action: allow, hosts: [night.example], when: {{hours: "01:00-02:00", timezone: UTC}}}}
  - {{name: gone, action: allow, hosts: [gone.example], expires: 2020-01-01T00:00:00Z}}
  - {{name: dead, action: allow, hosts: [dead.example]}}
  - {{name: never, action: allow, hosts: [never.example]}}
  - {{name: tested, action: allow, hosts: [tested.example]}}
  - {{name: strict, action: allow, hosts: [up.example], methods: [PUT]}}
  - {{name: loose, action: allow, hosts: [up.example], websocket: true}}
tests: [{{request: "GET https://tested.example/", expect: allow, rule: tested}}]
secrets: {{key: {{env: TIGHTEN_KEY}}}}
credentials: [{{name: key, hosts: [never.example], bearer: key}}]
rewrites: [{{name: mirror, hosts: [never.example], to: "https://api.example{{path}}"}}]
grants:
  - {{name: g-old, hosts: [g.example], any_client: true, expires: 2020-01-01T00:00:00Z, reason: Old.}}
  - {{name: g-new, hosts: [g.example], any_client: true, expires: 2099-01-01T00:00:00Z, reason: New.}}
"""


OF_ROLES = """
roles: {agent: {variables: {repo: {type: path, pattern: "[a-z]+"}}}}
rules:
  - {name: gone, action: allow, hosts: [gone.example]}
  - {name: clone, action: allow, clients: [agent], hosts: [a.example], paths: ["/{session.repo}"]}
  - {name: wide, action: allow, clients: [agent], hosts: [.a.example]}
credentials:
  - {name: key, clients: [agent], hosts: [a.example], bearer: key}
secrets: {key: {session: true, hosts: [a.example]}}
"""


def test_what_names_variables_of_sessions_stays(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded(OF_ROLES, tmp_path)
    found, _ = found_in(connection, policy, get("https://b.example/", verdict="deny"))
    assert [rule.name for rule in found.unused] == ["gone", "wide"]
    assert {rule.name: why for rule, why in found.kept} == {"clone": KeptFor.SESSIONS}
    assert found.others == (
        Unused(Kind.ROLE, "agent"),
        Unused(Kind.CREDENTIAL, "key"),
    )


def test_what_nobody_used_goes_or_is_kept_for_a_reason(
    connection: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIGHTEN_KEY", "x")
    (tmp_path / "block.txt").write_text("ads.test\n")
    policy = loaded(UNUSED, tmp_path)
    tunnel_alone = tunnel("dead.example", passed_through=False, status=502)
    found, _ = found_in(
        connection,
        policy,
        get(f"{API}/x", verdict="deny"),
        get("https://up.example/"),
        tunnel_alone,
    )
    assert [rule.name for rule in found.unused] == ["gone", "never"]
    assert {rule.name: why for rule, why in found.kept} == {
        "blocked": KeptFor.CLOSES,
        "maybe": KeptFor.CLOSES,
        "trial": KeptFor.OBSERVES,
        "nightly": KeptFor.SCHEDULED,
        "dead": KeptFor.TUNNELS,
        "tested": KeptFor.NEEDED,
        "strict": KeptFor.NEEDED,  # without it, `loose` would allow WebSockets there
    }
    assert [(str(other.kind), other.name) for other in found.others] == [
        ("client", "far"),
        ("list", "block"),
        ("credential", "key"),
        ("rewrite", "mirror"),
        ("preset", "npm@2"),
        ("grant", "g-new"),
        ("lapsed-grant", "g-old"),
    ]


def test_which_rule_decided_is_told_by_the_policy_and_not_by_the_record(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded(
        "rules: [{name: now, action: allow, hosts: [api.example]}]", tmp_path
    )
    found, _ = found_in(
        connection,
        policy,
        get(f"{API}/x", rule="another"),
        get("https://b.example/", rule="now"),
    )
    assert found.use.rules["now"].requests == 1
    assert found.unused == ()


def test_the_rule_used_on_most_days_comes_first(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded(
        "rules: [{name: a, action: allow, hosts: [a.example]}, {name: b, action: allow, hosts: [b.example]}]",
        tmp_path,
    )
    days = [
        get("https://b.example/", time=f"2026-11-2{day}T12:00:00.000Z")
        for day in (1, 2)
    ]
    found, _ = found_in(connection, policy, *[get("https://a.example/")] * 5, *days)
    assert [
        (rule.rule.name, len(rule.evidence.days), rule.requests)
        for rule in found.narrowed
    ] == [
        ("b", 2, 2),
        ("a", 1, 5),
    ]


def test_nothing_is_narrowed_where_the_default_allows(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded(
        "defaults: {action: allow}\nrules: [{name: a, action: allow, hosts: [a.example], ports: [8443]}]",
        tmp_path,
    )
    found, narrower = found_in(connection, policy, get(f"{API}/x"))
    assert (found.unused, narrower) == ((), {})
    assert [why for _, why in found.kept] == [KeptFor.DEFAULT]


def test_a_method_above_a_tunnel_that_passes_through_is_not_narrowed(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded("""
        rules:
          - {name: all, action: allow, clients: [near], hosts: [api.example], schemes: [https]}
          - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}
        clients: {near: {networks: [192.0.2.0/24]}}
        """, tmp_path)  # fmt: skip
    found, narrower = found_in(
        connection,
        policy,
        get(f"{API}/x"),
        tunnel("pinned.example", passed_through=True, client="192.0.2.1"),
    )
    assert narrower == {}
    assert found.use.rules["pinned"].requests == 1


PATHS_TOO_NARROW = Narrowing(Field.PATHS, None, ("/other",))
HOSTS_TOO_NARROW = Narrowing(Field.HOSTS, None, ("b.example",))
SCHEMES = Narrowing(Field.SCHEMES, None, ("https",))


@pytest.mark.parametrize(
    ("edits", "kept"),
    [
        ({"one": (SCHEMES,)}, {"one": (SCHEMES,)}),
        ({"one": (SCHEMES, PATHS_TOO_NARROW)}, {"one": (SCHEMES,)}),
        ({"one": (SCHEMES, HOSTS_TOO_NARROW)}, {}),
        ({"one": None, "two": None}, {"two": None}),
    ],
)
def test_an_edit_that_would_deny_a_recorded_request_is_taken_back(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, edits: Edits, kept: Edits
) -> None:
    policy = loaded(
        "rules: [{name: one, action: allow, hosts: [api.example]}, {name: two, action: allow, hosts: [b.example]}]",
        tmp_path,
    )
    insert_records(connection, "plain_records", [get(f"{API}/x", status=404)])
    assert proven(connection, policy.source, edits, NOW, "plain_records") == kept


def test_rules_above_one_with_other_effects_stay_as_wide(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded("""
        rules:
          - {name: strict, action: allow, hosts: [.example], strip: [Cookie]}
          - {name: loose, action: allow, hosts: [api.example], methods: [POST]}
        """, tmp_path)  # fmt: skip
    found, narrower = found_in(connection, policy, get(f"{API}/x"))
    assert narrower == {}
    assert [rule.name for rule in found.unused] == ["loose"]


HELD_BACK = [
    "rules: [{name: one, action: allow, hosts: [.example], connections: single}]",
    "rules: [{name: one, action: allow, hosts: [.example]}]\nrewrites: [{name: w, to: 'https://mirror.test{path}'}]",
    "rules: [{name: one, action: allow, hosts: [.example]}]\nsecrets: {s: {env: S}}\n"
    "credentials: [{name: c, hosts: [.example], bearer: s}]",
]


@pytest.mark.parametrize(
    "rest", HELD_BACK, ids=["connections", "rewrite", "credential"]
)
def test_a_rule_stays_where_a_default_that_observes_would_allow_more(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, rest: str
) -> None:
    policy = loaded(f"defaults: {{observe: true}}\n{rest}", tmp_path)
    assert found_in(connection, policy, get(f"{API}/x"))[1] == {}


def test_a_rule_stays_where_the_host_would_be_unrestricted_without_it(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    policy = loaded("""
        rules:
          - {name: posts, action: allow, hosts: [api.example, b.example], methods: [POST]}
          - {name: all, action: allow, hosts: [api.example]}
        """, tmp_path)  # fmt: skip
    found, narrower = found_in(connection, policy, get(f"{API}/x"))
    assert [*found.unused, *narrower] == ["all"]


QUOTAS = """
clients: {{near: {{networks: [192.0.2.0/24]}}}}
rules:
  - {{name: held, action: allow, hosts: [.api.example], methods: [GET, HEAD, POST]}}
  - {{name: never, action: allow, hosts: [never.example]}}
  - {{name: below, action: allow, hosts: [up.api.example], methods: [GET, HEAD, POST]}}
quotas:
  - {{name: some, {quota}, every: day}}
"""


@pytest.mark.parametrize(
    ("quota", "stays"),
    [
        ("requests: 5, per: client, rules: [held]", {"held"}),
        ("bytes_out: 5MB, per: all, rules: [held, never]", {"held"}),
        ("requests: 5, per: rule", {"held"}),
        ("requests: 5, per: client, rules: [held, below]", set()),
        ("requests: 5, per: client, rules: [below]", set()),
        ("requests: 5, per: client", set()),
    ],
)
def test_what_a_quota_counts_is_not_left_to_a_rule_below_that_it_does_not_count(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, quota: str, stays: set[str]
) -> None:
    policy = loaded(QUOTAS.format(quota=quota), tmp_path)
    found, narrower = found_in(
        connection, policy, get(f"{API}/x"), get("https://up.api.example/y")
    )
    assert {"held"} - narrower.keys() == stays
    unused = [name for name in ("never", "below") if name not in quota]
    assert [rule.name for rule in found.unused] == unused, (
        "without a rule that a quota names, no policy would load"
    )
