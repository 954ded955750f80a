"""Why a decision came out as it did: what was passed over, and what was not reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from squidkeeper.engine import Judge
from squidkeeper.engine.explain import not_reached, passed_over
from squidkeeper.engine.query import query_of
from squidkeeper.policy.model import Action

from .conftest import NOW, judge_of
from .test_engine_properties import Drawn, defaults, methods, policy_of, rules, urls


def test_a_rule_passed_over_is_explained_by_the_fields_that_did_not_hold(tmp_path: Path) -> None:
    judge = judge_of(
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
    query = query_of("GET", "https://a.example/")
    assert judge.decide(query, NOW).rule == "decides"
    assert [(one.entry.name, one.fields) for one in passed_over(judge, query, NOW)] == [
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
    judge, query = judge_of(tmp_path, BUILT_IN), query_of(*asked.split(" "))
    assert judge.decide(query, NOW).rule == verdict
    assert [one.entry.name for one in passed_over(judge, query, NOW)] == names


@settings(deadline=None)
@given(rules, defaults, methods, urls)
def test_every_rule_passed_over_stands_above_the_one_that_decides(
    drawn: Drawn, default: Action, method: str, text: str
) -> None:
    judge = Judge(policy_of(drawn, default))
    for query in (query_of(method, text), query_of("CONNECT", "b.a.example:443")):
        decision = judge.decide(query, NOW)
        for one in passed_over(judge, query, NOW):
            assert decision.location is None or one.entry.location < decision.location


NOT_REACHED = """
rules:
  - {name: no-corp-admin, action: deny, hosts: [.corp.example], paths: [/admin/**]}
  - {name: corp, action: allow, hosts: [.corp.example]}
  - {name: no-payroll, action: deny, hosts: [payroll.corp.example]}
  - {name: no-posts, action: deny, hosts: [payroll.corp.example], methods: [POST]}
  - {name: no-old, action: deny, hosts: [payroll.corp.example], expires: 2020-01-01T00:00:00Z}
  - {name: no-secret, action: deny, hosts: [payroll.corp.example], paths: [/a/secret]}
  - {name: rest, action: allow, hosts: ["*"]}
"""


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("GET https://payroll.corp.example/", ["no-payroll"]),
        ("POST https://payroll.corp.example/", ["no-payroll", "no-posts"]),
        ("GET https://payroll.corp.example/a/b%2f..%2fsecret", ["no-payroll", "no-secret"]),
        ("CONNECT payroll.corp.example:443", ["no-payroll"]),
        ("GET https://www.corp.example/", []),
        ("GET https://payroll.corp.example/admin/x", []),
        ("GET https://other.example/", []),
    ],
)
def test_denies_that_hold_too_below_the_rule_that_allows_were_not_reached(
    tmp_path: Path, asked: str, names: list[str]
) -> None:
    judge, query = judge_of(tmp_path, NOT_REACHED), query_of(*asked.split(" "))
    assert [rule.name for rule in not_reached(judge, query, judge.decide(query, NOW), NOW)] == names


@settings(deadline=None)
@given(rules, defaults, methods, urls)
def test_a_deny_that_was_not_reached_is_one_that_would_deny_if_it_stood_first(
    drawn: Drawn, default: Action, method: str, text: str
) -> None:
    policy = policy_of(drawn, default)
    for query in (query_of(method, text), query_of("CONNECT", "b.a.example:443")):
        decision = Judge(policy).decide(query, NOW)
        found = not_reached(Judge(policy), query, decision, NOW)
        for rule in policy.rules:
            if decision.allowed and decision.location and rule.location > decision.location:
                first = replace(policy, rules=(rule, *policy.rules))
                assert (rule in found) == (not Judge(first).decide(query, NOW).allowed)
