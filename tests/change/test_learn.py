"""`squidkeeper learn`: what it proposes opens what was used, to whom used it, and
little else.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from squidkeeper.change.learning.askers import Askers
from squidkeeper.change.learning.draft import Draft, LearnedRule, Unproposed, yaml_of
from squidkeeper.change.learning.learner import Support, learn
from squidkeeper.change.learning.uses import PresetCover, Use, newest_presets
from squidkeeper.cli import main
from squidkeeper.policy.engine import CompiledPolicy, decide
from squidkeeper.policy.language.document import parse_document
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.public_suffixes import registrable_domain
from squidkeeper.policy.policy_store.loading import load, load_sources
from squidkeeper.policy.policy_store.sources import sources_of
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.record.log.record import decode_field, host_of
from tests.conftest import compiled_of, few_and_many, hold_for
from tests.records import after_noon, record_line

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
ONE, TWO, THREE, HOSTILE = (f"192.168.137.{number}" for number in (2, 3, 4, 66))
READ = ("GET", "HEAD")
CLIENTS = """
clients:
  agents: {networks: [192.168.137.0/24]}
  solo: {networks: [192.168.138.9]}
  ci: {token_sha256: 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b}
"""


def use(client: str, method: str, url: str, **fields: Any) -> Use:
    last = AT + timedelta(days=fields.pop("day", 0))
    days = frozenset({date(2026, 11, 25), last.date()})
    about = {"user": "-", "count": 1, "first": AT, "last": last, "days": days, **fields}
    return Use(client=client, host=host_of(url).text, method=method, url=url, **about)


def gets(client: str, *urls: str, **fields: Any) -> list[Use]:
    return [use(client, "GET", f"https://{url}", **fields) for url in urls]


def learned(
    uses: Iterable[Use],
    askers: Askers | None = None,
    presets: bool = False,
    **support: int,
) -> Draft:
    key: Callable[[Use], tuple[str, ...]] = lambda one: (  # noqa: E731
        one.client,
        one.user,
        one.host,
        one.method,
        one.url,
    )
    cover = PresetCover(newest_presets() if presets else ())
    return learn(
        sorted(uses, key=key), askers or Askers(), cover.covering, Support(**support)
    )


def loaded(draft: Draft) -> CompiledPolicy:
    document = parse_document(Path("draft.yaml"), yaml_of(draft).encode())
    return load_sources(sources_of((document,)), AT).compiled


def warnings(draft: Draft) -> list[str]:
    document = parse_document(Path("draft.yaml"), yaml_of(draft).encode())
    return [
        str(warning) for warning in load_sources(sources_of((document,)), AT).warnings
    ]


def is_allowed(policy: CompiledPolicy, use: Use, client: str | None = None) -> bool:
    request = request_to(
        use.method, use.url, client or use.client, decode_field(use.user)
    )
    return decide(policy, policy.match(request), use.last).allowed


def opened(rule: LearnedRule) -> tuple[object, ...]:
    return rule.clients, rule.hosts, rule.methods, rule.paths


def reasons(draft: Draft) -> dict[Unproposed, list[tuple[str, str, int]]]:
    found: dict[Unproposed, list[tuple[str, str, int]]] = {}
    for unproposed in draft.listed:
        found.setdefault(unproposed.reason, []).append(
            (unproposed.host, unproposed.detail, unproposed.evidence.count)
        )
    return found


# --- rules ----------------------------------------------------------------------------


def test_a_rule_has_who_used_what_how_often_and_when() -> None:
    draft = learned(
        [
            *gets(ONE, "a.example/v1/items/1", "a.example/v1/items/2", count=3, day=2),
            *gets(TWO, "b.example/"),
        ]
    )
    [first, second] = draft.rules
    assert (first.name, *opened(first)) == (
        "a.example-read",
        (ONE,),
        ("a.example",),
        READ,
        ("/v1/items/*",),
    )
    assert (first.evidence.count, first.evidence.first, first.evidence.last) == (
        6,
        AT,
        AT + timedelta(days=2),
    )
    assert opened(second) == ((TWO,), ("b.example",), READ, ("/",))
    assert (draft.placed, draft.listed) == (7, ())
    assert (
        "  # 6 requests, 1 client, 2026-11-25 12:00 to 2026-11-27 12:00\n  - name: "
        in yaml_of(draft)
    )


def test_clients_that_used_the_same_share_a_rule_and_hosts_used_alike_too() -> None:
    hosts = ("a.example", "b.example")
    draft = learned(
        use
        for client in (ONE, TWO)
        for host in hosts
        for use in gets(client, f"{host}/x", f"{host}/y")
    )
    assert [opened(rule) for rule in draft.rules] == [
        ((ONE, TWO), hosts, READ, ("/x", "/y"))
    ]


NAMES = {
    "one host": (("a.acme.example",), (ONE,), "a.acme.example-read"),
    "hosts of one owner": (
        ("a.acme.example", "b.acme.example"),
        (ONE, TWO),
        "acme.example-read",
    ),
    "pages of two owners": (
        ("a.github.io", "b.github.io"),
        (ONE,),
        f"{ONE}-sites-read",
    ),
    "hosts of several owners": (
        ("a.acme.example", "b.vendor.example"),
        (ONE,),
        f"{ONE}-sites-read",
    ),
    "the same for several clients": (
        ("a.acme.example", "b.vendor.example"),
        (ONE, TWO),
        "sites-read",
    ),
}


@pytest.mark.parametrize(("hosts", "clients", "name"), NAMES.values(), ids=NAMES)
def test_a_rule_is_named_for_what_its_hosts_have_in_common(
    hosts: tuple[str, ...], clients: tuple[str, ...], name: str
) -> None:
    draft = learned(
        use for client in clients for host in hosts for use in gets(client, f"{host}/x")
    )
    assert [rule.name for rule in draft.rules] == [name]


def test_a_further_host_leaves_a_rule_its_name() -> None:
    owners = ["m.example", "z.example", "a.example"]
    names = {
        learned(use for host in owners[:n] for use in gets(ONE, f"{host}/x"))
        .rules[0]
        .name
        for n in (2, 3)
    }
    assert names == {f"{ONE}-sites-read"}


def test_clients_are_divided_by_path_or_paths_by_client_whatever_takes_fewer_rules() -> (
    None
):
    four = "192.168.137.5"
    used = {ONE: "ab", TWO: "abc", THREE: "ac", four: "a"}
    draft = learned(
        use
        for client, paths in used.items()
        for path in paths
        for use in gets(client, f"a.example/{path}")
    )
    assert {(rule.paths, rule.clients) for rule in draft.rules} == {
        (("/a",), (ONE, TWO, THREE, four)),
        (("/b",), (ONE, TWO)),
        (("/c",), (TWO, THREE)),
    }
    draft = learned(
        use
        for client in (ONE, TWO)
        for path in f"a{client[-1]}"
        for use in gets(client, f"a.example/{path}x")
    )
    assert {(rule.paths, rule.clients) for rule in draft.rules} == {
        (("/2x", "/ax"), (ONE,)),
        (("/3x", "/ax"), (TWO,)),
    }


@pytest.mark.parametrize(
    ("names", "patterns"),
    [("abcdefgh", ("/*",)), ("abcde", ("/a", "/b", "/c", "/d", "/e"))],
)
def test_a_path_with_an_escaped_slash_is_proposed_as_it_is(
    names: str, patterns: tuple[str, ...]
) -> None:
    uses = gets(
        ONE, "a.example/@types%2fnode", *(f"a.example/{name}" for name in names)
    )
    draft = learned(uses)
    assert [rule.paths for rule in draft.rules] == [
        tuple(sorted((*patterns, "/@types%2Fnode")))
    ]
    assert all(is_allowed(loaded(draft), use) for use in uses)


def test_a_write_keeps_its_paths_and_its_host() -> None:
    posts = [
        use(ONE, "POST", f"https://h{number}.a.example/v1/items/{number}")
        for number in range(9)
    ]
    draft = learned(posts)
    assert sorted(rule.hosts[0] for rule in draft.rules) == sorted(
        f"h{number}.a.example" for number in range(9)
    )
    assert all(rule.paths == (f"/v1/items/{rule.hosts[0][1]}",) for rule in draft.rules)


def test_a_write_with_many_paths_is_listed_with_the_pattern_that_a_person_may_choose() -> (
    None
):
    draft = learned(
        use(ONE, "POST", f"https://a.example/v1/items/{number}") for number in range(20)
    )
    assert draft.rules == ()
    assert reasons(draft) == {
        Unproposed.MANY_PATHS: [("a.example", "POST /v1/items/*", 20)]
    }


def test_schemes_ports_and_websockets_are_those_that_were_used() -> None:
    http = use(ONE, "GET", "http://a.example/x")
    both = [http, *gets(ONE, "a.example/x")]
    assert [rule.schemes for rule in learned([http]).rules] == [("http",)]
    assert [rule.schemes for rule in learned(both).rules] == [("http", "https")]
    draft = learned(
        [*gets(ONE, "a.example:8443/x"), *gets(ONE, "b.example/live", websocket=True)]
    )
    assert [(rule.port, rule.websocket) for rule in draft.rules] == [
        (8443, False),
        (None, True),
    ]
    policy = loaded(draft)
    assert not is_allowed(policy, use(ONE, "GET", "https://a.example/x"))
    assert [rule.websocket for rule in policy.source.rules] == [False, True]


def test_the_query_is_not_learned_and_the_rule_allows_any() -> None:
    draft = learned(gets(ONE, "a.example/x"))
    assert is_allowed(loaded(draft), use(ONE, "GET", "https://a.example/x?q=1"))


# --- presets --------------------------------------------------------------------------


def test_a_preset_takes_the_place_of_rules_for_the_clients_that_used_it() -> None:
    urls = ("pypi.org/simple/six/", "pypi.org/simple/idna/")
    draft = learned(
        [
            *gets(ONE, *urls),
            *gets(TWO, "pypi.org/simple/rich/"),
            *gets(THREE, "a.example/"),
        ],
        presets=True,
    )
    assert [(one.name, one.clients, one.evidence.count) for one in draft.presets] == [
        ("pypi@2", (ONE, TWO), 3)
    ]
    assert [rule.hosts for rule in draft.rules] == [("a.example",)]
    policy = loaded(draft)
    [six] = gets(ONE, "pypi.org/simple/six/")
    assert is_allowed(policy, six)
    assert not is_allowed(policy, six, THREE)


def test_what_a_preset_does_not_allow_is_a_rule_beside_it() -> None:
    uses = [
        *gets(ONE, "pypi.org/simple/six/"),
        use(ONE, "POST", "https://pypi.org/upload"),
    ]
    draft = learned(uses, presets=True)
    assert [preset.name for preset in draft.presets] == ["pypi@2"]
    assert [opened(rule)[1:] for rule in draft.rules] == [
        (("pypi.org",), ("POST",), ("/upload",))
    ]


# --- what is not proposed -------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "reason", "detail"),
    [
        (use(ONE, "GET", "https://a.example/", new=True), Unproposed.NEW, ""),
        (use(ONE, "GET", "https://203.0.113.7/"), Unproposed.ADDRESS, ""),
        (use(ONE, "GET", "https://203-0-113-7.nip.io/"), Unproposed.ADDRESS, ""),
        (use(ONE, "GET", "https://a.example/", private=True), Unproposed.PRIVATE, ""),
        (
            use(ONE, "GET", "https://a.example/x?q", uploaded=2_000_000),
            Unproposed.UPLOADS,
            "",
        ),
        (
            use(ONE, "GET", "https://a.example/", denied_by="no-a"),
            Unproposed.DENIED,
            "no-a",
        ),
        (use(ONE, "CONNECT", "a.example:443"), Unproposed.TUNNEL, ""),
        (use(ONE, "GET", "https://a.example/a/../b"), Unproposed.UNUSUAL, ""),
        (use(ONE, "get", "https://a.example/"), Unproposed.UNUSUAL, ""),
        (
            use(ONE, "GET", "https://a.example/", user="%0A"),
            Unproposed.UNUSUAL,
            "the user",
        ),
        (
            use(ONE, "GET", "https://a.example/", user="%FF"),
            Unproposed.UNUSUAL,
            "the user",
        ),
        (use(ONE, "GET", "https://a.example:0/"), Unproposed.UNUSUAL, ""),
    ],
)
def test_what_a_person_has_to_decide_is_listed_and_not_proposed(
    one: Use, reason: Unproposed, detail: str
) -> None:
    draft = learned([one])
    assert (draft.rules, draft.placed) == ((), 0)
    assert reasons(draft) == {reason: [(one.host, detail, 1)]}
    assert f"# {reason}: " in yaml_of(draft)


def test_uploads_to_a_host_that_answers_as_much_are_usual() -> None:
    assert (
        learned(
            [
                use(
                    ONE,
                    "POST",
                    "https://a.example/",
                    uploaded=2_000_000,
                    downloaded=1_000_000,
                )
            ]
        ).placed
        == 1
    )


def test_few_clients_or_days_are_listed() -> None:
    shared = [
        use for client in (ONE, TWO) for use in gets(client, "a.example/x", day=1)
    ]
    draft = learned(
        [*shared, *gets(ONE, "a.example/own", day=1), *gets(TWO, "b.example/")],
        clients=2,
    )
    assert [opened(rule) for rule in draft.rules] == [
        ((ONE, TWO), ("a.example",), READ, ("/x",))
    ]
    assert reasons(draft) == {
        Unproposed.FEW_CLIENTS: [
            ("a.example", "GET HEAD /own", 1),
            ("b.example", "GET HEAD /", 1),
        ]
    }
    draft = learned([*shared, *gets(TWO, "b.example/")], days=2)
    assert [rule.hosts for rule in draft.rules] == [("a.example",)]
    assert reasons(draft) == {Unproposed.FEW_DAYS: [("b.example", "GET HEAD /", 1)]}


def test_addresses_that_one_machine_can_choose_count_as_one() -> None:
    addresses = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
    uses = [use for address in addresses for use in gets(address, "a.example/x")]
    assert learned(uses[:2], clients=2).rules == ()
    assert [rule.clients for rule in learned(uses, clients=2).rules] == [addresses]


def test_one_machine_with_a_login_and_without_is_one_client(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path, CLIENTS)
    own = [
        use
        for user in ("-", "ci", "x")
        for use in gets(HOSTILE, "a.example/", user=user)
    ]
    assert learned(own, Askers(policy), clients=2).rules == ()
    assert [rule.clients for rule in learned(own, Askers(policy)).rules] == [
        ("ci", HOSTILE, f"x@{HOSTILE}")
    ]
    roaming = [
        use for client in (ONE, TWO) for use in gets(client, "a.example/", user="ci")
    ]
    assert learned(roaming, Askers(policy), clients=2).rules == ()


def test_the_addresses_that_a_client_of_the_policy_lists_are_one_client(
    tmp_path: Path,
) -> None:
    policy = compiled_of(
        tmp_path, "clients:\n  vm: {networks: [192.168.137.9, 192.168.137.10]}\n"
    )
    own = [
        use
        for client in ("192.168.137.9", "192.168.137.10")
        for use in gets(client, "a.example/")
    ]
    assert [rule.clients for rule in learned(own, Askers(policy)).rules] == [("vm",)]
    assert learned(own, Askers(policy), clients=2).rules == ()
    both = [*own, *gets("192.168.137.11", "a.example/")]
    assert [
        rule.clients for rule in learned(both, Askers(policy), clients=2).rules
    ] == [("vm", "192.168.137.11")]


def test_another_client_speaks_for_what_its_own_pattern_covers() -> None:
    wide = gets(ONE, *(f"a.example/simple/{name}/" for name in "abcdefgh"))
    draft = learned(
        [*wide, *gets(TWO, "a.example/simple/six/"), *gets(TWO, "a.example/other")],
        clients=2,
    )
    assert [opened(rule) for rule in draft.rules] == [
        ((TWO,), ("a.example",), READ, ("/simple/six/",))
    ]


def test_a_preset_that_one_client_used_is_listed_where_two_are_asked_for() -> None:
    draft = learned(gets(ONE, "pypi.org/simple/six/"), presets=True, clients=2)
    assert draft.presets == ()
    assert reasons(draft) == {Unproposed.FEW_CLIENTS: [("", "preset pypi@2", 1)]}


# --- clients --------------------------------------------------------------------------


def test_a_client_of_the_policy_stands_for_its_machines_if_all_of_them_may(
    tmp_path: Path,
) -> None:
    policy = compiled_of(tmp_path, CLIENTS)
    everywhere = [use for client in (ONE, TWO) for use in gets(client, "a.example/")]
    draft = learned([*everywhere, *gets(ONE, "b.example/")], Askers(policy))
    assert [(rule.clients, rule.hosts) for rule in draft.rules] == [
        (("agents",), ("a.example",)),
        ((ONE,), ("b.example",)),
    ]
    assert [*draft.defined] == [ONE, "agents"]
    draft = learned([*everywhere, *gets(THREE, "b.example/")], Askers(policy))
    assert [rule.clients for rule in draft.rules] == [(ONE, TWO), (THREE,)]
    draft = learned(gets(ONE, "a.example/"), Askers(policy))
    assert [rule.clients for rule in draft.rules] == [(ONE,)]


def test_a_client_with_one_address_or_a_token_keeps_its_name(tmp_path: Path) -> None:
    uses = [
        *gets("192.168.138.9", "a.example/"),
        *gets(ONE, "b.example/", user="ci"),
        *gets(TWO, "c.example/", user="x"),
    ]
    draft = learned(uses, Askers(compiled_of(tmp_path, CLIENTS)))
    assert [rule.clients for rule in draft.rules] == [("solo",), ("ci",), (f"x@{TWO}",)]
    policy = loaded(draft)
    assert all(is_allowed(policy, use) for use in uses)
    assert not is_allowed(policy, replace(uses[2], user="y"))


def test_users_with_long_names_are_told_apart() -> None:
    uses = [
        use(ONE, "GET", f"https://{end}.example/", user=f"{'x' * 200}{end}")
        for end in "ab"
    ]
    draft = learned(uses)
    assert len({rule.clients for rule in draft.rules}) == 2
    policy = loaded(draft)
    assert [is_allowed(policy, use) for use in uses] == [True, True]
    assert not is_allowed(policy, replace(uses[0], user=uses[1].user))


def test_one_client_of_the_policy_is_learned_as_one(tmp_path: Path) -> None:
    askers = Askers(compiled_of(tmp_path, CLIENTS), "agents")
    own = [
        gets(f"192.168.137.{n}", f"a.example/p{n}x/a", f"a.example/q{n}x/a")
        for n in range(2, 8)
    ]
    draft = learned(
        [*chain(*own), *gets("192.168.138.9", "b.example/")], askers, clients=2
    )
    assert [opened(rule) for rule in draft.rules] == [
        (("agents",), ("a.example",), READ, ("/*/a",))
    ]
    assert draft.used is not None
    assert draft.used.count == 12


def test_writes_of_one_client_are_listed_where_its_machines_together_have_too_many_paths(
    tmp_path: Path,
) -> None:
    uses = [
        use(f"192.168.137.{n}", "POST", f"https://a.example/{m}/{n}")
        for n in range(2, 6)
        for m in range(5)
    ]
    draft = learned(uses, Askers(compiled_of(tmp_path, CLIENTS), "agents"))
    assert (draft.rules, reasons(draft)) == (
        (),
        {Unproposed.MANY_PATHS: [("a.example", "POST", 20)]},
    )


def test_within_one_client_a_machine_that_floods_makes_nothing_wider(
    tmp_path: Path,
) -> None:
    policy = compiled_of(tmp_path, CLIENTS)
    honest = [
        use
        for client in (ONE, TWO)
        for use in gets(client, "a.example/x", "a.example/y/z")
    ]
    flood = gets(
        HOSTILE,
        *(f"a.example/v{n}w" for n in range(500)),
        *(f"evil{n}.test/" for n in range(500)),
    )
    before = learned(honest, Askers(policy, "agents"), clients=2)
    after = learned([*honest, *flood], Askers(policy, "agents"), clients=2)
    assert [opened(rule) for rule in after.rules] == [
        opened(rule) for rule in before.rules
    ]


# --- one hostile client ---------------------------------------------------------------


def test_a_client_that_floods_pushes_nothing_of_others_out() -> None:
    honest = [
        use
        for client in (ONE, TWO)
        for use in gets(client, "a.example/x", "b.example/y/1")
    ]
    flood = gets(
        HOSTILE,
        *(f"a.example/v{n}w" for n in range(1000)),
        *(f"x.evil{n}.test/" for n in range(1500)),
        count=99,
    )
    flood += [
        use(HOSTILE, f"M{'A' * (n % 20)}{'B' * (n // 20)}", "https://a.example/")
        for n in range(300)
    ]
    before, after = learned(honest), learned([*honest, *flood])
    of_others = [opened(rule) for rule in after.rules if HOSTILE not in rule.clients]
    assert of_others == [opened(rule) for rule in before.rules]
    assert (
        sum(len(rule.hosts) for rule in after.rules if HOSTILE in rule.clients) <= 310
    )
    assert len(yaml_of(after)) < 100_000
    assert Unproposed.MANY_HOSTS in reasons(after)
    assert (
        learned([*honest, *flood], clients=2).rules == learned(honest, clients=2).rules
    )


AGENTS = load_sources(
    sources_of((parse_document(Path("policy.yaml"), f"version: 1{CLIENTS}".encode()),)),
    AT,
).compiled
PATHS = [
    "/",
    "/x",
    "/x/1",
    "/x/2",
    "/y/a",
    "/y/b",
    "/y/c",
    "/y/d",
    "/y/e",
    "/y/f",
    "/%40s%2Fn",
    "/z/",
    "/x/deadbeef01",
    "/*",
]
HOSTS = [
    "a.example.com",
    "b.example.com",
    "example.com",
    "x.github.io",
    "y.github.io",
    "s3.amazonaws.com",
    "203.0.113.7",
]
HOSTS += [f"h{number}.cdn.example.com" for number in range(7)]
drawn_uses = st.builds(
    lambda client, method, host, path, port, scheme: use(
        client, method, f"{scheme}://{host}{port}{path}"
    ),
    st.sampled_from([ONE, TWO, THREE]),
    st.sampled_from(["GET", "GET", "HEAD", "POST", "PUT"]),
    st.sampled_from(HOSTS),
    st.one_of(
        st.sampled_from(PATHS),
        st.text("ab/1%", max_size=6).map(lambda text: f"/{text}"),
    ),
    st.sampled_from(["", "", ":8443"]),
    st.sampled_from(["https", "https", "http"]),
)
askers = st.sampled_from([(None, None), (AGENTS, None), (AGENTS, "agents")]).map(
    lambda one: Askers(*one)
)


def weighted(uses: list[Use]) -> list[Use]:
    """Count each use apart, so that a sum tells which were counted."""
    different = {(use.client, use.method, use.url): use for use in uses}
    return [
        replace(use, count=1 << place) for place, use in enumerate(different.values())
    ]


def check_placed(uses: list[Use], askers: Askers, clients: int) -> None:
    draft = learned(uses, askers, clients=clients)
    policy = loaded(draft)
    assert warnings(draft) == []
    placed = [use for use in uses if draft.placed & use.count]
    assert [use for use in placed if not is_allowed(policy, use)] == []
    assert draft.placed + sum(apart.evidence.count for apart in draft.listed) == sum(
        use.count for use in uses
    )
    owners = {registrable_domain(use.host) or use.host for use in uses}
    for rule in draft.rules:
        names = [parse_host_pattern(host).name for host in rule.hosts]
        assert {registrable_domain(name) or name for name in names} <= owners
        assert set(rule.methods) <= set(READ) or not any(
            "*" in path for path in rule.paths
        )


@few_and_many(50, 800)
def test_what_is_placed_is_allowed_and_the_rest_is_listed(examples: int) -> None:
    uses = st.lists(drawn_uses, max_size=40).map(weighted)
    hold_for(check_placed, uses, askers, st.integers(1, 3), examples=examples)


def check_not_wider(uses: list[Use], hostile: list[Use]) -> None:
    hostile = [replace(use, client=HOSTILE) for use in hostile]
    for policy in (None, AGENTS):
        before, after = (
            loaded(learned(uses, Askers(policy))),
            loaded(learned([*uses, *hostile], Askers(policy))),
        )
        for used in (*uses, *hostile):
            for client in {other.client for other in uses}:
                if is_allowed(after, used, client):
                    assert is_allowed(before, used, client), (used, client)
        strict = loaded(learned([*uses, *hostile], Askers(policy), clients=2))
        assert all(is_allowed(before, use) for use in uses if is_allowed(strict, use))


@few_and_many(50, 400)
def test_a_hostile_client_makes_nothing_wider_for_the_others(examples: int) -> None:
    hold_for(
        check_not_wider,
        st.lists(drawn_uses, max_size=20),
        st.lists(drawn_uses, max_size=20),
        examples=examples,
    )


@settings(max_examples=50)
@given(st.lists(drawn_uses, max_size=20), st.lists(drawn_uses, min_size=1, max_size=20))
def test_what_one_client_alone_used_is_not_proposed_where_two_are_asked_for(
    uses: list[Use], own: list[Use]
) -> None:
    own = [replace(use, client=HOSTILE) for use in own]
    used = {(use.method, use.url) for use in uses}
    policy = loaded(learned([*uses, *own], clients=2))
    widest = loaded(learned(replace(use, client=HOSTILE) for use in uses))
    for one in own:
        if is_allowed(policy, one):
            assert (one.method, one.url) in used or is_allowed(widest, one)


hostile_text = st.text(max_size=12)


@settings(max_examples=50)
@given(hostile_text, hostile_text, hostile_text)
@example("", "", "\U0001ee67 \u7528")
@example("", "", " ")
def test_what_a_client_made_up_breaks_out_of_nothing(
    host: str, path: str, user: str
) -> None:
    uses = [
        use(
            ONE,
            "GET",
            f"https://{quote(host, errors='replace')}/{quote(path, errors='replace')}",
        ),
        use(
            ONE,
            "POST",
            f"https://a.example/{quote(path, safe='', errors='replace')}",
            user=quote(user, errors="replace") or "-",
        ),
        use(
            ONE, "GET", f"https://a.example/{path}\n#: *x", denied_by=f"{host}\n{user}"
        ),
    ]
    draft = learned(uses)
    text = yaml_of(draft)
    loaded(draft)
    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))


# --- the command ----------------------------------------------------------------------


def log(folder: Path, *records: dict[str, Any], name: str = "access.log") -> Path:
    file = folder / name
    lines = (
        record_line(**{"time": after_noon(second), **fields})
        for second, fields in enumerate(records)
    )
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        main, ["learn", "--min-clients", "1", *map(str, arguments)]
    )


def drafted(file: Path, *options: object) -> dict[str, Any]:
    result = run(file, "--policy", file.parent / "policy", "--json", *options)
    assert result.exit_code == 0, result.output
    draft: dict[str, Any] = json.loads(result.stdout)
    return draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "policy.yaml").write_text(f"version: 1{CLIENTS}")
    return tmp_path


def hosts(draft: dict[str, Any]) -> list[str]:
    return [host for rule in draft["rules"] for host in rule["hosts"]]


def test_what_was_used_is_learned_and_what_was_denied_or_failed_is_not(
    folder: Path,
) -> None:
    url = "https://{}.example/x".format
    file = log(
        folder,
        {"url": url("used")},
        {"url": url("redirected"), "status": 302},
        {"url": url("missing"), "status": 404},
        {"url": url("failed"), "status": 503, "error": "ERR_CONNECT_FAIL"},
        {"url": url("denied"), "status": 403, "verdict": "deny", "rule": "default"},
        {
            "url": url("asked"),
            "status": 404,
            "rule": "default",
            "observed": "deny:default",
        },
        {
            "url": url("would"),
            "status": 403,
            "verdict": "deny",
            "rule": "default",
            "observed": "allow:new",
        },
        {"url": url("watched"), "observed": "deny:no%20x"},
    )
    draft = drafted(file)
    assert hosts(draft) == [
        "asked.example",
        "redirected.example",
        "used.example",
        "would.example",
    ]
    [denied] = draft["listed"]
    assert (denied["reason"], denied["host"], denied["detail"]) == (
        "observed-deny",
        "watched.example",
        "no x",
    )
    assert (draft["used"]["requests"], draft["placed"]) == (5, 4)


def test_queries_count_only_where_a_preset_depends_on_them(folder: Path) -> None:
    git = "https://github.com/acme/app/info/refs?service=git-upload-pack"
    push = "https://github.com/acme/app/info/refs?service=git-receive-pack"
    records = (
        {"url": git},
        {"url": "https://a.example/x?a=1"},
        {"url": "https://a.example/x?a=2"},
        {"url": push},
    )
    draft = drafted(log(folder, *records))
    assert [preset["preset"] for preset in draft["presets"]] == ["github-read@2"]
    assert [
        (rule["hosts"], rule["paths"], rule["requests"]) for rule in draft["rules"]
    ] == [
        (["a.example"], ["/x"], 2),
        (["github.com"], ["/acme/app/info/refs"], 1),
    ]
    assert drafted(log(folder, *records), "--no-presets")["presets"] == []


def test_hosts_of_the_last_day_are_new_where_the_record_tells(folder: Path) -> None:
    day = 86_400
    long_ago = {"time": after_noon(-3 * day), "url": "https://old.example/"}
    records = (
        long_ago,
        {"url": "https://old.example/"},
        {"url": "https://new.example/"},
    )
    draft = drafted(log(folder, *records))
    assert hosts(draft) == ["old.example"]
    assert [
        (unproposed["reason"], unproposed["host"]) for unproposed in draft["listed"]
    ] == [("new", "new.example")]
    assert hosts(drafted(log(folder, *records), "--since", after_noon(0))) == [
        "old.example"
    ]
    short = drafted(log(folder, *records[1:]))
    assert hosts(short) == ["new.example", "old.example"]
    assert "too short to tell which hosts are new" in short["notes"][0]


def test_a_server_at_a_private_address_is_listed_unless_a_parent_has_it(
    folder: Path,
) -> None:
    draft = drafted(
        log(
            folder,
            {"url": "https://in.example/", "upstream": "10.0.0.9"},
            {
                "url": "https://parent.example/",
                "upstream": "10.0.0.9",
                "squid": "TCP_MISS/FIRSTUP_PARENT",
            },
            {
                "url": "https://mirror.example/",
                "upstream": "10.0.0.9",
                "fetched": "https://in.example/",
            },
        )
    )
    assert hosts(draft) == ["mirror.example", "parent.example"]
    assert [
        (unproposed["reason"], unproposed["host"]) for unproposed in draft["listed"]
    ] == [("private", "in.example")]


def test_the_draft_is_a_policy_and_the_order_of_the_log_makes_no_difference(
    folder: Path,
) -> None:
    records = [
        {
            "time": after_noon(second),
            "client": f"192.168.137.{second % 5}",
            "url": f"https://h{second % 7}.example/{second % 3}",
        }
        for second in range(60)
    ]
    first = run(log(folder, *records), "--policy", folder / "policy")
    random.Random(1).shuffle(records)
    assert first.exit_code == 0
    assert (
        run(log(folder, *records), "--policy", folder / "policy").stdout == first.stdout
    )
    draft = folder / "draft"
    draft.mkdir()
    (draft / "policy.yaml").write_text(first.stdout)
    assert load(draft, AT).warnings == ()


def test_a_replay_of_the_draft_denies_only_what_was_listed(folder: Path) -> None:
    paths = (("GET", "v1/{}"), ("POST", "jobs/{}"), ("GET", "a/../b"), ("PUT", "x"))
    records = [
        {
            "client": f"192.168.137.{second % 5}",
            "method": method,
            "url": f"https://h{second % 2}.example/{path.format(second)}",
            "tunnel": f"h{second % 2}.example:443",
        }
        for second in range(200)
        for method, path in paths
    ]
    file = log(folder, *records)
    found = drafted(file)
    (folder / "draft").mkdir()
    assert (
        run(
            file,
            "--policy",
            folder / "policy",
            "--output",
            folder / "draft" / "policy.yaml",
        ).exit_code
        == 0
    )
    (folder / "old").mkdir()
    (folder / "old" / "policy.yaml").write_text(
        "version: 1\ndefaults: {action: allow}\n"
    )
    options = (
        "--policy",
        folder / "draft",
        "--against",
        folder / "old",
        "--json",
        "--allow-denials",
        1000,
    )
    replayed = CliRunner().invoke(main, ["replay", str(file), *map(str, options)])
    denied = json.loads(replayed.stdout)["totals"]["denied"]["used"]
    assert (found["used"]["requests"], found["placed"]) == (800, 400)
    assert denied == found["used"]["requests"] - found["placed"]


def test_a_client_that_the_policy_lacks_is_refused(folder: Path) -> None:
    result = run(log(folder, {}), "--policy", folder / "policy", "--client", "nobody")
    assert result.exit_code == 2
    assert (
        "nobody is no client of the policy, expected one of agents, solo, ci"
        in result.stderr
    )
    assert hosts(drafted(log(folder, {}), "--client", "agents")) == ["open.example"]
    assert (
        run(
            log(folder, {}), "--policy", folder / "policy", "--client", "solo"
        ).exit_code
        == 2
    ), "it used nothing"


def test_a_client_whose_machines_differ_is_pointed_at_the_option_for_one_list(
    folder: Path,
) -> None:
    records = [
        {"client": client, "url": f"https://a.example/{client}x"}
        for client in (ONE, TWO)
    ]
    [_, hint] = drafted(log(folder, *records))["notes"]
    assert (
        hint
        == "2 addresses of client agents used different things: --client agents --min-clients 2 drafts one list."
    )
    assert len(drafted(log(folder, *records), "--client", "agents")["notes"]) == 1
    assert len(drafted(log(folder, *records[:1]))["notes"]) == 1


def test_without_an_option_no_client_learns_itself_anything(folder: Path) -> None:
    shared = [{"client": client, "url": "https://a.example/"} for client in (ONE, TWO)]
    file = log(
        folder,
        *shared,
        *({"client": ONE, "url": f"https://evil.example/{n}"} for n in range(3)),
    )

    def learned_by(*options: str) -> dict[str, Any]:
        words = (
            "learn",
            str(file),
            "--policy",
            str(folder / "policy"),
            "--json",
            *options,
        )
        draft: dict[str, Any] = json.loads(CliRunner().invoke(main, words).stdout)
        return draft

    draft = learned_by()
    assert hosts(draft) == ["a.example"]
    assert {(apart["reason"], apart["host"]) for apart in draft["listed"]} == {
        ("few-clients", "evil.example")
    }
    told = "3 requests listed as few-clients, because no 2 clients used the same: --client NAME drafts for one client."
    assert told in draft["notes"]
    assert hosts(learned_by("--client", "agents")) == ["a.example", "evil.example"]
    assert hosts(learned_by("--min-clients", "1")) == ["a.example", "evil.example"]


def test_without_a_policy_each_address_is_a_client(folder: Path) -> None:
    result = run(log(folder, {}), "--policy", folder / "none")
    assert result.exit_code == 0
    assert "does not load: each address is a client of the draft" in result.stderr
    assert 'clients: ["192.168.137.2"]' in result.stdout


def test_an_output_is_a_new_file_that_others_cannot_read(folder: Path) -> None:
    output = folder / "draft.yaml"
    assert (
        run(
            log(folder, {}), "--policy", folder / "policy", "--output", output
        ).exit_code
        == 0
    )
    assert output.stat().st_mode & 0o777 == 0o640
    before = output.read_bytes()
    again = run(log(folder, {}), "--policy", folder / "policy", "--output", output)
    assert (again.exit_code, output.read_bytes()) == (2, before)
    failed = run(
        folder / "missing.log",
        "--policy",
        folder / "policy",
        "--output",
        folder / "other.yaml",
    )
    assert failed.exit_code == 2
    assert not (folder / "other.yaml").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a group of others is needed")
def test_an_output_in_the_folder_of_a_policy_is_like_its_files(folder: Path) -> None:
    beside = folder / "policy" / "policy.yaml"
    os.chown(beside, -1, 12345)
    beside.chmod(0o640)
    output = folder / "policy" / "00-draft.yaml"
    assert (
        run(
            log(folder, {}), "--policy", folder / "policy", "--output", output
        ).exit_code
        == 0
    )
    assert (output.stat().st_gid, output.stat().st_mode & 0o777) == (12345, 0o640)
    elsewhere = folder / "draft.yaml"
    assert (
        run(
            log(folder, {}), "--policy", folder / "policy", "--output", elsewhere
        ).exit_code
        == 0
    )
    assert (elsewhere.stat().st_gid, elsewhere.stat().st_mode & 0o777) == (12345, 0o640)
    beside.chmod(0o664)
    output.unlink()
    assert (
        run(
            log(folder, {}), "--policy", folder / "policy", "--output", output
        ).exit_code
        == 0
    )
    assert output.stat().st_mode & 0o777 == 0o644


def test_an_output_beside_files_of_a_policy_defines_nothing_twice(folder: Path) -> None:
    policy = folder / "policy"
    logged = log(folder, *({"client": f"192.168.137.{number}"} for number in (2, 3)))
    assert "\nclients:" in run(logged, "--policy", policy).stdout
    learned = run(logged, "--policy", policy, "--output", policy / "learned.yaml")
    assert learned.exit_code == 0
    text = (policy / "learned.yaml").read_text()
    assert "\nclients:" not in text
    assert "# Left out, as another file of the folder defines it: " in text
    assert load(policy, datetime.now(UTC)).compiled.source.rules[-1].match.clients


@pytest.mark.parametrize(
    "records", [(), ({"verdict": "deny", "rule": "no", "status": 403},)]
)
def test_where_nothing_was_used_there_is_no_draft(
    folder: Path, records: tuple[dict[str, Any], ...]
) -> None:
    output = folder / "draft.yaml"
    learned = run(
        log(folder, *records), "--policy", folder / "policy", "--output", output
    )
    assert (learned.exit_code, learned.stdout) == (2, "")
    assert (
        "0 requests were used, or asked for while the policy observed: nothing to propose"
        in learned.stderr
    )
    assert not output.exists()
