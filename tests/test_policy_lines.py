"""The lines of Squid's configuration that depend on the policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from squidkeeper.policy.model import Policy
from squidkeeper.policy_lines import not_rendered, policy_lines
from squidkeeper.replies import acl_reply

from .conftest import Ask, compiled_of

TWO_RULES = """
    rules:
      - {name: a, action: allow, hosts: [a.example], strip: [Cookie, X-Debug]}
      - {name: b, action: allow, hosts: [b.example], strip: [x_debug, COOKIE, cookie]}
      - {name: c, action: allow, hosts: [c.example], strip: [Cookie]}
"""


def policy_of(folder: Path, text: str) -> Policy:
    return compiled_of(folder, text).source


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_policy_that_needs_no_lines_has_the_acls_that_the_fragment_names(tmp_path: Path) -> None:
    text = policy_lines(policy_of(tmp_path, "rules: [{name: a, action: allow, hosts: [a.example]}]"))
    assert directives(text) == ["acl sk_strip_rendered note strip_ -"]


def test_each_header_is_denied_in_every_spelling_where_a_set_holds_it(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, TWO_RULES)
    both, one = (rule.strip.key for rule in policy.rules[1:] if rule.strip)
    assert directives(policy_lines(policy)) == [
        f"acl sk_strip_rendered note strip_ - {both} {one}",
        f"acl sk_strip_0 note strip_ {both} {one}",
        "request_header_access cookie deny sk_strip_0",
        f"acl sk_strip_1 note strip_ {both}",
        "request_header_access x-debug deny sk_strip_1",
        "request_header_access x_debug deny sk_strip_1",
    ]


def test_case_order_and_underscores_make_no_other_set(tmp_path: Path) -> None:
    first, second, third = (rule.strip.key for rule in policy_of(tmp_path, TWO_RULES).rules if rule.strip)
    assert first == second != third


def test_what_is_not_rendered_is_named_by_its_rule(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, TWO_RULES)
    other = policy_of(tmp_path / "other", "rules: [{name: c, action: allow, hosts: [c.example], strip: [Cookie]}]")
    assert not_rendered(policy, policy_lines(policy)) == ()
    for rendered in (policy_lines(other), ""):
        found = not_rendered(policy, rendered)
        assert [fault.message.partition(":")[0] for fault in found] == ["rule 'a'", "rule 'b'", "rule 'c'"][
            : 2 if rendered else 3
        ]
        assert {fault.code for fault in found} == {"not-rendered"}


def test_a_decision_names_its_set_only_where_it_is_about_a_request(asker: Callable[[str], Ask]) -> None:
    ask = asker("""
        rules:
          - {name: part, action: allow, hosts: [a.example], paths: [/x/**], strip: [Cookie]}
          - {name: all, action: allow, hosts: [a.example]}
          - {name: closed, action: deny, hosts: [b.example]}
    """)
    decision = ask("GET https://a.example/x/y")
    annotations = dict(acl_reply(decision, "request", None).annotations)
    assert decision.strip is not None
    assert (annotations["strip_"], annotations["tag"]) == (decision.strip.key, "sk_needs_lines")
    for asked in ("GET https://a.example/y", "GET https://b.example/", "CONNECT a.example:443"):
        assert "strip_" not in dict(acl_reply(ask(asked), "request", None).annotations)


def test_readings_that_lose_other_headers_are_ambiguous(asker: Callable[[str], Ask]) -> None:
    ask = asker("""
        rules:
          - {name: part, action: allow, hosts: [a.example], paths: [/x/**], strip: [Cookie]}
          - {name: all, action: allow, hosts: [a.example]}
    """)
    assert ask("GET https://a.example/x/../y").rule == "ambiguous-path"
