"""Every matching field is known to all that reads one: none is left out silently.

Fields of `FINITE_FIELDS` are declared once, and need no line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import FaultCode
from squidkeeper.change.approvals.wording import described
from squidkeeper.change.difference import comparison
from squidkeeper.change.difference.comparison import compare
from squidkeeper.change.learning import draft
from squidkeeper.change.learning.draft import LearnedRule
from squidkeeper.change.learning.path_shapes import Evidence
from squidkeeper.change.tightening.edits import with_edits
from squidkeeper.change.tightening.narrowing import Field, Narrowing
from squidkeeper.change.tightening.text import opened_by
from squidkeeper.cli import grant
from squidkeeper.operate.client_kit.brief import write_brief
from squidkeeper.operate.client_kit.client import KitClient
from squidkeeper.policy.editor.json_schema import json_schema
from squidkeeper.policy.engine import CompiledPolicy, sealed_guards
from squidkeeper.policy.engine.fields import HOST_FIELDS, URL_FIELDS
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language import lint, model, passthrough, schema
from squidkeeper.policy.language.model import (
    FINITE_FIELDS,
    FiniteField,
    HostFacts,
    Match,
    Rule,
)
from squidkeeper.policy.language.sealed_tokens import format_content, parse_content
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.url import Host, parse_host

from ..conftest import NOW, compiled_of, decided

ALL = [field.name for field in fields(Match)]
DECLARED = [field.name for field in FINITE_FIELDS]
ENTRIES = json_schema()["$defs"]
SAMPLES = {
    "clients": "[one]",
    "hosts": "[www.a.example]",
    "lists": "[few]",
    "schemes": "[https]",
    "ports": "[8443]",
    "methods": "[POST]",
    "paths": "[/x]",
    "query": "{q: x}",
    "urls": "['https://www.a.example/x']",
    **{
        name: f"[{ENTRIES['RuleEntry']['properties'][name]['items']['enum'][0]}]"
        for name in DECLARED
    },
}
OF_RULES = [name for name in ALL if name != "urls"]
OF_GRANTS = [name for name in ALL if name in schema.GrantEntry.model_fields]
WIDE = "{name: wide, action: allow, hosts: [.a.example]}"


def entry(name: str, text: str) -> str:
    """Write the fields of an entry: one of them, and hosts unless it says which."""
    return f"{text}, {name}: {SAMPLES[name]}{'' if name in ('hosts', 'lists', 'urls') else ', hosts: [.a.example]'}"


@pytest.fixture
def policy_of(tmp_path: Path) -> Callable[..., CompiledPolicy]:
    numbers = iter(range(9))

    def made(rules: str, more: str = "") -> CompiledPolicy:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        (directory / "few.txt").write_text("www.a.example\n")
        clients = (
            "clients: {one: {networks: [192.0.2.0/24]}}\nlists: {few: {file: few.txt}}"
        )
        return compiled_of(directory, f"{clients}\nrules: [{rules}]\n{more}\n")

    return made


PolicyOf = Callable[..., CompiledPolicy]


def test_every_field_has_a_sample_and_decides() -> None:
    assert {*SAMPLES} == {*ALL}
    # for these there is an index
    assert {*HOST_FIELDS, *URL_FIELDS} == {*ALL} - {
        "hosts",
        "lists",
    }
    assert [*schema.FiniteFields.model_fields] == DECLARED


@pytest.mark.parametrize("name", OF_RULES)
def test_lint_does_not_take_what_a_field_narrows_for_wide(
    policy_of: PolicyOf, name: str
) -> None:
    found = lint.lint(
        policy_of(f"{{{entry(name, 'name: narrow, action: allow')}}}, {WIDE}").source,
        NOW,
    )
    assert FaultCode.RULE_UNREACHABLE not in {one.code for one in found}


@pytest.mark.parametrize("name", OF_RULES)
def test_a_difference_of_any_field_is_a_difference(
    policy_of: PolicyOf, name: str
) -> None:
    narrow = entry(name, "name: wide, action: allow")
    found = compare((policy_of(WIDE), policy_of(f"{{{narrow}}}")), NOW)
    assert not found.same
    if name in DECLARED:
        assert found.limit == f"what {name} tells apart, which is unproven"


@pytest.mark.parametrize(
    "name", [name for name in OF_RULES if name != "clients"]
)  # a brief is for one client
def test_a_brief_has_every_field(policy_of: PolicyOf, name: str) -> None:
    policies = (
        policy_of(text).source
        for text in (WIDE, f"{{{entry(name, 'name: wide, action: allow')}}}")
    )
    wide, narrow = (
        write_brief(replace(policy, revision=""), KitClient(policy.clients[0]), NOW)
        for policy in policies
    )
    assert wide != narrow


@pytest.fixture
def granted(policy_of: PolicyOf) -> Callable[[str], Rule]:
    def made(name: str) -> Rule:
        client = "" if name == "clients" else "any_client: true, "
        text = entry(
            name, f"name: some, {client}expires: '2026-12-01T00:00:00Z', reason: Try"
        )
        [rule] = policy_of(WIDE, f"grants: [{{{text}}}]").source.grants
        return rule

    return made


@pytest.mark.parametrize("name", OF_GRANTS)
def test_what_a_person_approves_has_every_field(
    granted: Callable[[str], Rule], tmp_path: Path, name: str
) -> None:
    rule = granted(name)
    without = replace(rule, match=replace(rule.match, **{name: None}))
    counts = GrantUses(tmp_path)
    assert dict(described(rule)) != dict(described(without))
    assert (
        grant._object(rule, counts, NOW)[name]
        != grant._object(without, counts, NOW)[name]
    )


@pytest.mark.parametrize("name", OF_RULES)
def test_tighten_keeps_every_field_that_it_does_not_narrow(
    policy_of: PolicyOf, name: str
) -> None:
    assert {*ALL} == {*Field, "ports", "query", "urls", *DECLARED}
    policy = policy_of(f"{{{entry(name, 'name: rule, action: allow')}}}").source
    field = Field.PATHS if name != "paths" else Field.METHODS
    edits = {
        "rule": (Narrowing(field, None, ("/y",) if field is Field.PATHS else ("GET",)),)
    }
    before, after = policy.rules[0].match, with_edits(policy, edits).rules[0].match
    assert replace(after, **{field: None}) == before
    shown = (
        opened_by(policy.rules[0]),
        opened_by(replace(policy.rules[0], match=Match())),
    )
    assert (shown[0] != shown[1]) or name in ("schemes", "ports", "query")


def test_learn_writes_the_fields_that_it_knows_and_no_other() -> None:
    some = ("a",)
    rule = LearnedRule(
        "a",
        some,
        some,
        some,
        1,
        some,
        True,
        some,
        Evidence(1, NOW, NOW, *[frozenset[Any]()] * 3),
    )
    written = {name for name, _ in draft._fields(rule)} & {*ALL}
    assert {*ALL} == written | {"lists", "query", "urls", *DECLARED}


@pytest.mark.parametrize("name", OF_RULES)
def test_a_sealed_token_has_a_field_as_a_guard_or_refuses_it(name: str) -> None:
    value: Any = {"query": {"q": "x"}, "ports": [8443]}.get(
        name, [SAMPLES[name].strip("[]")]
    )
    fields = {"hosts": ["www.a.example"], "secret": "s", name: value}
    if name in ("lists", "schemes", *DECLARED):
        with pytest.raises(PatternError, match="a sealed token has no such guard"):
            format_content(fields)
        return
    match = parse_content(format_content(fields)).match
    assert name == "hosts" or (
        getattr(match, name) is not None and name in sealed_guards._OTHER
    )


def test_what_passes_through_has_a_field_or_refuses_it() -> None:
    assert {*ALL} <= {
        *passthrough._NOT_BESIDE,
        "clients",
        "hosts",
        "ports",
        "urls",
        *DECLARED,
    }


# --- what is shown of every declared field, by one that the tests declare -------------

KINDS = FiniteField(
    "schemes", lambda facts: "http" if facts.host.address is None else "https"
)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `schemes` tell names from addresses, which the engine's cache does not do
    itself.
    """
    for module in (model, lint, comparison):
        monkeypatch.setattr(module, "FINITE_FIELDS", (KINDS,))
    monkeypatch.setitem(HOST_FIELDS, "schemes", KINDS.holds)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (None, None, True),
        (None, "a", True),
        ("a", None, False),
        ("ab", "a", True),
        ("a", "ab", False),
    ],
)
def test_a_declared_field_covers_what_it_lists(
    wide: str | None, narrow: str | None, covers: bool
) -> None:
    one, two = (
        Match(schemes=None if values is None else frozenset(values))
        for values in (wide, narrow)
    )
    assert KINDS.covers(one, two) is covers
    assert KINDS.written(two) == sorted(narrow or "")


