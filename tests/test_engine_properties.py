"""The engine beside a plain reading of the language, for random policies and hostile URLs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.engine import Judge, Query
from squidkeeper.engine.query import query_of
from squidkeeper.errors import InvalidUrl
from squidkeeper.policy.faults import Location
from squidkeeper.policy.hosts import parse_host_pattern
from squidkeeper.policy.model import Action, Match, Policy, Rule
from squidkeeper.policy.paths import parse_path_pattern
from squidkeeper.policy.queries import QueryPattern
from squidkeeper.url import Reading, Url, normalize_escapes, parse_url, read, readings

from .conftest import NOW

HOSTS = ["a.example", "b.a.example", "c.b.a.example", "other.test", "203.0.113.7"]
HOST_PATTERNS = ["a.example", ".a.example", "*.a.example", "**.a.example", "*", "203.0.113.0/24", "other.test"]
PATHS = ["/**", "/x", "/x/**", "/**/s", "/x/*", "/*", "/x%2fs", "/x*/s"]
SEGMENTS = ["x", "s", "", ".", "..", "%2e%2e", "x%2fs", "%2f", ";p", "..;", "%5c", "%252f", "\\", "~", "%78"]

matches = st.fixed_dictionaries(
    {
        "hosts": st.one_of(st.none(), st.lists(st.sampled_from(HOST_PATTERNS), min_size=1, max_size=2)),
        "schemes": st.one_of(st.none(), st.just(["http"]), st.just(["https"])),
        "ports": st.one_of(st.none(), st.just([range(8443, 8444)])),
        "methods": st.one_of(st.none(), st.just(["GET"]), st.just(["POST"])),
        "paths": st.one_of(st.none(), st.lists(st.sampled_from(PATHS), min_size=1, max_size=2)),
        "query": st.one_of(st.none(), st.just({"q": "1*"})),
    }
)
rules = st.lists(
    st.tuples(st.sampled_from(list(Action)), matches, st.booleans(), st.sampled_from([None, -1, 1])), max_size=5
)
urls = st.builds(
    "{}://{}{}/{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(HOSTS),
    st.sampled_from(["", ":8443"]),
    st.lists(st.sampled_from(SEGMENTS), max_size=4).map("/".join),
    st.sampled_from(["", "?q=1", "?q=2", "?q=1&q=2", "?q=12&r"]),
)
methods = st.sampled_from(["GET", "POST", "PUT"])


Drawn = list[tuple[Action, dict[str, Any], bool, int | None]]


def policy_of(drawn: Drawn, default: Action) -> Policy:
    made = [
        Rule(
            f"r{number}",
            Location("policy.yaml", number + 1, 1),
            action,
            Match(
                hosts=fields["hosts"] and tuple(map(parse_host_pattern, fields["hosts"])),
                schemes=fields["schemes"] and frozenset(fields["schemes"]),
                ports=fields["ports"] and tuple(fields["ports"]),
                methods=fields["methods"] and frozenset(fields["methods"]),
                paths=fields["paths"] and tuple(map(parse_path_pattern, fields["paths"])),
                query=fields["query"] and tuple(QueryPattern(*pair) for pair in fields["query"].items()),
            ),
            private=private,
            expires=None if expires is None else NOW + timedelta(hours=expires),
        )
        for number, (action, fields, private, expires) in enumerate(drawn)
    ]
    return Policy("0", default_action=default, rules=tuple(made))


# --- the plain reading --------------------------------------------------------------------------------------------


def plain_decision(policy: Policy, method: str, url: Url) -> str:
    """Say the action alone, as the language defines it: every reading, every rule, from top to bottom."""
    outcomes = set()
    for path in readings(url.path):
        rule = next((one for one in policy.rules if plainly_holds(one, method, url, path.reading, path.path)), None)
        if rule is not None:
            outcomes.add((rule.action, rule.private and rule.action is Action.ALLOW))
        elif policy.default_action is Action.ALLOW and default_port(url):
            outcomes.add((Action.ALLOW, False))
        else:
            outcomes.add((Action.DENY, False))
    return outcomes.pop()[0] if len(outcomes) == 1 else Action.DENY


def default_port(url: Url) -> bool:
    return url.port == {"http": 80, "https": 443}[url.scheme]


def plainly_holds(rule: Rule, method: str, url: Url, reading: Reading, path: str) -> bool:
    match, denies = rule.match, rule.action is Action.DENY
    values = [pair.partition("=") for pair in (url.query or "").split("&") if pair]
    found = [value for name, _, value in values if name == "q"]
    return all(
        (
            rule.expires is None or rule.expires > NOW,
            match.hosts is None or any(plain_host(pattern.text, url.host.text) for pattern in match.hosts),
            match.schemes is None or url.scheme in match.schemes,
            url.port == 8443 if match.ports else (denies or default_port(url)),
            match.methods is None or method in match.methods,
            match.paths is None or any(plain_path(pattern.text, reading, path) for pattern in match.paths),
            match.query is None or (bool(found) and (any if denies else all)(value.startswith("1") for value in found)),
        )
    )


def plain_host(pattern: str, host: str) -> bool:
    labels = host.split(".")
    above = [".".join(labels[number:]) for number in range(1, len(labels))]
    if pattern == "*":
        return True
    if pattern.startswith("**."):
        return pattern[3:] in above
    if pattern.startswith("*."):
        return above[:1] == [pattern[2:]]
    if pattern.startswith("."):
        return host == pattern[1:] or pattern[1:] in above
    return host == pattern or (pattern == "203.0.113.0/24" and host.startswith("203.0.113."))


def plain_path(pattern: str, reading: Reading, path: str) -> bool:
    glob = read(reading, normalize_escapes(pattern.replace("**", "\x02").replace("*", "\x01")))
    expression = re.escape(glob).replace("/\x02/", "/(.*/)?").replace("\x02", ".*").replace("\x01", "[^/]*")
    return re.fullmatch(expression, path, re.DOTALL) is not None


# --- the properties -----------------------------------------------------------------------------------------------


@given(rules, st.sampled_from(list(Action)), methods, urls)
def test_the_engine_decides_as_a_plain_reading_of_the_rules_does(
    drawn: Drawn, default: Action, method: str, text: str
) -> None:
    policy = policy_of(drawn, default)
    decision = Judge(policy).decide(query_of(method, text), NOW)
    try:
        expected = plain_decision(policy, method, parse_url(text))
    except InvalidUrl:
        expected = Action.DENY
    assert decision.action == expected


@given(rules, st.sampled_from(list(Action)), methods, urls)
def test_host_scope_never_decides_otherwise_than_request_scope(
    drawn: Drawn, default: Action, method: str, text: str
) -> None:
    judge = Judge(policy_of(drawn, default))
    query = query_of(method, text)
    at_host = judge.decide(Query(**{name: getattr(query, name) for name in query.__slots__ if name != "url"}), NOW)
    decision = judge.decide(query, NOW)
    if not at_host.needs_url and decision.rule not in ("invalid-request", "ambiguous-path"):
        assert (at_host.action, at_host.rule, at_host.private) == (decision.action, decision.rule, decision.private)
    if decision.rule == "ambiguous-path":
        assert at_host.needs_url


@given(rules, st.sampled_from(list(Action)), methods, urls)
def test_what_may_pass_inside_a_tunnel_finds_the_tunnel_open(
    drawn: Drawn, default: Action, method: str, text: str
) -> None:
    judge = Judge(policy_of(drawn, default))
    url = parse_url(text.replace("http:", "https:"))
    if judge.decide(query_of(method, str(url)), NOW).allowed:
        assert judge.decide(query_of("CONNECT", f"{url.host.text}:{url.port}"), NOW).allowed
