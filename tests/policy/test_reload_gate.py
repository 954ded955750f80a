"""The reload gate: an edit waits for a verdict, and is accepted, refused, or passes
without one.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squidkeeper.base.faults import FaultCode
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.model import ReloadGate
from squidkeeper.policy.policy_store import reload_gate
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.policy_store.reload_gate import (
    Edit,
    EditJudge,
    GatedDenial,
    GateVerdict,
    denial_text,
    force,
    forced_file,
    read_verdict,
    write_verdict,
)
from squidkeeper.policy.policy_store.revisions import revision_in_force
from squidkeeper.policy.policy_store.sources import read_sources

from .test_policy_watcher import BAD, make, rule_names

pytestmark = pytest.mark.system

Held = tuple[PolicyWatcher[CompiledPolicy], Edit]
GATE = "defaults: {reload_gate: {since: 1d, denials: 3}}\n"
OPEN = GATE + "rules: [{name: open, action: allow, hosts: [open.example]}]"
CLOSED = GATE + "rules: [{name: closed, action: deny, hosts: [open.example]}]"
OTHER = GATE + "rules: [{name: other, action: allow, hosts: [open.example]}]"
GRANT = """version: 1
grants:
  - {name: g, any_client: true, hosts: [granted.example], expires: 2036-01-01T00:00:00Z, reason: Asked for.}
"""
LOST = GatedDenial(
    "192.168.137.10",
    "closed",
    "open.example",
    312,
    "2026-11-26T19:00:00Z",
    "GET https://open.example/a",
)


@pytest.fixture(autouse=True)
def _at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each edit is a rename, so none has to come to rest."""
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.policy_watcher._SETTLE_SECONDS", 0.0
    )
    monkeypatch.setattr("squidkeeper.policy.policy_store.sources._HOT_NANOSECONDS", 0)
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.0
    )


def write_policy(directory: Path, text: str) -> None:
    """Edit the policy by a rename, so that it has not to come to rest."""
    directory.mkdir(exist_ok=True)
    new = directory / ".new"
    new.write_text(f"version: 1\n{text}")
    new.rename(directory / "policy.yaml")


def folder(tmp_path: Path) -> Path:
    return tmp_path / "state/revisions"


class NotingJudge:
    """Notes what it is to judge; a test leaves the verdict."""

    def __init__(self, problem: OSError | None = None) -> None:
        self.begun: list[Edit] = []
        self.judges: Edit | None = None
        self.problem = problem

    def begin(self, edit: Edit) -> None:
        if self.problem:
            raise self.problem
        self.begun.append(edit)
        self.judges = edit

    def check(self) -> None:
        pass

    def end(self) -> None:
        self.judges = None


def in_force(
    tmp_path: Path, text: str = OPEN, judge: EditJudge | None = None
) -> PolicyWatcher[CompiledPolicy]:
    """A process with a policy in force, which is stored."""
    write_policy(tmp_path / "policy", text)
    live = make(tmp_path, judge)
    live.check()
    live.store()
    return live


def edit_to(tmp_path: Path, text: str, live: PolicyWatcher[CompiledPolicy]) -> Edit:
    """Edit the policy, and let a process see it."""
    old = str(live.state.revision)
    write_policy(tmp_path / "policy", text)
    live.check()
    return Edit(old, read_sources(tmp_path / "policy").revision)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    """A process with a policy in force, and an edit that it has seen."""
    live = in_force(tmp_path)
    return live, edit_to(tmp_path, CLOSED, live)


def judge(
    tmp_path: Path, edit: Edit, denials: int = 0, judged: float | None = None
) -> None:
    at, named = time.time() if judged is None else judged, (LOST,) * min(denials, 100)
    write_verdict(
        folder(tmp_path),
        GateVerdict(edit.old, edit.new, at, denials, denials, 3, named),
    )


def test_a_policy_says_how_many_denials_an_edit_of_it_may_bring(tmp_path: Path) -> None:
    live = in_force(tmp_path)
    assert live.current
    assert live.current.source.reload_gate == ReloadGate(86400, 3)
    found = revision_in_force(folder(tmp_path))
    assert found
    assert found.gated


