"""When a process reads the state of its policy's files: after each change, whoever
reports it, and hardly ever without one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squidkeeper.policy.policy_store import policy_watcher
from squidkeeper.policy.policy_store.policy_watcher import FileWatch
from squidkeeper.policy.policy_store.sources import fingerprint

from ..conftest import write_policy
from ..waiting import files_at_rest, wait_for

pytestmark = pytest.mark.system

LISTED = "lists: {ads: {file: ../lists/ads.txt}}\nrules: [{name: no-ads, action: deny, lists: [ads]}]"
Reads = list[Path]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Note each time that the state of all files is read."""
    noted: Reads = []

    def noting(directory: Path, *named: tuple[Path, ...]) -> object:
        noted.append(directory)
        return fingerprint(directory, *named)

    monkeypatch.setattr(policy_watcher, "fingerprint", noting)
    return noted


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a change be seen by what reports it alone, as in a policy of many files."""
    monkeypatch.setattr(policy_watcher, "_LOOKING_SHARE", 1e-12)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy of three files: one is a link, one has a second name elsewhere, one
    names a list.
    """
    write_policy(tmp_path / "lists", "", "ads.txt").joinpath("ads.txt").write_text(
        "one.example\n"
    )
    write_policy(tmp_path / "one", "", "linked.yaml")
    write_policy(tmp_path / "two", "", "linked.yaml")
    (tmp_path / "now").symlink_to("one")
    folder = write_policy(tmp_path / "policy", LISTED)
    (folder / "linked.yaml").symlink_to("../now/linked.yaml")
    write_policy(folder, "", "second.yaml")
    (tmp_path / "elsewhere.yaml").hardlink_to(folder / "second.yaml")
    return folder


def watching(directory: Path) -> FileWatch:
    """Watch a policy that was taken and is at rest."""
    files_at_rest()
    files = FileWatch(directory, None)
    assert files.changed()
    sources = files.read()
    files.unfinished(edited=False)
    files.take(sources)
    wait_for(lambda: not files.changed())
    return files


@pytest.mark.usefixtures("no_second_look")
def test_no_file_is_read_while_nothing_is_reported(policy: Path, reads: Reads) -> None:
    files = watching(policy)
    reads.clear()
    (policy.parent / "access.log").write_text("made once\n")
    assert not files.changed()
    reads.clear()
    for line in range(50):
        with (policy.parent / "access.log").open("a") as log:
            log.write(f"{line}\n")
        assert not files.changed()
    assert reads == []


@pytest.mark.usefixtures("no_second_look")
def test_a_change_is_seen_until_the_files_are_taken(policy: Path) -> None:
    files = watching(policy)
    write_policy(policy, "", "second.yaml")
    files_at_rest()
    assert [files.changed() for _ in range(3)] == [True, True, True]
    sources = files.read()
    write_policy(policy, "rules: []", "second.yaml")
    files.unfinished(edited=False)
    files.take(sources)
    files_at_rest()
    assert files.changed()  # the report of it was read before


def _replace(new: Path, old: Path) -> None:
    shutil.copy2(old, new)
    new.replace(old)


def _swap(link: Path, target: str) -> None:
    (link.parent / ".new").symlink_to(target)
    (link.parent / ".new").replace(link)


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited in place": lambda policy: write_policy(policy, "rules: []"),
    "edited by its other name": lambda policy: write_policy(
        policy.parent, "rules: []", "elsewhere.yaml"
    ),
    "edited behind a link": lambda policy: write_policy(
        policy.parent / "one", "rules: []", "linked.yaml"
    ),
    "replaced by rename": lambda policy: _replace(
        policy / ".new", policy / "policy.yaml"
    ),
    "replaced behind a link": lambda policy: _replace(
        policy.parent / "one/.new", policy.parent / "one/linked.yaml"
    ),
    "a folder in a link's target swapped": lambda policy: _swap(
        policy.parent / "now", "two"
    ),
    "a file more": lambda policy: write_policy(policy, "", "third.yaml"),
    "a file less": lambda policy: (policy / "second.yaml").unlink(),
    "a file moved away": lambda policy: (policy / "second.yaml").rename(
        policy / "second.txt"
    ),
    "its mode": lambda policy: (policy / "second.yaml").chmod(0o600),
    "its times": lambda policy: os.utime(policy / "second.yaml", (1, 1)),
    "a list edited": lambda policy: (policy.parent / "lists/ads.txt").write_text("x\n"),
    "a list replaced": lambda policy: _replace(
        policy.parent / "lists/.new", policy.parent / "lists/ads.txt"
    ),
    "grants beside it": lambda policy: write_policy(
        policy.parent, "grants: []", "grants.yaml"
    ),
    "the folder replaced": lambda policy: (
        shutil.copytree(policy, policy.parent / "other"),
        policy.rename(policy.parent / "former"),
        (policy.parent / "other").rename(policy),
    ),
}


@pytest.mark.usefixtures("no_second_look")
@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_local_file_is_reported(policy: Path, change: str) -> None:
    files = watching(policy)
    CHANGES[change](policy)
    assert files.changed()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder, and where another machine would write it: inotify reports nothing of
    it.

    An overlay has inodes of its own, as a file system of a network has.
    """
    for name in ("disk", "seen"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "disk"], check=True)
    try:
        for name in ("lower", "upper", "work"):
            (tmp_path / "disk" / name).mkdir()
        folders = ",".join(
            f"{name}dir={tmp_path}/disk/{name}" for name in ("lower", "upper", "work")
        )
        mount = ["mount", "-t", "overlay", "overlay", "-o", folders]
        subprocess.run([*mount, tmp_path / "seen"], check=True)
        try:
            yield tmp_path / "seen/policy", tmp_path / "disk/upper/policy"
        finally:
            subprocess.run(["umount", "-l", tmp_path / "seen"], check=True)
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def silent_watch(seen: Path, written: Path) -> FileWatch:
    write_policy(seen, "rules: []")
    files = watching(seen)
    write_policy(written.parent, "", "probe.yaml")
    wait_for(lambda: not files.changed())
    return files


@pytest.mark.usefixtures("no_second_look")
def test_a_file_that_is_replaced_shows_in_its_folder_where_inotify_is_silent(
    silent: tuple[Path, Path],
) -> None:
    seen, written = silent
    files = silent_watch(seen, written)
    _replace(written / ".new", written / "policy.yaml")
    assert files.changed()


def test_an_edit_in_place_is_seen_without_a_report(silent: tuple[Path, Path]) -> None:
    seen, written = silent
    files = silent_watch(seen, written)
    write_policy(written, "rules: [{name: closed, action: deny}]")
    files._writes.read()
    assert not files._writes.reported
    wait_for(files.changed)
