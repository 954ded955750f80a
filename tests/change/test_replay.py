"""A replay finds what judging each record alone finds; and how that is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import msgspec
import pytest
from hypothesis import strategies as st

from squidkeeper.change.replay.replay import COLUMNS, SET_APART, replay
from squidkeeper.change.replay.result import FlipKind, ReplayResult, Total
from squidkeeper.policy.engine import CompiledPolicy, Decision, decide
from squidkeeper.policy.language.model import Action, Policy
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol.request import CONNECT, Malformed, Request
from squidkeeper.policy.url import recorded_url
from squidkeeper.record.log.record import (
    NONE,
    Record,
    authority_of,
    format_time,
    host_of,
    parse_time,
)
from squidkeeper.record.log.requests import request_of, was_used
from squidkeeper.record.table.sources import TableSources
from squidkeeper.record.table.table import open_table

from ..conftest import NOW, few_and_many, hold_for
from ..policy.test_engine_properties import (
    HOSTS,
    PLACE,
    credentials,
    methods,
    policy_of,
    rewrites,
    rules,
    urls,
)
from ..record_tables import insert_records
from ..records import after_noon, record

ADDRESSES = ["192.0.2.1", "192.0.2.2", "198.51.100.1", "203.0.113.1"]


# --- plain reference ------------------------------------------------------------------


@dataclass
class Group:
    requests: int = 0
    used: int = 0
    urls: set[str] = field(default_factory=set)


@dataclass
class Plain:
    """What judging each record alone finds."""

    groups: dict[tuple[object, ...], Group] = field(
        default_factory=lambda: defaultdict(Group)
    )
    observed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    disagreeing: int = 0
    unseen: int = 0


def plain_replay(
    records: list[Record], old: CompiledPolicy, new: CompiledPolicy
) -> Plain:
    """Judge each record alone by both policies, at its own time."""
    found = Plain()
    for one in records:
        was, would = plainly_decided(old, one), plainly_decided(new, one)
        if was is None or would is None:
            found.unseen += 1
            continue
        found.disagreeing += one.verdict != ("allow" if passes(was) else "deny")
        if would.observed is not None:
            found.observed[would.observed] += 1
        had, has = given_by(was), given_by(would)
        if (passes(was), had) != (passes(would), has):
            kind = (
                ("opened" if passes(would) else "denied")
                if passes(was) != passes(would)
                else "changed"
            )
            key = (
                kind,
                would.rule,
                was.rule,
                *changes(had, has),
                would.observed,
                one.client,
                host_of(one.url).text,
            )
            group = found.groups[key]
            group.requests += 1
            group.used += was_used(one)
            group.urls.add(one.url)
    return found


def plain_request(record: Record) -> Request | Malformed:
    opened = msgspec.structs.replace(
        record, tunnel=record.tunnel.partition("%20")[0], revision=NONE
    )
    if opened.method == CONNECT and not opened.squid.startswith("TCP_TUNNEL"):
        opened = msgspec.structs.replace(opened, tunnel=NONE, sni=NONE)
    return request_of(opened)


def plainly_decided(policy: CompiledPolicy, record: Record) -> Decision | None:
    """Decide a record's request at its start; None where a tunnel that passed through
    would be looked into.
    """
    request = plain_request(record)
    at = parse_time(record) - timedelta(milliseconds=record.duration_ms)
    decision = decide(policy, policy.match(request), at)
    if isinstance(request, Malformed) or not request.spliced or decision.allowed:
        return decision
    looked_into = decide(policy, policy.match(request._replace(spliced=False)), at)
    return None if passes(looked_into) else decision


def passes(decision: Decision) -> bool:
    """Whether a request passes: a tunnel in which every request is asked about opens,
    and lets none through.
    """
    return decision.allowed and not decision.asks


Given = tuple[frozenset[tuple[str, str]], tuple[str, int | None, str] | None]


def given_by(decision: Decision) -> Given:
    """Return the credentials that a request gets, and the rewrite with its URL."""
    if not passes(decision):
        return frozenset(), None
    rewritten = decision.rewritten
    target = (
        (rewritten.rewrite.name, rewritten.rewrite.redirect, str(rewritten.url))
        if rewritten
        else None
    )
    return frozenset(
        (credential.name, repr(credential.form)) for credential in decision.credentials
    ), target


def changes(had: Given, has: Given) -> tuple[object, ...]:
    names = (
        (has[1] and has[1][0], had[1] and had[1][0])
        if had[1] != has[1]
        else (None, None)
    )
    gained, lost = (
        tuple(sorted(name for name, _ in some))
        for some in (has[0] - had[0], had[0] - has[0])
    )
    return gained, lost, *names


# --- properties -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def replayed(
    connection: duckdb.DuckDBPyConnection,
    records: list[Record],
    old: CompiledPolicy,
    new: CompiledPolicy,
) -> ReplayResult:
    insert_records(connection, "plain_records", records)
    return replay(connection, old, new, "plain_records")


def logged(method: str, url: str, **fields: Any) -> Record:
    """Make the record of a request, inside of a tunnel where its URL is https."""
    inside = {}
    if url.startswith("https://"):
        host, _, port = authority_of(url).partition(":")
        inside = {
            "sni": NONE if host[0].isdigit() else host,
            "tunnel": quote(f"{host}:{port or 443}", safe=""),
        }
    denied = (
        {"tunnel": f"{inside['tunnel']}%20first"}
        if fields.pop("in_denied", False) and inside
        else {}
    )
    values = {
        **inside,
        **denied,
        **{name: value for name, value in fields.items() if value is not None},
    }
    return record(method=method, url=recorded_url(url), **values)


def tunnel(host: str, passed_through: bool, **fields: Any) -> Record:
    """Make the record of a CONNECT that was denied, or of a tunnel that
    passed through.
    """
    seen = (
        {"squid": "TCP_TUNNEL/HIER_DIRECT", "sni": host, "tunnel": f"{host}%3A443"}
        if passed_through
        else {}
    )
    return record(method=CONNECT, url=f"{host}:443", **{**seen, **fields})


COMMON: dict[str, Any] = {
    "client": st.sampled_from(ADDRESSES),
    "time": st.integers(-7200, 7200).map(
        lambda seconds: format_time(NOW + timedelta(seconds=seconds))
    ),
    "duration_ms": st.sampled_from([0, 3, 3_600_000]),
    "status": st.sampled_from([200, 200, 304, 404]),
    "verdict": st.sampled_from(["allow", "allow", "deny"]),
}
PLAIN_URLS = st.builds(
    "https://{}{}".format,
    st.sampled_from(HOSTS[:2]),
    st.sampled_from(["/x", "/x/y", "/s", "/xs", "/x?q=1", "/"]),
)
RECORDS = st.lists(
    st.builds(
        logged,
        methods,
        urls | PLAIN_URLS,
        hidden=st.sampled_from([None, None, None, "fragment", "userinfo"]),
        in_denied=st.booleans(),
        **COMMON,
    )
    | st.builds(
        logged,
        st.just("GET"),
        st.sampled_from(["http://a.example/squid-internal-static/x"]),
        **COMMON,
    )
    | st.builds(tunnel, st.sampled_from(HOSTS[:4]), st.booleans(), **COMMON),
    min_size=1,
    max_size=20,
)
POLICIES = st.builds(
    lambda drawn, default, rewritten, injected, observing, observe_default, passing: (
        replace(
            policy_of(drawn, default, rewritten, injected),
            rules=tuple(
                replace(
                    rule,
                    observe=number in observing,
                    passthrough=number in passing
                    and rule.action is Action.ALLOW
                    and rule.match.any_request,
                )
                for number, rule in enumerate(policy_of(drawn, default).rules)
            ),
            observe_default=PLACE
            if observe_default and default is Action.DENY
            else None,
        )
    ),
    rules,
    st.sampled_from([*Action]),
    rewrites,
    credentials,
    st.sets(st.integers(0, 5), max_size=2),
    st.sampled_from([False, False, False, True]),
    st.sets(st.integers(0, 5), max_size=2),
)


def edited(policy: Policy, place: int) -> Policy:
    """Leave a rule out, or none: a small edit, which most requests do not notice."""
    kept = [rule for number, rule in enumerate(policy.rules) if number != place]
    return replace(policy, rules=tuple(kept))


PAIRS = st.tuples(POLICIES, POLICIES) | st.builds(
    lambda policy, place: (policy, edited(policy, place)), POLICIES, st.integers(0, 5)
)


def check_replay(
    connection: duckdb.DuckDBPyConnection,
    records: list[Record],
    pair: tuple[Policy, Policy],
) -> None:
    old, new = CompiledPolicy(pair[0]), CompiledPolicy(replace(pair[1], revision="1"))
    expected = plain_replay(records, old, new)
    found = replayed(connection, records, old, new)
    groups = {
        (
            *(
                str(flip.flip.kind),
                flip.flip.rule,
                flip.flip.was,
                flip.flip.gained,
                flip.flip.lost,
            ),
            *(
                flip.flip.rewrite,
                flip.flip.rewrite_was,
                flip.flip.observed,
                flip.client,
                flip.host,
            ),
        ): (flip.requests, flip.used, flip.urls)
        for flip in found.flips
    }
    assert groups == {
        key: (group.requests, group.used, len(group.urls))
        for key, group in expected.groups.items()
    }
    assert {
        name: total.requests for name, total in found.observed.items()
    } == expected.observed
    assert (found.disagreeing, found.set_apart.get("unseen", 0)) == (
        expected.disagreeing,
        expected.unseen,
    )
    assert found.requests == len(records) - expected.unseen
    for kind in FlipKind:
        of_kind = [group for key, group in expected.groups.items() if key[0] == kind]
        total = found.total(kind)
        assert (total.requests, total.used, total.groups) == (
            sum(document.requests for document in of_kind),
            sum(document.used for document in of_kind),
            len(of_kind),
        )


@few_and_many(12, 500)
def test_flips_are_those_of_judging_each_record_alone(
    connection: duckdb.DuckDBPyConnection, examples: int
) -> None:
    hold_for(
        lambda records, pair: check_replay(connection, records, pair),
        RECORDS,
        PAIRS,
        examples=examples,
    )


# --- examples -------------------------------------------------------------------------

OLD = """
version: 1
clients: {agents: {networks: [192.168.137.0/24]}}
rules:
  - {name: pinned, action: allow, hosts: [pinned.example], tls: passthrough}
  - {name: lapses, action: allow, hosts: [lapses.example], expires: 2026-11-25T12:00:00Z}
  - {name: code, action: allow, hosts: [code.example, internal.example]}
  - {name: api, action: allow, hosts: [api.example]}
  - {name: packages, action: allow, hosts: [packages.example, moved.example]}