def test_an_edit_is_held_back_and_judged(tmp_path: Path) -> None:
    noting = NotingJudge()
    live = in_force(tmp_path, judge=noting)
    edit = edit_to(tmp_path, CLOSED, live)
    assert (rule_names(live), live.state.revision, live.state.held) == (
        ["open"],
        edit.old,
        edit.new,
    )
    assert (live.state.ok, live.state.faults) == (False, ())
    live.check()
    assert noting.begun == [edit]
    judge(tmp_path, edit)
    live.check()
    assert noting.judges is None


def test_an_edit_that_is_accepted_comes_in_force(tmp_path: Path, held: Held) -> None:
    live, edit = held
    judge(tmp_path, edit, denials=3)
    live.check()
    assert (rule_names(live), live.state.revision, live.state.ok) == (
        ["closed"],
        edit.new,
        True,
    )
    assert (live.state.held, live.state.warnings) == (None, ())


def test_an_edit_that_is_refused_is_a_fault_that_names_what_it_would_deny(
    tmp_path: Path, held: Held
) -> None:
    live, edit = held
    judge(tmp_path, edit, denials=4)
    live.check()
    assert (rule_names(live), live.state.revision, live.state.ok, live.state.held) == (
        ["open"],
        edit.old,
        False,
        None,
    )
    assert {fault.code for fault in live.state.faults} == {FaultCode.RELOAD_GATED}
    first, second, *_ = live.state.faults
    assert first.message == (
        f"the reload gate refuses revision {edit.new}: it would deny 4 combinations of client, rule and host that were"
        " used, expected 3 at most: change the edit, or accept it by `squidkeeper reload --force`"
    )
    assert second.message == (
        "client 192.168.137.10 would be denied open.example by closed: 312 requests, the last at 2026-11-26T19:00:00Z,"
        " such as GET https://open.example/a"
    )


def test_few_of_many_denials_are_named(tmp_path: Path) -> None:
    live = in_force(tmp_path)
    judge(tmp_path, edit_to(tmp_path, CLOSED, live), denials=4000)
    live.check()
    assert len(live.state.faults) == 12
    assert (
        live.state.faults[-1].message
        == "and 3,990 more: `squidkeeper reload` shows them"
    )


def test_what_a_verdict_names_cannot_break_a_line_nor_fill_the_log() -> None:
    text = denial_text(replace(LOST, host="a\x1b[2J\nb", example="x" * 10_000))
    assert "a\\x1b[2J\\nb" in text
    assert len(text) < 700