@pytest.mark.parametrize(
    ("listed", "holds"), [(None, True), ("http", True), ("https", False)]
)
def test_a_declared_field_holds_where_the_value_is_listed(
    listed: str | None, holds: bool
) -> None:
    match = Match(schemes=None if listed is None else frozenset({listed}))
    assert (
        KINDS.holds(match, HostFacts((), "GET", "", Host("a.example"), 443), False)
        is holds
    )


@pytest.mark.usefixtures("declared")
def test_hosts_that_a_declared_field_tells_apart_share_no_answer(
    policy_of: PolicyOf,
) -> None:
    policy = policy_of(
        "{name: names, action: allow, hosts: ['**.example', 203.0.113.0/24], schemes: [http]}"
    )
    asked = [
        decided(policy, request_to("GET", f"http://{host}/"), NOW)
        for host in ("a.example", "203.0.113.7") * 2
    ]
    assert [tunnel.allowed for tunnel in asked] == [True, False, True, False]
    assert not parse_host("203.0.113.7").private


@pytest.mark.usefixtures("declared")
def test_a_difference_of_a_declared_field_is_unproven(policy_of: PolicyOf) -> None:
    policy = policy_of("{name: r, action: allow, hosts: [.a.example], schemes: [http]}")
    assert (
        compare((policy, policy), NOW).limit
        == "what schemes tells apart, which is unproven"
    )


@dataclass(frozen=True, slots=True)
class MoreFields(Match):
    """The matching fields with one more, which no rule of lint knows."""

    kinds: frozenset[str] | None = None


@pytest.mark.parametrize(
    ("first", "later", "hides"),
    [(None, "a", True), ("a", "a", True), ("a", None, False)],
)
def test_lint_knows_what_a_declared_field_covers(
    policy_of: PolicyOf,
    monkeypatch: pytest.MonkeyPatch,
    first: str | None,
    later: str | None,
    hides: bool,
) -> None:
    monkeypatch.setattr(lint, "FINITE_FIELDS", (FiniteField("kinds", lambda _: "a"),))
    policy = policy_of(f"{WIDE}, {WIDE.replace('wide', 'later')}").source
    matches = [
        MoreFields(
            hosts=policy.rules[0].match.hosts, kinds=frozenset(one) if one else None
        )
        for one in (first, later)
    ]
    rules = tuple(
        replace(rule, match=match)
        for rule, match in zip(policy.rules, matches, strict=True)
    )
    found = {warning.code for warning in lint.lint(replace(policy, rules=rules), NOW)}
    assert (FaultCode.RULE_UNREACHABLE in found) is hides
