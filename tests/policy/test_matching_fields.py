"""Every matching field is known to all that reads one: none is left out silently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import FaultCode
from squidkeeper.change.approvals.wording import described
from squidkeeper.change.difference.comparison import Cell, compare
from squidkeeper.change.difference.dimensions import CELLS
from squidkeeper.change.learning import draft
from squidkeeper.change.learning.draft import LearnedRule
from squidkeeper.change.learning.path_shapes import Evidence
from squidkeeper.change.tightening.edits import with_edits
from squidkeeper.change.tightening.narrowing import Field, Narrowing
from squidkeeper.change.tightening.text import opened_by
from squidkeeper.cli import grant
from squidkeeper.operate.client_kit.brief import write_brief
from squidkeeper.operate.client_kit.client import KitClient
from squidkeeper.policy.engine import CompiledPolicy, sealed_guards
from squidkeeper.policy.engine.fields import HOST_FIELDS, URL_FIELDS
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language import conflicts, lint, schema
from squidkeeper.policy.language.matching.table import FIELDS
from squidkeeper.policy.language.model import (
    Match,
    Rule,
)
from squidkeeper.policy.language.sealed_tokens import format_content, parse_content

from ..conftest import NOW, compiled_of

ALL = [field.name for field in fields(Match)]
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
    assert [*FIELDS] == ALL
    assert {name for names in CELLS.values() for name in names} == {*ALL}
    assert {*CELLS} <= {field.name for field in fields(Cell)}
    # for these there is an index
    assert {*HOST_FIELDS, *URL_FIELDS} == {*ALL} - {
        "hosts",
        "lists",
    }


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
    assert {*ALL} == {*Field, "ports", "query", "urls"}
    policy = policy_of(f"{{{entry(name, 'name: rule, action: allow')}}}").source
    field = Field.PATHS if name != "paths" else Field.METHODS
    edits = {
        "rule": (Narrowing(field, None, ("/y",) if field is Field.PATHS else ("GET",)),)
    }
    before, after = policy.rules[0].match, with_edits(policy, edits).rules[0].match
    assert replace(after, **{field: None}) == before
    shown = (
        opened_by(policy.rules[0]),
        opened_by(replace(policy.rules[0], match=replace(before, **{name: None}))),
    )
    assert shown[0] != shown[1]


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
    assert {*ALL} == written | {"lists", "query", "urls"}


@pytest.mark.parametrize("name", OF_RULES)
def test_a_sealed_token_has_a_field_as_a_guard_or_refuses_it(name: str) -> None:
    value: Any = {"query": {"q": "x"}, "ports": [8443]}.get(
        name, [SAMPLES[name].strip("[]")]
    )
    fields = {"hosts": ["www.a.example"], "secret": "s", name: value}
    if name in ("lists", "schemes"):
        with pytest.raises(PatternError, match="a sealed token has no such guard"):
            format_content(fields)
        return
    match = parse_content(format_content(fields)).match
    assert name == "hosts" or (
        getattr(match, name) is not None and name in sealed_guards._OTHER
    )


def test_what_passes_through_has_a_field_or_refuses_it() -> None:
    assert {*ALL} <= {
        *conflicts.BESIDE_PASSTHROUGH,
        "clients",
        "hosts",
        "ports",
        "urls",
    }
