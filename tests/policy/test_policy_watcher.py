"""The policy in force: loaded, swapped whole, the last good one kept, and what was in
force kept on disk.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load_stored_revision
from squidkeeper.policy.policy_store.policy_watcher import FileWatch, PolicyWatcher
from squidkeeper.policy.policy_store.reload_gate import EditJudge
from squidkeeper.policy.policy_store.revisions import (
    revision_in_force,
    stored_revisions,
)

from ..conftest import write_policy
from ..waiting import files_at_rest, pause, stays, wait_for

pytestmark = pytest.mark.system

GOOD = "rules: [{name: open, action: allow, hosts: [open.example]}]"
BAD = "rules: [{name: open, action: allowed, hosts: [open.example]}, {name: x, action: denied}]"


def make(
    tmp_path: Path, judge: EditJudge | None = None
) -> PolicyWatcher[CompiledPolicy]:
    return PolicyWatcher(
        tmp_path / "policy",
        tmp_path / "state/lists",
        lambda compiled: compiled,
        tmp_path / "state/revisions",
        judge=judge,
    )


def look(live: PolicyWatcher[CompiledPolicy]) -> None:
    """Look once the edit is at rest."""
    files_at_rest()
    live.check()


def kept_names(tmp_path: Path) -> list[str]:
    return [
        revision.revision for revision in stored_revisions(tmp_path / "state/revisions")
    ]


def test_before_the_first_look_nothing_is_in_force(tmp_path: Path) -> None:
    live = make(tmp_path)
    assert live.current is None
    assert (live.state.revision, live.state.ok) == (None, False)
    assert (
        live.state.problem
        == f"{tmp_path}/policy: the policy is not read yet [not-read]"
    )


def test_the_state_names_the_revision_and_when_it_was_loaded(tmp_path: Path) -> None:
    before = time.time()
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    look(live)
    assert live.current
    assert (live.state.revision, live.state.ok, live.state.faults) == (
        live.current.source.revision,
        True,
        (),
    )
    assert live.state.loaded
    assert before <= live.state.loaded <= time.time()
    assert not (tmp_path / "state/revisions").exists()  # the thread stores it later


def test_a_policy_that_never_loaded_is_not_in_force_and_its_faults_are_known(
    tmp_path: Path,
) -> None:
    write_policy(tmp_path / "policy", BAD)
    live = make(tmp_path)
    look(live)
    assert (live.current, live.state.revision, live.state.loaded, live.state.ok) == (
        None,
        None,
        None,
        False,
    )
    assert [fault.location.line for fault in live.state.faults] == [2, 2]
    assert "allowed" in live.state.problem


def test_a_bad_edit_keeps_the_revision_and_tells_its_faults_until_it_is_mended(
    tmp_path: Path,
) -> None:
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    look(live)
    good = live.state
    write_policy(tmp_path / "policy", BAD)
    look(live)
    bad = live.state
    assert (bad.revision, bad.loaded, bad.ok, len(bad.faults)) == (
        good.revision,
        good.loaded,
        False,
        2,
    )
    write_policy(tmp_path / "policy", GOOD)
    look(live)
    assert (
        live.state.revision,
        live.state.ok,
        live.state.problem,
        live.state.faults,
    ) == (good.revision, True, "", ())


def comes_in_force_again(live: PolicyWatcher[CompiledPolicy], tmp_path: Path) -> None:
    write_policy(tmp_path / "policy", GOOD)
    comes_in_force(live, "open")
    assert live.state.ok


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
    assert (
        load_stored_revision(tmp_path / "state/revisions", str(first))
        .source.rules[0]
        .name
        == "open"
    )


def test_a_disk_that_takes_nothing_costs_one_line_in_the_log_and_no_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.revisions._TRY_AGAIN_SECONDS", 0.0
    )
    caplog.set_level(logging.WARNING)
    disk = tmp_path / "state"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", disk], check=True
    )
    try:
        write_policy(tmp_path / "policy", GOOD)
        live = make(tmp_path)
        live.start()
        wait_for(lambda: "cannot be published" in caplog.text)
        stays(
            lambda: caplog.text.count("cannot be published") == 1,
            0.5,
            "the one complaint",
        )
        assert live.current
        assert f"revision {live.state.revision} cannot be published" in caplog.text
        assert "Read-only file system" in caplog.text
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        wait_for(lambda: kept_names(tmp_path) == [live.state.revision])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_hundred_edits_a_second_are_taken_up_and_bounded_on_disk(
    tmp_path: Path,
) -> None:
    write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    live.start()
    for number in range(200):
        new = tmp_path / "policy/.new"
        new.write_text(
            "version: 1\n" + GOOD.replace("open.example", f"open{number}.example")
        )
        new.rename(tmp_path / "policy/policy.yaml")
        pause(0.01, "a hundred edits a second")
    wait_for(
        lambda: (
            "open199.example"
            in str(live.current and live.current.source.rules[0].match.hosts)
        )
    )
    wait_for(lambda: live.state.revision in kept_names(tmp_path))
    assert len(kept_names(tmp_path)) <= 50
    wait_for(lambda: not list((tmp_path / "state/revisions").glob(".*")))


# --- files that are being written -----------------------------------------------------

HALF = "version: 1\nrules:\n  - {name: first, action: allow, hosts: ['*']}\n"
REST = "  - {name: second, action: deny, hosts: [closed.example]}\n"
LISTED = "lists: {ads: {file: ../lists/ads.txt}}\nrules: [{name: no-ads, action: deny, lists: [ads]}]"


def rule_names(live: PolicyWatcher[CompiledPolicy]) -> list[str]:
    return [rule.name for rule in live.current.source.rules] if live.current else []


def keep_looking(live: PolicyWatcher[CompiledPolicy], seconds: float = 0.4) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        look(live)


def comes_in_force(live: PolicyWatcher[CompiledPolicy], *names: str) -> None:
    """Look until these rules, and no others, are in force."""
    look_until(live, lambda: rule_names(live) == [*names])


def look_until(
    live: PolicyWatcher[CompiledPolicy], condition: Callable[[], bool]
) -> None:
    def looked() -> bool:
        look(live)
        return condition()

    wait_for(looked)


def started(tmp_path: Path, text: str = GOOD) -> PolicyWatcher[CompiledPolicy]:
    """A process with a policy in force, which is kept."""
    write_policy(tmp_path / "policy", text)
    live = make(tmp_path)
    look(live)
    live.store()
    return live


@pytest.mark.parametrize(
    ("written", "link", "names"),
    [
        ("policy/policy.yaml", None, ["first", "second"]),
        ("policy/00-first.yaml", None, ["first", "second", "open"]),
        ("elsewhere.yaml", os.symlink, ["first", "second"]),
        ("elsewhere.yaml", os.link, ["first", "second"]),
    ],
    ids=["edited", "new", "behind a symbolic link", "behind a hard link"],
)
def test_a_half_written_file_is_not_loaded_until_it_is_closed(
    tmp_path: Path,
    written: str,
    link: Callable[[Path, Path], None] | None,
    names: list[str],
) -> None:
    if link:
        write_policy(tmp_path, GOOD, written)
        (tmp_path / "policy").mkdir()
        link(tmp_path / written, tmp_path / "policy/policy.yaml")
    else:
        write_policy(tmp_path / "policy", GOOD)
    live = make(tmp_path)
    look(live)
    with (tmp_path / written).open("w") as file:
        keep_looking(live)
        assert rule_names(live) == ["open"]
        file.write(HALF)
        file.flush()
        keep_looking(live)
        assert (rule_names(live), live.state.ok) == (["open"], True)
        file.write(REST)
    comes_in_force(live, *names)


def listed(tmp_path: Path) -> Path:
    file = tmp_path / "lists/ads.txt"
    file.parent.mkdir()
    file.write_text("one.example\ntwo.example\n")
    return file


def hosts_of_the_list(live: PolicyWatcher[CompiledPolicy]) -> int:
    assert live.current
    return live.current.source.lists["ads"].summary.patterns


def test_a_half_written_list_is_not_loaded_until_it_is_closed(tmp_path: Path) -> None:
    ads = listed(tmp_path)
    live = started(tmp_path, LISTED)
    with ads.open("w") as file:
        keep_looking(live)
        file.write("one.example\n")
        file.flush()
        keep_looking(live)
        assert hosts_of_the_list(live) == 2
        file.write("two.example\nthree.example\n")
    look_until(live, lambda: hosts_of_the_list(live) == 3)


def test_an_edit_waits_for_a_list_that_is_written_unless_it_does_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.1
    )
    ads = listed(tmp_path)
    live = started(tmp_path, LISTED)
    with ads.open("w") as file:
        file.write("one.example\n")
        file.flush()
        keep_looking(live)
        write_policy(tmp_path / "policy", LISTED.replace("no-ads", "renamed"))
        keep_looking(live)
        assert (rule_names(live), hosts_of_the_list(live)) == (["no-ads"], 2)
        write_policy(tmp_path / "policy", GOOD)
        comes_in_force(live, "open")


def test_a_list_that_an_edit_names_is_not_loaded_while_it_is_still_written(
    tmp_path: Path,
) -> None:
    live = started(tmp_path)
    (tmp_path / "lists").mkdir()
    with (tmp_path / "lists/ads.txt").open("w") as file:
        file.write("one.example\n")
        file.flush()
        write_policy(tmp_path / "policy", LISTED)
        keep_looking(live)
        assert rule_names(live) == ["open"]
        file.write("two.example\n")
    comes_in_force(live, "no-ads")
    assert hosts_of_the_list(live) == 2


def test_a_file_that_stays_open_is_reported_and_loads_once_it_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.policy_watcher._WRITE_SECONDS", 0.2
    )
    live = started(tmp_path)
    file = tmp_path / "policy/policy.yaml"
    with file.open("w") as writer:
        writer.write(HALF)
        writer.flush()
        keep_looking(live, 1.0)
        assert (rule_names(live), live.state.ok) == (["open"], False)
        assert f"{file}: open for writing since " in live.state.problem
        assert caplog.text.count("open for writing since ") == 1
        assert "the last good policy goes on" in caplog.text
        write_policy(
            tmp_path / "policy", GOOD.replace("name: open", "name: replaced"), ".new"
        )
        (tmp_path / "policy/.new").rename(file)
        comes_in_force(live, "replaced")
        assert (live.state.ok, live.state.problem) == (True, "")


def test_touch_declares_a_file_complete(tmp_path: Path) -> None:
    live = started(tmp_path)
    os.truncate(tmp_path / "policy/policy.yaml", 0)  # a write that no close follows
    (tmp_path / "policy/other.yaml").write_text(HALF)
    keep_looking(live)
    assert rule_names(live) == ["open"]
    (tmp_path / "policy/policy.yaml").unlink()
    comes_in_force(live, "first")
    os.truncate(tmp_path / "policy/other.yaml", len("version: 1\n"))
    keep_looking(live)
    assert rule_names(live) == ["first"]
    subprocess.run(["touch", tmp_path / "policy/other.yaml"], check=True)
    comes_in_force(live)
    assert live.state.ok


@pytest.mark.parametrize("of_list", [False, True], ids=["policy", "list"])
def test_a_process_that_starts_while_a_file_is_written_begins_with_what_was_in_force(
    tmp_path: Path, of_list: bool
) -> None:
    written = listed(tmp_path) if of_list else tmp_path / "policy/policy.yaml"
    first = started(tmp_path, LISTED if of_list else GOOD)
    names = rule_names(first)
    with written.open("w") as file:
        file.write("one.example\n" if of_list else HALF)
        file.flush()
        look(first)
        later = make(tmp_path)
        keep_looking(later)
        assert (rule_names(later), later.state.ok) == (names, True)
        assert later.state.revision == first.state.revision
        assert not of_list or hosts_of_the_list(later) == 2
        file.write("two.example\nthree.example\n" if of_list else REST)
    revision = first.state.revision
    look(first)  # it tells the others that the file is complete
    look_until(later, lambda: later.state.revision != revision)
    assert rule_names(later) == (names if of_list else ["first", "second"])


def test_a_policy_that_was_put_back_is_what_was_in_force_last(tmp_path: Path) -> None:
    live = started(tmp_path)
    first = live.state.revision
    for text, name in ((HALF.removeprefix("version: 1\n"), "first"), (GOOD, "open")):
        write_policy(tmp_path / "policy", text)
        comes_in_force(live, name)
        live.store()
    found = revision_in_force(tmp_path / "state/revisions")
    assert found is not None
    assert (found.revision, found.directory, found.ended) == (
        first,
        tmp_path / "policy",
        frozenset(),
    )
    assert len(kept_names(tmp_path)) == 2


def test_a_process_that_starts_goes_by_the_others_for_as_long_as_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.2
    )
    first = started(tmp_path)
    with (tmp_path / "policy/policy.yaml").open("w") as file:
        file.write(HALF)
        file.flush()
        look(first)
        pause(0.5, "more than _QUIET_SECONDS")
        later = make(tmp_path)
        keep_looking(later)
        assert rule_names(later) == ["open"]
    comes_in_force(first, "first")
    comes_in_force(later, "first")


def test_a_process_that_starts_alone_waits_until_the_file_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(tmp_path)
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 600.0
    )
    write_policy(tmp_path / "policy", "rules: [{name: later, action: deny}]")
    alone = make(tmp_path)
    comes_in_force(alone, "open")
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.1
    )
    comes_in_force(alone, "later")


def test_a_process_that_starts_with_what_was_in_force_denies_once_the_file_is_complete_and_bad(
    tmp_path: Path,
) -> None:
    started(tmp_path)
    with (tmp_path / "policy/policy.yaml").open("w") as file:
        file.write("version: 1\n" + BAD)
        file.flush()
        later = make(tmp_path)
        keep_looking(later)
        assert rule_names(later) == ["open"]
    look(later)
    assert (later.current, later.state.revision, later.state.ok) == (None, None, False)


def test_a_process_that_starts_while_an_edit_replaces_another_begins_with_what_was_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.open_writes._QUIET_SECONDS", 0.0
    )
    first = started(tmp_path)
    write_policy(
        tmp_path / "policy",
        "rules: [{name: second, action: allow, hosts: [open.example]}]",
    )
    later = make(tmp_path)
    with (
        monkeypatch.context() as edited
    ):  # again and again, between reading and loading
        edited.setattr(FileWatch, "is_current", lambda *_: False)
        look(later)
        assert (rule_names(later), later.state.revision) == (
            ["open"],
            first.state.revision,
        )
    comes_in_force(later, "second")


def test_a_process_that_starts_loads_what_is_in_force_at_once_however_new_the_file_is(
    tmp_path: Path,
) -> None:
    first = started(tmp_path)
    write_policy(tmp_path / "policy", GOOD)
    later = make(tmp_path)
    look(later)
    assert later.state.revision == first.state.revision
    assert not later._started_with_previous


def test_what_was_in_force_of_another_directory_is_not_taken(tmp_path: Path) -> None:
    started(tmp_path)
    write_policy(tmp_path / "other", "rules: [{name: other, action: deny}]")
    live = PolicyWatcher(
        tmp_path / "other",
        None,
        lambda compiled: compiled,
        tmp_path / "state/revisions",
    )
    comes_in_force(live, "other")


WITHOUT_INOTIFY = """
import logging, pathlib, sys, threading, time
from squidkeeper.policy.policy_store.policy_watcher import FileWatch, PolicyWatcher