secrets: {old: {env: REPLAY_OLD}, new: {env: REPLAY_NEW}}
credentials: [{name: old, hosts: [api.example], bearer: old}]
rewrites: [{name: moved, hosts: [moved.example], to: "https://packages.example/a{path}"}]
"""
NEW = """
version: 1
rules:
  - {name: no-push, action: deny, hosts: [code.example, internal.example], paths: [/**/git-receive-pack]}
  - {name: code, action: allow, hosts: [code.example, internal.example]}
  - {name: closing, action: deny, observe: true, hosts: [packages.example, api.example], paths: [/admin/**]}
  - {name: api, action: allow, hosts: [api.example]}
  - {name: packages, action: allow, hosts: [packages.example, moved.example]}
  - {name: pinned, action: allow, hosts: [pinned.example]}
  - {name: newly, action: allow, hosts: [new.example]}
secrets: {old: {env: REPLAY_OLD}, new: {env: REPLAY_NEW}}
credentials: [{name: new, hosts: [api.example], bearer: new}]
rewrites: [{name: moved, hosts: [moved.example], to: "https://packages.example/b{path}"}]
"""


def compiled(folder: Path, text: str) -> CompiledPolicy:
    folder.mkdir()
    (folder / "policy.yaml").write_text(text)
    return load(folder, NOW).compiled


@pytest.fixture(scope="module")
def policies(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[CompiledPolicy, CompiledPolicy]:
    folder = tmp_path_factory.mktemp("policies")
    return compiled(folder / "old", OLD), compiled(folder / "new", NEW)


Replayed = Callable[..., ReplayResult]


@pytest.fixture
def result(
    connection: duckdb.DuckDBPyConnection,
    policies: tuple[CompiledPolicy, CompiledPolicy],
) -> Replayed:
    return lambda *records: replayed(connection, list(records), *policies)


def test_what_was_used_and_would_be_denied_is_told_by_rule_client_and_host(
    result: Replayed,
) -> None:
    push = "https://code.example/acme/app/git-receive-pack"
    found = result(
        logged("POST", push, time=after_noon(0), request_id="1"),
        logged("POST", push, time=after_noon(1), request_id="2"),
        logged("POST", f"{push}?x", time=after_noon(2), request_id="3", status=500),
        logged("POST", push, time=after_noon(3), client="192.168.137.9", user="ci"),
        logged("GET", "https://code.example/acme/app/info"),
    )
    mine, other = found.of(FlipKind.DENIED)
    assert (mine.flip.rule, mine.flip.was, mine.client_name, mine.host) == (
        *("no-push", "code"),
        *("192.168.137.2", "code.example"),
    )
    assert (mine.requests, mine.used, mine.urls) == (3, 2, 2)
    assert (mine.example.method, mine.example.url, mine.example.request_id) == (
        "POST",
        push,
        "2",
    ), "newest that was used"
    assert mine.last - mine.first == timedelta(seconds=2)
    assert (other.client_name, other.used) == ("ci@192.168.137.9", 1)
    assert (
        found.denied_and_used,
        found.requests,
        found.disagreeing,
        found.set_apart,
    ) == (3, 5, 0, {})
    assert found.totals == {FlipKind.DENIED: Total(4, 3, 2)}


def test_a_request_in_a_denied_tunnel_is_opened_by_a_policy_that_allows_it(
    result: Replayed,
) -> None:
    found = result(
        logged(
            "GET",
            "https://new.example/x",
            in_denied=True,
            verdict="deny",
            rule="default",
            status=403,
        )
    )
    (group,) = found.flips
    assert (group.flip.kind, group.flip.rule, group.flip.was, group.used) == (
        FlipKind.OPENED,
        "newly",
        "default",
        0,
    )


def test_credentials_that_are_gained_and_lost_are_flips(result: Replayed) -> None:
    (group,) = result(logged("GET", "https://api.example/v1")).flips
    assert (group.flip.kind, group.flip.gained, group.flip.lost) == (
        FlipKind.CHANGED,
        ("new",),
        ("old",),
    )
    assert group.flip.changes == ("+new", "-old")


@pytest.mark.parametrize(
    "form",
    [
        "bearer: new",
        "basic: {username: me, password: old}",
        "headers: {Authorization: '{old}', X-Api-Key: '{old}'}",
    ],
    ids=["secret", "scheme", "headers"],
)
def test_a_credential_that_injects_something_else_is_a_flip(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, form: str
) -> None:
    old, new = (
        compiled(tmp_path / "old", OLD),
        compiled(tmp_path / "new", OLD.replace("bearer: old", form)),
    )
    (group,) = replayed(
        connection, [logged("GET", "https://api.example/v1")], old, new
    ).flips
    assert (group.flip.kind, group.flip.gained, group.flip.lost) == (
        FlipKind.CHANGED,
        ("old",),
        ("old",),
    )
    assert group.flip.changes == ("old injects something else",)


def test_a_rewrite_that_leads_elsewhere_is_a_flip(result: Replayed) -> None:
    (group,) = result(logged("GET", "https://moved.example/x")).flips
    assert (group.flip.kind, group.flip.changes) == (
        FlipKind.CHANGED,
        ("rewrite moved to another URL",),
    )


def test_a_rule_that_lapses_holds_at_the_start_of_a_request(result: Replayed) -> None:
    url = "https://lapses.example/"
    found = result(
        logged("GET", url, time=after_noon(-1), request_id="before"),
        logged("GET", url, time=after_noon(1), duration_ms=2000, request_id="long"),
        logged("GET", url, time=after_noon(1), request_id="after"),
    )
    (group,) = found.flips
    assert (group.flip.was, group.requests, group.example.request_id) == (
        "lapses",
        2,
        "long",
    )
    assert found.disagreeing == 1, "what was allowed after the rule had lapsed"


def test_what_observes_is_counted_and_flips_nothing(result: Replayed) -> None:
    found = result(
        *(
            logged("GET", f"https://packages.example{path}")
            for path in ("/v1", "/admin/x", "/admin/y")
        )
    )
    assert (found.observed, found.flips) == ({"deny:closing": Total(2, 2, 1)}, ())


def test_what_is_observed_is_shown_beside_a_flip(result: Replayed) -> None:
    found = result(
        *(logged("GET", f"https://api.example{path}") for path in ("/admin/x", "/v1"))
    )
    assert {
        (flip.flip.kind, flip.flip.observed, flip.requests) for flip in found.flips
    } == {
        (FlipKind.CHANGED, "deny:closing", 1),
        (FlipKind.CHANGED, None, 1),
    }


def test_a_page_of_squid_itself_is_denied_by_both(result: Replayed) -> None:
    paths = ("/x", "/squid-internal-static/x")
    (group,) = result(
        *(logged("GET", f"https://new.example{path}", verdict="deny") for path in paths)
    ).flips
    assert (group.requests, group.example.url) == (1, "https://new.example/x")


def test_what_is_in_a_tunnel_that_passed_through_is_not_known(result: Replayed) -> None:
    found = result(
        tunnel("pinned.example", True),
        tunnel("code.example", False, verdict="deny", rule="no"),
    )
    assert (found.flips, found.set_apart, found.requests) == ((), {"unseen": 1}, 1)
    assert found.disagreeing == 1, (
        "the CONNECT to code.example, which the old policy allows"
    )


def test_a_private_address_that_squid_found_is_set_apart(result: Replayed) -> None:
    by_dns = {"verdict": "deny", "rule": "private-address", "status": 403}
    found = result(logged("GET", "https://internal.example/", **by_dns))
    assert (found.set_apart, found.requests, found.disagreeing) == (
        {"private-name": 1},
        0,
        0,
    )
    assert SET_APART.keys() >= found.set_apart.keys()


def test_no_client_fills_the_result(
    connection: duckdb.DuckDBPyConnection,
    policies: tuple[CompiledPolicy, CompiledPolicy],
) -> None:
    push, mine, other = (
        "https://{}/git-receive-pack",
        {"client": "192.0.2.1"},
        {"client": "192.0.2.2"},
    )
    pushes = [
        *(
            logged("POST", push.format(host), **mine)
            for host in ("code.example", "internal.example", "code.example")
        ),
        logged("POST", push.format("internal.example"), **other),
        *(logged("GET", f"http://new.example/{n}", **mine) for n in range(9)),
    ]
    replayed(connection, pushes, *policies)
    found = replay(connection, *policies, "plain_records", groups_of_client=1)
    assert [(str(flip.flip.kind), flip.client, flip.host) for flip in found.flips] == [
        ("denied", "192.0.2.1", "code.example"),
        ("denied", "192.0.2.2", "internal.example"),
        ("opened", "192.0.2.1", "new.example"),
    ], "of each client and kind what was used most"
    assert found.totals == {
        FlipKind.DENIED: Total(4, 4, 3),
        FlipKind.OPENED: Total(9, 9, 1),
    }


def test_a_log_is_replayed_with_the_columns_that_it_needs(
    tmp_path: Path, policies: tuple[CompiledPolicy, CompiledPolicy]
) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(
        msgspec.json.encode(logged("POST", "https://code.example/git-receive-pack"))
        + b"\n"
    )
    with open_table(TableSources(files=(path,)), threads=1, columns=COLUMNS) as table:
        found = replay(table.connection, *policies)
    assert (found.requests, found.denied_and_used, found.old) == (
        1,
        1,
        policies[0].revision,
    )


BEGINNINGS = """
version: 1
defaults: {action: deny, ask: true}
rules:
  - {name: observed, action: deny, observe: true, hosts: [paths.example], paths: [/a/observed/**]}
  - {name: open, action: allow, hosts: [paths.example], paths: [/a/**]}
grants:
  - name: granted
    any_client: true
    hosts: [paths.example]
    paths: [/b/granted/**]
    expires: 2026-11-26T12:00:00Z
    reason: Once.
"""


def test_paths_of_rules_that_observe_and_of_grants_are_told_apart(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    old = compiled(tmp_path / "old", "version: 1\ndefaults: {action: allow}\n")
    new = compiled(tmp_path / "new", BEGINNINGS)
    paths = ("/a/x", "/a/observed/x", "/b/x", "/b/granted/x")
    found = replayed(
        connection,
        [logged("GET", f"https://paths.example{path}") for path in paths],
        old,
        new,
    )
    (group,) = found.flips
    assert (group.flip.rule, group.flip.asks, group.requests, group.example.url) == (
        *("default", True, 1),
        "https://paths.example/b/x",
    )
    assert found.observed == {"deny:observed": Total(1, 1, 1)}


def test_the_url_of_a_grant_is_told_apart(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    granted = "{name: g, any_client: true, methods: [GET], urls: ['https://exact.example/one'], reason: Once."
    old = compiled(tmp_path / "old", "version: 1\ndefaults: {action: allow}\n")
    rule = "{name: r, action: deny, hosts: [exact.example], paths: [/closed/**]}"
    grants = f"grants: [{granted}, expires: 2026-11-26T12:00:00Z}}]"
    new = compiled(tmp_path / "new", f"version: 1\nrules: [{rule}]\n{grants}\n")
    found = replayed(
        connection,
        [logged("GET", f"https://exact.example/{path}") for path in ("one", "two")],
        old,
        new,
    )
    assert [(group.requests, group.example.url) for group in found.flips] == [
        (1, "https://exact.example/two")
    ]


def test_a_tunnel_in_which_every_request_is_asked_about_is_not_opened(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    old = compiled(tmp_path / "old", "version: 1\n")
    new = compiled(
        tmp_path / "new", "version: 1\ndefaults: {action: deny, ask: true}\n"
    )
    assert (
        replayed(
            connection,
            [tunnel("asked.example", False, verdict="deny", rule="default")],
            old,
            new,
        ).flips
        == ()
    )


HOURS = """
version: 1
rules:
  - {name: by-day, action: allow, hosts: [hours.example], when: {hours: 09:00-17:00, timezone: Europe/Berlin}}
  - {name: lapses, action: allow, hosts: [hours.example], methods: [PUT], expires: 2026-11-26T20:00:00Z}
"""


def test_a_rule_with_hours_is_asked_once_in_each_span_of_time(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    old, new = (
        compiled(tmp_path / "old", "version: 1\ndefaults: {action: allow}\n"),
        compiled(tmp_path / "new", HOURS),
    )
    hours = [
        f"2026-11-{day}T{hour:02}:30:00.000Z" for day in (25, 26) for hour in range(24)
    ]
    found = replayed(
        connection,
        [logged("GET", "https://hours.example/x", time=at) for at in hours],
        old,
        new,
    )
    (group,) = found.flips
    assert (group.requests, group.first.hour, group.last.hour) == (32, 0, 23), (
        "from 9 to 17 in Berlin is 8 to 16 UTC"
    )
    ((asked,),) = connection.execute("SELECT count(*) FROM replay_questions").fetchall()
    assert asked == 6, (
        "night, day, night, day, evening, and the night after the other rule has lapsed"
    )
