"""What a policy and a decision need of Squid's configuration, and what is in force."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from squidkeeper.policy.engine import Decision
from squidkeeper.policy.engine.decision import Outlook
from squidkeeper.policy.language.model import Action, Policy, Strip
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.protocol.request import TunnelMode, TunnelTag
from squidkeeper.serving.helpers.acl import HostScope
from squidkeeper.serving.parts import (
    NEEDED,
    NOT_RENDERED,
    Part,
    PartsInForce,
    needed_keys,
    parse_in_force,
    read_in_force,
)
from tests.conftest import write_policy

SQUID = Path(__file__).parents[2] / "squid"
ALWAYS = {"core", Part.CERTIFICATES, Part.OVERRIDE_HEADERS, Part.PAGES}
NEEDS = {
    "rules: [{name: a, action: allow, hosts: [a.example], paths: [/x]}]": set(),
    "rules: [{name: a, action: allow, hosts: [a.example]}]": {Part.WEBSOCKET},
    "rules: [{name: a, action: allow, hosts: [a.example], paths: [/x], strip: [X-Debug]}]": {
        "strip",
        "strip.x-debug",
    },
    "rules: [{name: a, action: ask, hosts: [a.example]}]": {Part.ASK},
    "defaults: {ask: true}": {Part.ASK},
    "rules: [{name: a, action: allow, hosts: [a.example], paths: [/x], private: true}]": {
        Part.PRIVATE
    },
    "rules: [{name: a, action: allow, hosts: [a.example], paths: [/x], connections: single}]": {
        Part.SINGLE
    },
    "rules: [{name: a, action: allow, hosts: [a.example], methods: [GET], connections: shared}]": {
        Part.SHARED
    },
    "rules: [{name: a, action: allow, hosts: [a.example], methods: [GET]}]": set(),
    "rules: [{name: a, action: allow, hosts: [a.example], paths: [/x], body: {json: {/x: 1}}}]": {
        Part.BODIES
    },
    "rewrites: [{name: a, hosts: [a.example], to: 'https://b.example/'}]": {
        Part.REWRITES,
        Part.CREDENTIALS,
    },
    "secrets: {s: {env: S}}\ncredentials: [{name: a, hosts: [a.example], bearer: s}]": {
        Part.CREDENTIALS
    },
    "secrets: {s: {env: S}}\ncredentials: [{name: a, hosts: [a.example], headers: {X-Own: '{s}'}}]": {
        Part.CREDENTIALS,
        "inject.x-own",
    },
    "secrets: {s: {env: S}}\ndefaults: {watch_secrets: true}": {
        Part.WATCH,
        "watch.secrets",
        Part.READ_HEADERS,
    },
    "quotas: [{name: q, per: client, bytes_out: 5MB, every: day}]": {
        Part.QUOTAS,
        "quotas.bytes_out-5000000",
    },
    "rules: [{name: a, action: allow, hosts: [a.example], meter: tokens}]": {
        Part.BODIES,
        Part.METER,
    },
    "rules: [{name: a, action: allow, hosts: [a.example], meter: tokens}]\n"
    "quotas: [{name: q, per: client, tokens: 5, every: month}]": {
        Part.BODIES,
        Part.METER,
        "meter.quotas",
    },
}


def policy_of(tmp_path: Path, text: str) -> Policy:
    return load(
        write_policy(tmp_path / "policy", text), datetime.now(UTC)
    ).compiled.source


@pytest.mark.parametrize("text", NEEDS)
def test_a_policy_needs_the_parts_of_what_it_uses_and_no_others(
    text: str, tmp_path: Path
) -> None:
    policy = policy_of(tmp_path, text)
    assert needed_keys(policy) - ALWAYS == NEEDS[text]


def test_each_part_is_a_file_that_the_core_includes_and_has_its_condition() -> None:
    files = {path.stem for path in (SQUID / "parts").glob("*.conf")}
    core = (SQUID / "squidkeeper.conf").read_text()
    included = re.findall(
        r"^include /etc/squid/squidkeeper\.d/([a-z-]+)\.conf$", core, re.MULTILINE
    )
    assert {*included} == {*Part} == {*NEEDED}
    assert files == {*included}
    assert len(included) == len({*included})


STRIPPED = Decision(Action.ALLOW, "a", strip=Strip.of(["X-Debug", "Cookie"]))


def test_the_core_and_each_part_are_short_enough_to_be_read() -> None:
    core, parts = SQUID / "squidkeeper.conf", [*(SQUID / "parts").glob("*.conf")]
    lines = {file.name: len(file.read_text().splitlines()) for file in (core, *parts)}
    assert lines.pop(core.name) <= 185
    assert {name: count for name, count in lines.items() if count > 60} == {}
    acls = {
        file.name: len(re.findall(r"(?m)^acl ", file.read_text()))
        for file in (core, *parts)
    }
    assert acls[core.name] <= 50
    assert sum(acls.values()) <= 220


def in_force(tmp_path: Path, text: str, *missing: str) -> PartsInForce:
    policy = policy_of(tmp_path, text)
    needed = needed_keys(policy)
    return PartsInForce(needed, needed - {*missing})


STRIPS = (
    "rules: [{name: a, action: allow, hosts: [a.example], strip: [X-Debug, Cookie]}]"
)


def test_a_request_that_needs_what_is_not_in_force_is_denied_and_told_what(
    tmp_path: Path,
) -> None:
    parts = in_force(tmp_path, STRIPS, "strip.cookie")
    found = parts.checked(STRIPPED)
    assert parts.checked(STRIPPED) is found
    assert (found.allowed, found.rule) == (False, NOT_RENDERED)
    assert found.reason is not None
    assert "yet: strip.cookie. It comes within seconds" in found.reason


def test_other_requests_of_the_same_policy_pass_and_all_do_once_it_is_there(
    tmp_path: Path,
) -> None:
    other = Decision(Action.ALLOW, "b")
    assert in_force(tmp_path, STRIPS, "strip.cookie").checked(other) is other
    assert in_force(tmp_path, STRIPS).checked(STRIPPED) is STRIPPED


def test_a_denial_keeps_its_own_rule(tmp_path: Path) -> None:
    denied = Decision(Action.DENY, "default")
    assert in_force(tmp_path, STRIPS, "strip", "strip.cookie").checked(denied) is denied


def test_a_helper_that_is_told_nothing_denies_what_needs_a_part(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, STRIPS)
    assert (
        PartsInForce(needed_keys(policy), frozenset()).checked(STRIPPED).rule
        == NOT_RENDERED
    )


@pytest.mark.parametrize("asked", [*TunnelMode, "CONNECT"])
def test_what_is_not_in_force_is_named_in_any_tunnel(
    asked: str, tmp_path: Path
) -> None:
    """Its CONNECT was denied too, so that the tunnel leads nowhere: another one would
    be no better.
    """
    private = "rules: [{name: a, action: allow, hosts: [a.example], private: true}]"
    # what a CONNECT itself needs
    text = STRIPS if isinstance(asked, TunnelMode) else private
    policy = load(write_policy(tmp_path / "policy", text), datetime.now(UTC)).compiled
    tokens = ["192.0.2.1", "-", "CONNECT", "-", "a.example", "443", "-", "-", "-"]
    if isinstance(asked, TunnelMode):
        tokens[2:4], tokens[7] = (
            ["GET", "https"],
            str(TunnelTag("a.example:443", asked)),
        )
    for in_force in (
        frozenset(),
        needed_keys(policy.source) - {"strip.cookie", Part.PRIVATE},
    ):
        reply = HostScope(policy, in_force).answer(
            " ".join(quote(token, safe="-") for token in tokens).encode()
        )
        assert dict(reply.annotations)["rule_"] == NOT_RENDERED


@pytest.mark.parametrize("missing", ["watch", "watch.secrets"])
def test_every_request_needs_the_watch_of_a_policy_that_watches(
    missing: str, tmp_path: Path
) -> None:
    text = (
        "secrets: {s: {env: S}}\ndefaults: {watch_secrets: true}\nrules: [{name: "
        "b, action: allow, hosts: [b.example]}]"
    )
    assert (
        in_force(tmp_path, text, missing).checked(Decision(Action.ALLOW, "b")).rule
        == NOT_RENDERED
    )


def test_a_rewrite_can_lead_to_any_upstream(tmp_path: Path) -> None:
    text = "upstreams: [{name: u, hosts: [b.example], url: 'http://192.0.2.1:3128'}]"
    [key] = (
        key
        for key in needed_keys(policy_of(tmp_path, text))
        if key.startswith("upstream.")
    )
    rewritten = Decision(Action.ALLOW, "a", outlook=Outlook(may_rewrite=True))
    assert in_force(tmp_path, text, key).checked(rewritten).rule == NOT_RENDERED


def test_the_keys_are_read_as_squids_configuration_states_them() -> None:
    text = "  acl --scope host --in-force core,strip \\\n    --in-force strip.x-a,upstream.u:0a \\\n    --policy /x\n"
    assert read_in_force(text) == parse_in_force(
        ("core,strip", "strip.x-a,upstream.u:0a")
    )
    assert read_in_force("acl --in-force core\n") == {"core"}