logging.basicConfig(stream=sys.stdout, format="%(message)s")
policy = pathlib.Path(sys.argv[1])
live = PolicyWatcher(policy, None, lambda compiled: compiled)
for name in ("first", "second", "third"):
    (policy / "policy.yaml").write_text(f"version: 1\\nrules: [{{name: {name}, action: deny}}]")
    deadline = time.monotonic() + 60
    while not live.current or live.current.source.rules[0].name != name:
        assert time.monotonic() < deadline, live.state
        threading.Event().wait(0.03)
        live.check()
print("all in force")
"""


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("max_inotify_instances", "inotify cannot be used (Too many open files)"),
        (
            "max_inotify_watches",
            "inotify cannot watch {policy} (No space left on device)",
        ),
    ],
)
def test_without_inotify_the_log_says_so_once_and_edits_load(
    tmp_path: Path, limit: str, problem: str
) -> None:
    policy = write_policy(tmp_path / "policy", GOOD)
    limited = (
        f"echo 0 > /proc/sys/user/{limit}; exec "
        f"{shlex.join([sys.executable, '-c', WITHOUT_INOTIFY, str(policy)])}"
    )
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limited]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["all in force"], done.stdout + done.stderr
    assert done.stdout.count(problem.format(policy=policy)) == 1, done.stdout
    assert (
        done.stdout.count("may be loaded half-written")
        == len(done.stdout.splitlines()) - 1
    )


# --- files that end with `end: true` --------------------------------------------------


def test_a_file_that_ended_so_must_end_so_again_in_every_process_until_it_is_dropped(
    tmp_path: Path,
) -> None:
    live = started(tmp_path, GOOD + "\nend: true\n")
    revision = live.state.revision
    write_policy(tmp_path / "policy", GOOD)
    look(live)
    assert (live.state.revision, live.state.ok) == (revision, False)
    assert "as it did before" in live.state.problem
    later = make(tmp_path)
    pause(2.1, "longer than _QUIET_SECONDS")
    look(later)
    assert (later.current, later.state.ok) == (None, False)
    write_policy(tmp_path / "policy", GOOD + "\nend: false\n")
    look(live)
    assert live.state.ok
    write_policy(tmp_path / "policy", GOOD)
    look(live)
    assert live.state.ok
