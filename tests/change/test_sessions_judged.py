"""`replay`, `tighten`, `learn` and the reload gate judge each record as the session
that asked, also after its end; what is of a session that is not known any more is
counted apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.change.replay.gate import judge_edit
from squidkeeper.record.log.recorded_sessions import RecordedSessions
from squidkeeper.record.table.questions import SESSION_UNKNOWN
from squidkeeper.record.table.sources import TableSources

from ..records import NOON, after_noon
from ..session_records import POLICY, RecordedGateway

APP = "https://git.example/acme/app/x"
OTHER = "https://git.example/acme/other/x"


@pytest.fixture
def gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RecordedGateway]:
    monkeypatch.setattr(
        "squidkeeper.record.table.database.yield_to_squid", lambda: None
    )
    made = RecordedGateway(tmp_path)
    with closing(made.store):
        yield made


@pytest.fixture
def used(gateway: RecordedGateway) -> RecordedGateway:
    """Two sessions of one address, each in its own repository; one of another role."""
    first = gateway.session("vm-7", "10.20.0.7")
    gateway.store.end(first.number, "deleted")
    again = gateway.session("vm-7", "10.20.0.7", variables={"repo": ("acme/other",)})
    bot = gateway.session("bot-1", "10.20.0.8", role="bot", variables={})
    gateway.record(APP, first, rule="clone")
    gateway.record(OTHER, again, rule="clone")
    gateway.record("https://docs.example/", bot, rule="docs")
    return gateway


def replayed(gateway: RecordedGateway, draft: str) -> dict[str, Any]:
    folder = gateway.write_policy(draft, "draft")
    found = gateway.run("replay", "--policy", folder, "--json", gateway.log)
    told: dict[str, Any] = json.loads(found.stdout)
    return told


def denied(told: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (flip["rule"], flip["host"], flip["requests"], flip["policy_clients"])
        for flip in told["flips"]
        if flip["kind"] == "denied"
    ]


def test_the_same_policy_denies_no_session_anything(used: RecordedGateway) -> None:
    told = replayed(used, f"{POLICY}\n# the same")
    assert told["flips"] == []
    assert told["disagreeing"] == 0
    assert told["requests"] == 3
    assert told["set_apart"] == {}


def test_what_a_draft_takes_from_a_role_is_shown_as_the_role(
    used: RecordedGateway,
) -> None:
    told = replayed(used, POLICY.replace("[agent, bot], hosts", "[agent], hosts"))
    assert denied(told) == [("default", "docs.example", 1, ["bot"])]
    told = replayed(used, POLICY.replace('"/{session.repo}/**"', '"/acme/app/**"'))
    assert denied(told) == [("default", "git.example", 1, ["agent"])]


def test_a_draft_that_takes_no_longer_what_a_session_was_given_denies_it(
    used: RecordedGateway,
) -> None:
    """A variable that it has no value for can stand in a rule."""
    narrower = POLICY.replace("[a-z]+/[a-z]+", "acme/other")
    assert denied(replayed(used, narrower)) == [
        ("session-invalid", "git.example", 1, ["agent"])
    ]
    other = POLICY.replace("{repo", "{base").replace("session.repo", "session.base")
    assert denied(replayed(used, other)) == [
        ("session-invalid", "git.example", 2, ["agent"])
    ]


def test_what_is_of_an_unknown_session_is_not_judged_and_said(
    used: RecordedGateway,
) -> None:
    used.record("https://docs.example/", "5", rule="docs")
    told = replayed(used, POLICY.replace("docs.example", "doc.example"))
    assert told["requests"] == 3
    assert told["set_apart"] == {SESSION_UNKNOWN: 1}
    assert denied(told) == [("default", "docs.example", 1, ["bot"])]
    text = used.run("replay", "--policy", used.folder / "draft", used.log).stdout
    assert (
        "not judged (session-unknown): 1 request: its session is not known any more,"
        " so what it was allowed is unproven\n"
    ) in text


def tightened(gateway: RecordedGateway, policy: str) -> dict[str, Any]:
    folder = gateway.write_policy(policy, "judged")
    found = gateway.run("tighten", "--policy", folder, "--json", gateway.log)
    told: dict[str, Any] = json.loads(found.stdout)
    return told


def test_what_sessions_of_a_role_used_stays_and_the_rest_of_it_goes(
    used: RecordedGateway,
) -> None:
    wider = POLICY + (
        "  - {name: never, action: allow, clients: [agent], hosts: [never.example]}\n"
    )
    wider = wider.replace("  bot:", "  idle: {ttl: 1h}\n  bot:")
    told = tightened(used, wider)
    assert [rule["rule"] for rule in told["unused"]] == ["never"]
    (narrowed,) = told["narrowed"]
    assert narrowed["rule"] == "docs"
    fields = {one["field"]: one["narrower"] for one in narrowed["fields"]}
    assert fields["clients"] == ["bot"]
    assert {"kind": "role", "name": "idle"} in told["others"]


def test_a_rule_that_an_unknown_session_may_have_used_stays(
    used: RecordedGateway,
) -> None:
    used.record("https://never.example/", "5", rule="never")
    rules = (
        "  - {name: never, action: allow, clients: [agent], hosts: [never.example]}\n"
        "  - {name: all, action: allow, hosts: [all.example]}\n"
        "  - {name: office, action: allow, clients: [office], hosts: [o.example]}\n"
    )
    told = tightened(used, POLICY + rules)
    assert [rule["rule"] for rule in told["unused"]] == ["office"]
    kept = {rule["rule"]: rule["reason"] for rule in told["kept"]}
    assert kept == dict.fromkeys(("never", "all"), "sessions")
    assert told["set_apart"] == {SESSION_UNKNOWN: 1}


def test_rules_are_learned_for_roles(used: RecordedGateway) -> None:
    """Two sessions of two machines teach what each alone does not."""
    other = used.session("vm-8", "10.20.0.9")
    seen = used.session("vm-9", "10.20.0.10", role="gone", variables={})
    for session in (other, used.store.by_name("vm-7")):
        used.record("https://both.example/", session)
    used.record("https://gone.example/", seen)
    used.record("https://unknown.example/", "5")
    options = ("--policy", used.policy_folder, used.log)
    draft = used.run("learn", "--json", *options)
    told = json.loads(draft.stdout)
    assert [rule["hosts"] for rule in told["rules"]] == [["both.example"]]
    assert {one["host"] for one in told["listed"]} == {"git.example", "docs.example"}
    notes = "\n".join(told["notes"])
    assert "1 request: its session is not known any more" in notes
    assert "whose role the policy does not have: gone." in notes

    drafted = used.folder / "drafted"
    drafted.mkdir()
    file = drafted / "policy.yaml"
    text = used.run("learn", "--client", "agent", "--output", file, *options)
    assert text.exit_code == 0, text.stderr
    policy = used.policy("drafted").source
    assert policy.roles[0].variables == used.policy().source.roles[0].variables
    assert {rule.match.clients for rule in policy.rules} == {frozenset({"agent"})}


def test_the_reload_gate_counts_what_sessions_would_lose(
    used: RecordedGateway,
) -> None:
    gated = POLICY + "defaults: {reload_gate: {denials: 1, since: 1h}}\n"
    used.write_policy(gated)
    used.write_policy(gated.replace("docs.example", "doc.example"), "draft")
    sessions = RecordedSessions.of_gateway(used.state)
    used.record("https://docs.example/", "5", rule="docs", time=after_noon(1))
    for known, denials in ((sessions, 1), (RecordedSessions(), 0)):
        found = judge_edit(
            *(used.policy(), used.policy("draft"), TableSources((used.log,))),
            *(NOON + timedelta(minutes=1), known),
        )
        assert found.denials == denials
