"""Why a decision came out as it did: what was passed over, and what was not reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.explain import (
    Resolved,
    WebSocket,
    grant,
    not_reached,
    passed_over,
    resolved,
    websocket,
)
from squidkeeper.policy.language.model import Action, Policy, Rule
from squidkeeper.policy.protocol.request import request_to

from ..conftest import NOW, compiled_of, decided
from .test_engine_properties import (
    defaults,
    methods,
    policy_of,
    rewrites,
    ruled,
    rules,
    urls,
)


def test_a_rule_passed_over_is_explained_by_the_fields_that_did_not_hold(
    tmp_path: Path,
) -> None:
    compiled = compiled_of(
        tmp_path,
        """
        clients: {agents: {networks: [192.168.137.0/24]}}
        rules:
          - {name: elsewhere, action: deny, hosts: [b.example]}
          - {name: clients-port, action: allow, hosts: [a.example], clients: [agents], ports: [8443]}
          - {name: posts, action: allow, hosts: [a.example], methods: [POST], paths: [/x]}
          - {name: old, action: allow, hosts: [a.example], expires: 2020-01-01T00:00:00Z}
          - {name: asks, action: allow, hosts: [a.example], query: {q: x}}
          - {name: decides, action: allow, hosts: [a.example]}
          - {name: after, action: deny, hosts: [a.example]}
        """,
    )
    request = request_to("GET", "https://a.example/")
    assert decided(compiled, request, NOW).rule == "decides"
    assert [
        (passed.entry.name, passed.fields)
        for passed in passed_over(compiled, request, NOW)
    ] == [
        ("clients-port", ("clients", "ports")),
        ("posts", ("methods", "paths")),
        ("old", ("expires",)),
        ("asks", ("query",)),
    ]


BUILT_IN = """
rules:
  - {name: posts, action: allow, hosts: ["*"], methods: [POST], paths: [/x]}
  - {name: decides, action: allow, hosts: ["*"]}
  - {name: after, action: allow, hosts: ["*"], ports: [8443]}
