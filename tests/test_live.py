"""The policy in force: loaded, swapped whole, the last good one kept, and what was in force kept on disk."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from squidkeeper.engine import Judge
from squidkeeper.live import LivePolicy, State, load_kept
from squidkeeper.policy.revisions import kept

from .conftest import write_policy

GOOD = "rules: [{name: open, action: allow, hosts: [open.example]}]"
BAD = "rules: [{name: open, action: allowed, hosts: [open.example]}, {name: x, action: denied}]"


def make(tmp_path: Path) -> LivePolicy[Judge]:
    return LivePolicy(tmp_path / "policy", tmp_path / "state/lists", lambda judge: judge, tmp_path / "state/revisions")


def look(live: LivePolicy[Judge]) -> None:
    """Look once the edit is at rest: file times advance by steps of some milliseconds."""
    time.sleep(0.03)
    live.look()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def kept_names(tmp_path: Path) -> list[str]:
    return [one.revision for one in kept(tmp_path / "state/revisions")]


def test_before_the_first_look_nothing_is_in_force(tmp_path: Path) -> None:
    live = make(tmp_path)
    assert live.current is None
    assert live.state == State(None, None, False, "it was not looked at yet")


def test_the_state_names_the_revision_and_when_it_was_loaded(tmp_path: Path) -> None:
    before = time.time()
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    look(live)
    assert live.current
    assert (live.state.revision, live.state.ok, live.state.faults) == (live.current.policy.revision, True, ())
    assert live.state.loaded
    assert before <= live.state.loaded <= time.time()


def test_a_policy_that_never_loaded_is_not_in_force_and_its_faults_are_known(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", BAD)
    live = make(tmp_path)
    look(live)
    assert (live.current, live.state.revision, live.state.loaded, live.state.ok) == (None, None, None, False)
    assert [fault.location.line for fault in live.state.faults] == [2, 2]
    assert "allowed" in live.state.problem


def test_a_bad_edit_keeps_the_revision_and_tells_its_faults_until_it_is_mended(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    look(live)
    good = live.state
    write_policy(tmp_path / "policy", BAD)
    look(live)
    bad = live.state
    assert (bad.revision, bad.loaded, bad.ok, len(bad.faults)) == (good.revision, good.loaded, False, 2)
    write_policy(tmp_path / "policy", GOOD)
    look(live)
    assert (live.state.revision, live.state.ok, live.state.problem, live.state.faults) == (good.revision, True, "", ())


def test_a_failing_test_of_the_policys_own_is_a_fault(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", "tests: [{request: GET https://open.example/, expect: allow}]")
    live = make(tmp_path)
    look(live)
    assert (live.state.ok, len(live.state.faults)) == (False, 1)


def test_what_was_in_force_is_kept_by_the_watch(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    live.start()
    wait_for(lambda: kept_names(tmp_path) != [])
    first = live.state.revision
    assert kept_names(tmp_path) == [first]
    write_policy(tmp_path / "policy", GOOD.replace("open.example", "other.example"))
    wait_for(lambda: live.state.revision != first)
    second = live.state.revision
    wait_for(lambda: kept_names(tmp_path) == [second, first])
    write_policy(tmp_path / "policy", BAD)
    wait_for(lambda: not live.state.ok)
    assert kept_names(tmp_path) == [second, first]
    assert load_kept(tmp_path / "state/revisions", str(first)).policy.rules[0].name == "open"


def test_a_look_does_not_wait_for_the_keeping(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    look(live)
    assert live.current
    assert not (tmp_path / "state/revisions").exists()


def test_a_disk_that_takes_nothing_costs_one_line_in_the_log_and_no_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squidkeeper.live._KEEP_AGAIN_SECONDS", 0.0)
    caplog.set_level(logging.WARNING)
    disk = tmp_path / "state"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", disk], check=True)
    try:
        write_policy(tmp_path / "policy", GOOD)
        live = make(tmp_path)
        live.start()
        wait_for(lambda: "is not kept" in caplog.text)
        time.sleep(0.5)
        assert live.current
        assert caplog.text.count(f"revision {live.state.revision} is not kept") == 1
        assert "Read-only file system" in caplog.text
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        wait_for(lambda: kept_names(tmp_path) == [live.state.revision])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_hundred_edits_a_second_are_taken_up_and_bounded_on_disk(tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    live.start()
    for number in range(200):
        new = tmp_path / "policy/.new"
        new.write_text("version: 1\n" + GOOD.replace("open.example", f"open{number}.example"))
        new.rename(tmp_path / "policy/policy.yaml")
        time.sleep(0.01)
    wait_for(lambda: "open199.example" in str(live.current and live.current.policy.rules[0].match.hosts))
    wait_for(lambda: live.state.revision in kept_names(tmp_path))
    assert len(kept_names(tmp_path)) <= 50
    assert not list((tmp_path / "state/revisions").glob(".*"))