def test_without_a_verdict_an_edit_comes_in_force_in_time_and_a_warning_says_so(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, edit = held
    assert rule_names(live) == ["open"]
    patience_ends(monkeypatch)
    live.check()
    assert (rule_names(live), live.state.revision, live.state.ok) == (
        ["closed"],
        edit.new,
        True,
    )
    assert [warning.code for warning in live.state.warnings] == [
        FaultCode.RELOAD_UNJUDGED
    ]


def patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time pass that an edit waits for a verdict, without a wait that a busy
    machine could make too long.
    """
    at = time.monotonic() + reload_gate.PATIENCE_SECONDS
    monkeypatch.setattr(
        reload_gate, "time", SimpleNamespace(monotonic=lambda: at, time=time.time)
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [("0" * 12, None), (None, "0" * 12), ("0" * 12, "1" * 12)],
    ids=["from another", "to another", "both"],
)
@pytest.mark.parametrize("denials", [0, 4])
def test_a_verdict_about_another_edit_is_ignored(
    tmp_path: Path, held: Held, old: str | None, new: str | None, denials: int
) -> None:
    live, edit = held
    other = Edit(old or edit.old, new or edit.new)
    judge(tmp_path, other, denials)
    live.check()
    assert (rule_names(live), live.state.held, live.state.faults) == (
        ["open"],
        edit.new,
        (),
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"old": 1}', b"\xff" * 50, b"[" * 5000]
)
def test_what_is_no_verdict_is_none(tmp_path: Path, content: bytes) -> None:
    folder(tmp_path).mkdir(parents=True)
    (folder(tmp_path) / "verdict.json").write_bytes(content)
    assert read_verdict(folder(tmp_path), Edit("0" * 12, "1" * 12)) is None


def test_an_old_acceptance_does_not_open_the_gate_again(
    tmp_path: Path, held: Held
) -> None:
    live, edit = held
    judge(tmp_path, edit, judged=time.time() - 3600)
    live.check()
    assert live.state.held == edit.new


def test_an_edit_that_is_taken_back_is_in_force_as_before(
    tmp_path: Path, held: Held
) -> None:
    live, edit = held
    write_policy(tmp_path / "policy", OPEN)
    live.check()
    assert (rule_names(live), live.state.revision, live.state.ok, live.state.held) == (
        ["open"],
        edit.old,
        True,
        None,
    )
    judge(tmp_path, edit)
    live.check()
    assert rule_names(live) == ["open"]


def test_of_two_edits_one_after_the_other_only_the_second_counts(
    tmp_path: Path,
) -> None:
    noting = NotingJudge()
    live = in_force(tmp_path, judge=noting)
    first = edit_to(tmp_path, CLOSED, live)
    second = edit_to(tmp_path, OTHER, live)
    assert noting.begun == [first, second]
    assert live.state.held == second.new
    judge(tmp_path, first, denials=4)
    live.check()
    assert live.state.held == second.new
    judge(tmp_path, second)
    live.check()
    assert (rule_names(live), live.state.ok) == (["other"], True)


def test_a_refused_edit_that_is_touched_is_judged_again(tmp_path: Path) -> None:
    noting = NotingJudge()
    live = in_force(tmp_path, judge=noting)
    edit = edit_to(tmp_path, CLOSED, live)
    judge(tmp_path, edit, denials=4)
    live.check()
    (tmp_path / "policy/policy.yaml").touch()
    live.check()
    assert noting.begun == [edit, edit]
    assert live.state.faults[0].code is FaultCode.RELOAD_GATED
    judge(tmp_path, edit)
    live.check()
    assert rule_names(live) == ["closed"]


def test_a_faulty_edit_after_a_refused_one_keeps_the_policy_in_force(
    tmp_path: Path,
) -> None:
    live = in_force(tmp_path)
    judge(tmp_path, edit_to(tmp_path, CLOSED, live), denials=4)
    live.check()
    write_policy(tmp_path / "policy", BAD)
    live.check()
    assert (rule_names(live), len(live.state.faults)) == (["open"], 2)
    write_policy(tmp_path / "policy", OPEN)
    live.check()
    assert (rule_names(live), live.state.ok) == (["open"], True)


def test_the_gate_of_the_policy_in_force_counts_and_not_that_of_the_edit(
    tmp_path: Path,
) -> None:
    live = in_force(tmp_path, OPEN.removeprefix(GATE))
    edit_to(tmp_path, CLOSED, live)
    assert rule_names(live) == ["closed"]  # in force at once: there was no gate
    edit = edit_to(tmp_path, OPEN.removeprefix(GATE), live)
    assert (rule_names(live), live.state.held) == (["closed"], edit.new)


def test_what_commands_grant_and_revoke_is_in_force_at_once(tmp_path: Path) -> None:
    live = in_force(tmp_path)
    grants = tmp_path / "grants.yaml"
    grants.write_text(GRANT)
    live.check()
    assert live.current
    assert ([grant.name for grant in live.current.source.grants], live.state.held) == (
        ["g"],
        None,
    )
    grants.unlink()
    live.check()
    assert (live.current.source.grants, live.state.held) == ((), None)


def test_an_edit_beside_a_grant_is_held_back_and_the_grant_with_it(
    tmp_path: Path,
) -> None:
    live = in_force(tmp_path)
    (tmp_path / "grants.yaml").write_text(GRANT)
    edit = edit_to(tmp_path, CLOSED, live)
    assert live.current
    assert (live.current.source.grants, live.state.held) == ((), edit.new)


# --- accepted by hand -----------------------------------------------------------------


def test_an_edit_that_is_forced_comes_in_force_though_it_was_refused(
    tmp_path: Path, held: Held
) -> None:
    live, edit = held
    judge(tmp_path, edit, denials=4)
    live.check()
    force(tmp_path / "policy", edit.new)
    live.check()
    assert (rule_names(live), live.state.ok, live.state.warnings) == (
        ["closed"],
        True,
        (),
    )


@pytest.mark.parametrize("text", ["{old}", "{new} {old}", "link"])
def test_what_was_forced_is_exactly_one_revision_in_a_file(
    tmp_path: Path, held: Held, text: str
) -> None:
    live, edit = held
    (tmp_path / "elsewhere").write_text(edit.new)
    if text == "link":
        forced_file(tmp_path / "policy").symlink_to(tmp_path / "elsewhere")
    else:
        forced_file(tmp_path / "policy").write_text(
            text.format(old=edit.old, new=edit.new)
        )
    live.check()
    assert live.state.held == edit.new


def test_a_force_of_another_account_is_none(tmp_path: Path, held: Held) -> None:
    live, edit = held
    force(tmp_path / "policy", edit.new)
    os.chown(forced_file(tmp_path / "policy"), 65534, 65534)
    live.check()
    assert live.state.held == edit.new


# --- several processes ----------------------------------------------------------------


def test_a_process_that_starts_meanwhile_has_the_revision_in_force(
    tmp_path: Path, held: Held
) -> None:
    _, edit = held
    later = make(tmp_path)
    later.check()
    assert (rule_names(later), later.state.revision, later.state.held) == (
        ["open"],
        edit.old,
        edit.new,
    )
    judge(tmp_path, edit, denials=4)
    later.check()
    assert (rule_names(later), later.state.ok) == (["open"], False)
    last = make(tmp_path)
    last.check()
    assert (rule_names(last), last.state.faults[0].code) == (
        ["open"],
        FaultCode.RELOAD_GATED,
    )
    write_policy(tmp_path / "policy", BAD)
    last.check()
    assert rule_names(last) == ["open"]  # and it never denies everything


def test_a_process_that_starts_after_a_refusal_asks_for_no_other_verdict(
    tmp_path: Path, held: Held
) -> None:
    _, edit = held
    judge(tmp_path, edit, denials=4)
    noting = NotingJudge()
    later = make(tmp_path, noting)
    later.check()
    assert (rule_names(later), noting.begun) == (["open"], [])


def test_where_no_judge_starts_an_edit_is_delayed_and_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    live = in_force(tmp_path, judge=NotingJudge(OSError(12, "Cannot allocate memory")))
    edit_to(tmp_path, CLOSED, live)
    assert rule_names(live) == ["open"]
    told = "the reload gate cannot be asked: Cannot allocate memory"
    assert caplog.text.count(told) == 1
    patience_ends(monkeypatch)
    live.check()
    assert rule_names(live) == ["closed"]


HOSTS = st.lists(
    st.sampled_from(["a.example", "b.example", "c.example"]),
    min_size=1,
    max_size=3,
    unique=True,
)
Step = tuple[list[str], str, bool]  # hosts, action, whether the edit is accepted
STEPS = st.lists(
    st.tuples(HOSTS, st.sampled_from(["allow", "deny"]), st.booleans()), max_size=3
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_refused_edit_never_changes_what_is_in_force(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    """Edit again and again: a process that runs, and one that starts, have the revision
    that was accepted last.
    """
    tmp_path = tmp_path_factory.mktemp("gate")
    write_policy(tmp_path / "policy", OPEN)
    live = make(tmp_path)
    live.check()
    live.store()
    for hosts, action, accepted in steps:
        before, old = live.current, str(live.state.revision)
        write_policy(
            tmp_path / "policy",
            f"{GATE}rules: [{{name: r, action: {action}, hosts: [{', '.join(hosts)}]}}]",
        )
        live.check()
        edit = Edit(old, read_sources(tmp_path / "policy").revision)
        judge(tmp_path, edit, denials=0 if accepted else 4)
        live.check()
        if accepted or edit.old == edit.new:
            assert live.state.revision == edit.new
        else:
            assert live.current is before
        live.store()
        started = make(tmp_path)
        started.check()
        assert started.state.revision == live.state.revision
