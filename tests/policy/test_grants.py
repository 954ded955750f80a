"""Grants and asks in the decision: what they open, what they never do, and where a
person is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidUrl, PatternError, PolicyError
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, decide
from squidkeeper.policy.language.exact_urls import parse_exact_url
from squidkeeper.policy.language.model import Action, Match, Policy, Rule
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.url import parse_url, readings
from squidkeeper.serving.helpers.acl import HostScope

from ..conftest import NOW, Ask, compiled_of, decided
from .test_engine_properties import PLACE, methods, ruled, urls

AGENT, OTHER = "192.0.2.7", "198.51.100.7"
LATER = NOW + timedelta(hours=3)


def said(decision: Decision) -> str:
    verdict = Action.ASK if decision.asks and not decision.allowed else decision.action
    return f"{verdict} by {decision.rule}"


POLICY = """
clients:
  agents: {networks: [192.0.2.0/24]}
rules:
  - {name: no-secrets, action: deny, hosts: [.a.example], paths: [/secret/**]}
  - {name: read, action: allow, hosts: [.a.example], methods: [GET], paths: [/open/**]}
  - {name: ask-a, action: ask, hosts: [.a.example], reason: Ask the platform team.}
  - {name: below-ask, action: allow, hosts: [a.example]}
  - {name: inside, action: allow, hosts: [10.0.0.1], paths: [/open], private: true}
  - {name: no-b, action: deny, hosts: [b.example]}
grants:
  - {name: g-path, clients: [agents], hosts: [a.example], paths: [/p/**, /secret/**],
     expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-post, clients: [agents], hosts: [a.example], methods: [POST], expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-b, clients: [agents], hosts: [b.example], expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-c, clients: [agents], hosts: [c.example], expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-counted, clients: [agents], hosts: [d.example], uses: 2, expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-url, clients: [agents], urls: ["https://e.example/x%2Fy?q=*&b"], expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-name, any_client: true, hosts: [i.internal], expires: 2026-11-24T14:00:00Z, reason: x}
  - {name: g-odd, any_client: true, hosts: [f.example], schemes: [http], ports: [8080],
     expires: 2026-11-24T14:00:00Z, reason: x}
"""

TABLE = {
    # where an ask decides, the first grant that matches opens
    "GET https://a.example/p/1": "allow by g-path",
    "POST https://a.example/p/1": "allow by g-path",
    "POST https://a.example/q": "allow by g-post",
    "GET https://a.example/q": "ask by ask-a",
    "GET https://x.a.example/p/1": "ask by ask-a",
    "GET https://a.example/open/1": "allow by read",
    # a rule that denies or allows is never overridden, wherever a grant stands
    "GET https://a.example/secret/1": "deny by no-secrets",
    "GET https://b.example/": "deny by no-b",
    # where the default decides
    "GET https://c.example/": "allow by g-c",
    "GET http://c.example/": "allow by g-c",
    "GET https://c.example:8443/": "deny by default",
    "GET https://unknown.example/": "deny by default",
    "GET https://d.example/": "allow by g-counted",
    # exactly that URL
    "GET https://e.example/x%2Fy?q=*&b": "allow by g-url",
    "GET https://e.example/x%2fy?q=*&b": "allow by g-url",
    "GET https://e.example/x/y?q=*&b": "deny by default",
    "GET https://e.example/x%2Fy?q=1&b": "deny by default",
    "GET https://e.example/x%2Fy?q=*&b&c": "deny by default",
    "GET https://e.example/x%2Fy?b&q=*": "deny by default",
    "GET https://e.example/x%2Fy": "deny by default",
    "GET http://e.example/x%2Fy?q=*&b": "deny by default",
    "GET https://e.example:8443/x%2Fy?q=*&b": "deny by default",
    # schemes and ports
    "GET http://f.example:8080/": "allow by g-odd",
    "GET http://f.example/": "deny by default",
    # readings that the policy tells apart are no question for a person
    "GET https://a.example/p/..%2fq": "deny by ambiguous-path",
    "GET https://a.example/q/..%2fopen/x": "deny by ambiguous-path",
    "GET https://a.example/q/..%2fsecret/x": "deny by ambiguous-path",
    # tunnels
    "CONNECT a.example:443": "allow by read",
    "CONNECT c.example:443": "allow by g-c",
    "CONNECT d.example:443": "allow by g-counted",
    "CONNECT e.example:443": "allow by g-url",
    "CONNECT b.example:443": "deny by no-b",
    "CONNECT c.example:8443": "deny by default",
}


@pytest.mark.parametrize(("asked", "expected"), TABLE.items(), ids=TABLE)
def test_a_grant_opens_only_what_the_default_or_an_ask_would_decide(
    asker: Callable[[str], Ask], asked: str, expected: str
) -> None:
    assert said(asker(POLICY)(asked, AGENT)) == expected


@pytest.mark.parametrize(
    ("asked", "client", "at", "expected"),
    [
        ("GET https://c.example/", OTHER, NOW, "deny by default"),
        ("GET https://c.example/", AGENT, LATER, "deny by default"),
        ("GET https://a.example/p/1", OTHER, NOW, "ask by ask-a"),
        ("GET https://a.example/p/1", AGENT, LATER, "ask by ask-a"),
        ("CONNECT c.example:443", AGENT, LATER, "deny by default"),
    ],
)
def test_a_grant_is_for_its_clients_until_it_lapses(
    asker: Callable[[str], Ask], asked: str, client: str, at: object, expected: str
) -> None:
    assert said(asker(POLICY)(asked, client, at=at)) == expected


def test_grants_of_one_file_are_below_the_denies_of_every_other(tmp_path: Path) -> None:
    grant = "grants: [{name: g, any_client: true, hosts: [a.example], expires: 2036-01-01T00:00:00Z, reason: x}]"
    (tmp_path / "10-grants.yaml").write_text(f"version: 1\n{grant}\n")
    compiled = compiled_of(
        tmp_path,
        "rules: [{name: closed, action: deny, hosts: [a.example], paths: [/x]}]",
    )
    for path, expected in {"/x": "deny by closed", "/y": "allow by g"}.items():
        assert (
            said(decided(compiled, request_to("GET", f"https://a.example{path}"), NOW))
            == expected
        )


# --- at host scope --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "needs_url", "asks", "may_ask"),
    [
        ("GET https://a.example/", True, False, True),
        ("CONNECT a.example:443", False, False, True),
        ("GET https://c.example/", False, False, False),
        ("CONNECT c.example:443", False, False, False),
        (
            "GET https://d.example/",
            True,
            False,
            False,
        ),  # each use is counted, so each URL is asked about
        ("GET https://b.example/", False, False, False),
        ("GET https://unknown.example/", False, False, False),
    ],
)
def test_host_scope_says_what_the_url_decides_and_where_a_person_may_be_asked(
    tmp_path: Path, asked: str, needs_url: bool, asks: bool, may_ask: bool
) -> None:
    decision = at_host(compiled_of(tmp_path, POLICY), asked)
    assert (decision.outlook.needs_url, decision.asks, decision.outlook.may_ask) == (
        needs_url,
        asks,
        may_ask,
    )


def at_host(compiled: CompiledPolicy, asked: str, client: str = AGENT) -> Decision:
    method, _, target = asked.partition(" ")
    return decide(
        compiled, compiled.match(request_to(method, target, client)), NOW, Stage.HOST
    )


ASKING = """
clients:
  ci: {token_sha256: 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b}
defaults: {ask: true, reason: Ask first.}
rules:
  - {name: open, action: allow, hosts: [a.example], paths: [/open]}
  - {name: closed, action: deny, hosts: [b.example]}
  - {name: of-ci, action: allow, hosts: [c.example], clients: [ci]}
  - {name: no-ads, action: deny, hosts: [.d.example], paths: [/ads]}
grants:
  - {name: for-ci, clients: [ci], hosts: [e.example], expires: 2036-01-01T00:00:00Z, reason: x}
"""


@pytest.mark.parametrize(
    ("asked", "expected", "asks", "may_ask"),
    [
        ("GET https://a.example/", "allow by open", False, True),
        ("CONNECT a.example:443", "allow by open", False, True),
        ("GET https://b.example/", "deny by closed", False, False),
        ("CONNECT b.example:443", "deny by closed", False, False),
        ("GET https://z.example/", "allow by default", True, True),
        ("CONNECT z.example:443", "allow by default", True, True),
        ("CONNECT z.example:8443", "allow by default", True, True),
        ("GET https://d.example/", "allow by no-ads", False, True),
        ("CONNECT d.example:443", "allow by default", False, True),
    ],
)
def test_a_default_that_asks_lets_tunnels_open_for_the_url(
    tmp_path: Path, asked: str, expected: str, asks: bool, may_ask: bool
) -> None:
    decision = at_host(compiled_of(tmp_path, ASKING), asked)
    found = f"{decision.action} by {decision.rule}"
    assert (found, decision.asks, decision.outlook.may_ask) == (expected, asks, may_ask)


def test_a_default_that_asks_denies_each_url_with_its_reason(
    asker: Callable[[str], Ask],
) -> None:
    ask = asker(ASKING)
    decision = ask("GET https://z.example/x")
    assert (said(decision), decision.reason) == ("ask by default", "Ask first.")
    assert said(ask("GET https://a.example/open")) == "allow by open"
    assert said(ask("GET https://d.example/ads")) == "deny by no-ads"


@pytest.mark.parametrize(
    "asked",
    ["GET https://10.0.0.1/", "CONNECT 10.0.0.1:443", "GET http://169.254.169.254/"],
)
@pytest.mark.parametrize("default", ["ask: true", "action: deny"])
def test_a_private_address_is_neither_asked_about_nor_granted(
    tmp_path: Path, asked: str, default: str
) -> None:
    policy = compiled_of(tmp_path, f"defaults: {{{default}}}").source
    wide = Rule("g", PLACE, Action.ALLOW, Match(), expires=LATER)
    compiled = CompiledPolicy(replace(policy, grants=(wide,)))
    decision = decided(compiled, request_to(*asked.split(" ")), NOW)
    assert (said(decision), decision.outlook.may_ask) == (
        "deny by private-address",
        False,
    )
    decision = decided(CompiledPolicy(policy), request_to(*asked.split(" ")), NOW)
    assert not decision.allowed
    assert not decision.asks


def test_a_client_that_could_log_in_is_asked_to_before_a_person_is_asked(
    tmp_path: Path,
) -> None:
    scope = HostScope(compiled_of(tmp_path, ASKING))
    for host, expected in {
        "c.example": "yes",
        "e.example": "yes",
        "z.example": None,
    }.items():
        reply = scope.answer(f"192.0.2.7 - CONNECT - {host} 443 - - - -".encode())
        assert dict(reply.annotations).get("ask_login_") == expected


# --- what a grant does not give -------------------------------------------------------


def test_a_grant_makes_no_host_unrestricted_so_no_websocket_passes(
    tmp_path: Path,
) -> None:
    assert not at_host(
        compiled_of(tmp_path, POLICY), "GET https://c.example/"
    ).outlook.unrestricted


def test_credentials_of_the_policy_are_for_granted_requests_too(tmp_path: Path) -> None:
    text = """
    secrets: {token: {env: TOKEN}}
    credentials: [{name: api, hosts: [a.example], paths: [/v1/**], bearer: token}]
    grants: [{name: g, any_client: true, hosts: [a.example], expires: 2036-01-01T00:00:00Z, reason: x}]
    """
    decision = decided(
        compiled_of(tmp_path, text), request_to("GET", "https://a.example/v1/x"), NOW
    )
    assert [credential.name for credential in decision.credentials] == ["api"]


def test_grants_with_different_counts_for_the_readings_of_a_path_deny(
    tmp_path: Path,
) -> None:
    text = """
    grants:
      - {name: few, any_client: true, hosts: [a.example], paths: [/x/**], uses: 1,
         expires: 2036-01-01T00:00:00Z, reason: x}
      - {name: all, any_client: true, hosts: [a.example], expires: 2036-01-01T00:00:00Z, reason: x}
    """
    compiled = compiled_of(tmp_path, text)
    decision = decided(compiled, request_to("GET", "https://a.example/y/..%2fx/z"), NOW)
    assert said(decision) == "deny by ambiguous-path"


def test_a_grant_without_uses_left_leaves_the_next_one_or_the_rules_to_decide(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(tmp_path, POLICY)
    match = compiled.match(request_to("GET", "https://d.example/", AGENT))
    decision = decide(compiled, match, NOW, Stage.URL)
    assert (said(decision), decision.counted and decision.counted.uses) == (
        "allow by g-counted",
        2,
    )
    assert (
        said(decide(compiled, match, NOW, Stage.URL, spent={"g-counted"}))
        == "deny by default"
    )


def test_what_is_granted_is_not_observed_as_denied(asker: Callable[[str], Ask]) -> None:
    ask = asker("""
    defaults: {observe: true}
    grants: [{name: g, any_client: true, hosts: [a.example], paths: [/x], expires: 2036-01-01T00:00:00Z, reason: x}]
    """)
    for path, expected in {
        "/x": ("allow by g", None),
        "/y": ("allow by default", "deny:default"),
    }.items():
        decision = ask(f"GET https://a.example{path}")
        assert (said(decision), decision.observed) == expected


def test_a_policys_tests_can_expect_that_a_person_is_asked(tmp_path: Path) -> None:
    tests = [
        '{request: "GET https://z.example/", expect: ask, rule: default}',
        '{request: "GET https://z.example/", expect: deny}',
        '{request: "GET https://a.example/open", expect: allow}',
    ]
    compiled_of(tmp_path, f"{ASKING}tests: [{', '.join(tests)}]")
    with pytest.raises(PolicyError) as raised:
        compiled_of(
            tmp_path,
            f'{ASKING}tests: [{{request: "GET https://b.example/", expect: ask}}]',
        )
    assert "expected ask, got deny by closed" in str(raised.value)


# --- properties -----------------------------------------------------------------------


@given(ruled, methods, urls, urls)
def test_grants_change_no_verdict_that_a_rule_decides_and_open_nothing_but_theirs(
    policy: Policy, method: str, text: str, granted: str
) -> None:
    try:
        exact = parse_exact_url(granted)
    except PatternError:  # it has too many readings
        return
    match = Match(
        ports=(range(exact.url.port, exact.url.port + 1),),
        schemes=frozenset({exact.url.scheme}),
        urls=(exact,),
    )
    without = decided(
        CompiledPolicy(replace(policy, grants=())), request_to(method, text), NOW
    )
    rule = Rule("exact", PLACE, Action.ALLOW, match, expires=LATER)
    opened = decided(
        CompiledPolicy(replace(policy, grants=(rule,))), request_to(method, text), NOW
    )
    same = parse_url(text)._replace(host=exact.url.host) == exact.url
    undecided = without.rule == "default" or without.asks
    if not has_one_reading(text):  # a grant opens each reading that no rule decides
        assert same or (opened.action, opened.asks) == (without.action, without.asks)
    elif same and undecided and not parse_url(text).host.private:
        assert (opened.action, opened.rule) == (Action.ALLOW, "exact")
    else:
        assert (opened.action, opened.asks) == (without.action, without.asks)


def has_one_reading(text: str) -> bool:
    try:
        return len(readings(parse_url(text).path)) == 1
    except InvalidUrl:  # it has too many
        return False


@given(st.text(max_size=30))
def test_an_exact_url_is_itself_when_it_is_written_and_read_again(text: str) -> None:
    try:
        url = parse_exact_url(f"https://a.example/{text}")
    except PatternError:
        return
    assert parse_exact_url(url.text) == url