rewrites:
  - {name: inside, hosts: [a.example], to: https://10.0.0.1/}
"""


@pytest.mark.parametrize(
    ("asked", "verdict", "names"),
    [
        ("GET http://10.0.0.1/", "private-address", ["posts"]),
        ("GET http://a.example/", "private-address", ["posts"]),
        ("CONNECT 10.0.0.1:443", "private-address", []),
        ("GET http://b.example/%zz", "invalid-request", []),
    ],
)
def test_nothing_below_the_rule_that_matched_was_passed_over_when_another_verdict_denies(
    tmp_path: Path, asked: str, verdict: str, names: list[str]
) -> None:
    compiled, request = compiled_of(tmp_path, BUILT_IN), request_to(*asked.split(" "))
    assert decided(compiled, request, NOW).rule == verdict
    assert [
        passed.entry.name for passed in passed_over(compiled, request, NOW)
    ] == names


@given(ruled, methods, urls)
def test_every_rule_passed_over_stands_above_the_one_that_decides(
    policy: Policy, method: str, text: str
) -> None:
    compiled = CompiledPolicy(policy)
    for request in (request_to(method, text), request_to("CONNECT", "b.a.example:443")):
        decision = decided(compiled, request, NOW)
        for passed in passed_over(compiled, request, NOW):
            if (
                passed.entry not in compiled.source.grants
            ):  # which are asked after the rules
                assert (
                    decision.location is None
                    or decision.asks
                    or passed.entry.location < decision.location
                )


NOT_REACHED = """
rules:
  - {name: no-corp-admin, action: deny, hosts: [.corp.example], paths: [/admin/**]}
  - {name: corp, action: allow, hosts: [.corp.example]}
  - {name: no-payroll, action: deny, hosts: [payroll.corp.example]}
  - {name: no-posts, action: deny, hosts: [payroll.corp.example], methods: [POST]}
  - {name: no-old, action: deny, hosts: [payroll.corp.example], expires: 2020-01-01T00:00:00Z}
  - {name: no-secret, action: deny, hosts: [payroll.corp.example], paths: [/a/secret]}
  - {name: rest, action: allow, hosts: ["*"]}
  - {name: everything, action: deny}
  - {name: every-host, action: deny, hosts: ["*"]}
"""


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("GET https://payroll.corp.example/", ["no-payroll"]),
        ("POST https://payroll.corp.example/", ["no-payroll", "no-posts"]),
        (
            "GET https://payroll.corp.example/a/b%2f..%2fsecret",
            ["no-payroll", "no-secret"],
        ),
        ("CONNECT payroll.corp.example:443", ["no-payroll"]),
        ("GET https://www.corp.example/", []),
        ("GET https://payroll.corp.example/admin/x", []),
        ("GET https://other.example/", []),
    ],
)
def test_denies_that_hold_too_below_the_rule_that_allows_were_not_reached(
    tmp_path: Path, asked: str, names: list[str]
) -> None:
    compiled, request = (
        compiled_of(tmp_path, NOT_REACHED),
        request_to(*asked.split(" ")),
    )
    assert [
        rule.name
        for rule in not_reached(compiled, request, decided(compiled, request, NOW), NOW)
    ] == names


@given(ruled, methods, urls)
def test_a_deny_that_was_not_reached_is_one_that_would_deny_if_it_stood_first(
    policy: Policy, method: str, text: str
) -> None:
    for request in (request_to(method, text), request_to("CONNECT", "b.a.example:443")):
        decision = decided(CompiledPolicy(policy), request, NOW)
        found = not_reached(CompiledPolicy(policy), request, decision, NOW)
        for rule in policy.rules:
            if (
                decision.allowed
                and decision.location
                and rule.location > decision.location
            ):
                first = replace(policy, rules=(rule, *policy.rules))
                denies = (
                    rule.action is Action.DENY
                    and not decided(CompiledPolicy(first), request, NOW).allowed
                )
                assert (rule in found) == (denies and not is_for_every_host(rule))


def is_for_every_host(rule: Rule) -> bool:
    hosts = {pattern.text for pattern in rule.match.hosts or ()}
    return "*" in hosts if hosts else rule.match.lists is None


WEBSOCKET = """
rules:
  - {name: whole, action: allow, hosts: [whole.example, mirrored.example, deletes.example], paths: [/x, /**]}
  - {name: no-posts, action: deny, hosts: [posts.example], methods: [POST]}
  - {name: after, action: allow, hosts: [posts.example]}
  - {name: part, action: allow, hosts: [part.example], paths: [/x], query: {q: x}, methods: [GET, POST]}
  - {name: live, action: allow, hosts: [chat.example], paths: [/live/**], websocket: true}
  - {name: rest, action: allow, hosts: [chat.example], paths: [/rest/**]}
rewrites:
  - {name: mirror, hosts: [mirrored.example], paths: [/old/**], to: "https://whole.example{path}"}
  - {name: deletes, hosts: [deletes.example], methods: [DELETE], to: "https://whole.example{path}"}
"""


@pytest.mark.parametrize(
    ("asked", "passes", "name", "fields"),
    [
        ("GET https://whole.example/", True, None, ()),
        ("GET http://whole.example/", True, None, ()),
        ("GET https://mirrored.example/", False, "mirror", ()),
        ("GET https://deletes.example/", False, "deletes", ()),
        ("GET https://posts.example/", False, "no-posts", ("methods",)),
        (
            "GET https://part.example/x?q=x",
            False,
            "part",
            ("methods", "paths", "query"),
        ),
        ("GET https://chat.example/live/x", True, None, ()),
        ("GET https://chat.example/rest/x", False, "live", ("paths",)),
    ],
)
def test_an_allowed_get_says_whether_it_may_become_a_websocket_and_what_keeps_it_from_that(
    tmp_path: Path, asked: str, passes: bool, name: str | None, fields: tuple[str, ...]
) -> None:
    compiled, request = compiled_of(tmp_path, WEBSOCKET), request_to(*asked.split(" "))
    found = websocket(compiled, request, decided(compiled, request, NOW), NOW)
    assert found
    assert (found.passes, found.entry and found.entry.name, found.fields) == (
        passes,
        name,
        fields,
    )


@pytest.mark.parametrize(
    "asked",
    [
        "POST https://whole.example/",
        "GET https://closed.example/",
        "CONNECT whole.example:443",
        "GET ftp://x/",
    ],
)
def test_nothing_else_can_become_a_websocket(tmp_path: Path, asked: str) -> None:
    compiled, request = compiled_of(tmp_path, WEBSOCKET), request_to(*asked.split(" "))
    assert websocket(compiled, request, decided(compiled, request, NOW), NOW) is None


@given(st.builds(policy_of, rules, defaults, rewrites), urls)
def test_what_keeps_a_get_from_becoming_a_websocket_is_always_named(
    policy: Policy, text: str
) -> None:
    compiled, request = CompiledPolicy(policy), request_to("GET", text)
    decision = decided(compiled, request, NOW)
    found = websocket(compiled, request, decision, NOW)
    if found and not found.passes and grant(compiled, decision) is None:
        assert found.entry
        assert isinstance(found.entry, Rule) == bool(found.fields)
    elif found and found.passes:
        assert found == WebSocket(passes=True)
        whole = decided(compiled, request._replace(url=None), NOW)
        assert whole.outlook.unrestricted or decision.websocket


AWAY = "rewrites: [{name: away, hosts: [a.example], to: 'https://b.example/'%s}]"


@pytest.mark.parametrize(
    ("rule", "more", "asked", "expected"),
    [
        ("hosts: [a.example]", "", "GET https://a.example/", Resolved("a.example", "the rule a")),
        ("hosts: [a.example]", "", "CONNECT a.example:443", Resolved("a.example", "the rule a")),
        ("hosts: [a.example], private: true", "", "GET https://a.example/", None),
        ("hosts: [a.example], private: true", "", "CONNECT a.example:443", None),
        ("hosts: [203.0.113.7]", "", "GET https://203.0.113.7/", None),
        ("hosts: [b.example]", "", "GET https://a.example/", None),
        ("hosts: [b.example]", "defaults: {action: allow}", "GET https://a.example/",
         Resolved("a.example", "a rule that allows it")),
        ("hosts: [a.example]", AWAY % "", "GET https://a.example/", Resolved("b.example", "the rewrite away")),
        ("hosts: [a.example], private: true", AWAY % "", "GET https://a.example/",
         Resolved("b.example", "the rewrite away")),
        ("hosts: [a.example]", AWAY % ", private: true", "GET https://a.example/", None),
        ("hosts: [a.example]", AWAY % ", redirect: 308", "GET https://a.example/", Resolved("a.example", "the rule a")),
        ("hosts: [a.example]", AWAY % "", "CONNECT a.example:443", None),
        ("hosts: [a.example]", AWAY.replace("b.example", "203.0.113.7") % "", "GET https://a.example/", None),
    ],
)  # fmt: skip
def test_a_name_that_is_allowed_is_resolved_and_may_be_denied_then(
    tmp_path: Path, rule: str, more: str, asked: str, expected: Resolved | None
) -> None:
    compiled = compiled_of(
        tmp_path, f"rules: [{{name: a, action: allow, {rule}}}]\n{more}"
    )
    request = request_to(*asked.split())
    assert resolved(compiled, request, decided(compiled, request, NOW)) == expected
