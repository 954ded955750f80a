"""Revisions that were in force are kept, bounded and never twice, and judge once more
as they did.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store import revisions
from squidkeeper.policy.policy_store.loading import load_sources, load_stored_revision
from squidkeeper.policy.policy_store.revisions import (
    compiled_lists,
    read_revision,
    revision_in_force,
    store_revision,
    stored_revisions,
)
from squidkeeper.policy.policy_store.sources import grants_file, read_sources
from squidkeeper.policy.protocol.request import request_to

from ..conftest import NOW, decided, write_policy

POLICY = """
rules:
  - {name: ads, action: deny, lists: [ads], reason: "Ads."}
  - {name: open, action: allow, hosts: [open.example]}
lists: {ads: {file: LIST}}
secrets: {token: {file: token}}
credentials: [{name: api, hosts: [open.example], bearer: token}]
"""


class State:
    """A state folder, and what was loaded with it."""

    def __init__(self, folder: Path) -> None:
        self.lists = folder / "lists"
        self.revisions = folder / "revisions"

    def load(self, directory: Path, list_cache: bool = True) -> str:
        """Load a policy and keep it; gives the revision."""
        sources = read_sources(directory)
        loaded = load_sources(sources, NOW, self.lists if list_cache else None)
        revision = loaded.compiled.revision
        store_revision(
            sources, revision, self.revisions, self.lists if list_cache else None
        )
        return revision

    def verdict(self, revision: str, url: str) -> tuple[str, str]:
        return verdict(load_stored_revision(self.revisions, revision), url)

    def bytes_on_disk(self) -> int:
        files = [path.stat() for path in self.revisions.rglob("*") if path.is_file()]
        return sum({state.st_ino: state.st_size for state in files}.values())


def verdict(compiled: CompiledPolicy, url: str) -> tuple[str, str]:
    decision = decided(compiled, request_to("GET", url), NOW)
    return (decision.rule, decision.action)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


def policy_with_list(
    directory: Path, file: str = "ads.txt", hosts: str = "ads.example\n"
) -> Path:
    write_policy(directory, POLICY.replace("LIST", file))
    (directory / file).parent.mkdir(parents=True, exist_ok=True)
    (directory / file).write_text(hosts)
    (directory / "token").write_text("s3cret-value")
    (directory / "token").chmod(0o600)
    return directory


@pytest.mark.parametrize("place", ["beside", "below", "outside", "absolute"])
def test_a_kept_revision_judges_as_it_did_when_all_it_was_made_from_is_gone(
    tmp_path: Path, state: State, place: str
) -> None:
    file = {
        "beside": "ads.txt",
        "below": "a/b/ads.txt",
        "outside": "../other/ads.txt",
    }.get(place)
    directory = policy_with_list(
        tmp_path / "policy", file or str(tmp_path / "else/where/ads.txt")
    )
    before = time.time() - 1
    revision = state.load(directory)
    (stored,) = stored_revisions(state.revisions)
    assert stored.revision == revision
    assert before < stored.loaded < time.time() + 1
    (directory / "policy.yaml").unlink()
    for path in tmp_path.rglob("ads.txt"):
        path.write_text("another.example\n")
    for path in state.lists.iterdir():
        path.unlink()
    assert state.verdict(revision, "https://ads.example/") == ("ads", "deny")
    assert state.verdict(revision, "https://another.example/") == ("default", "deny")
    assert state.verdict(revision, "https://open.example/") == ("open", "allow")
    loaded = load_sources(
        read_revision(state.revisions, revision),
        NOW,
        compiled_lists(state.revisions, revision),
    )
    assert loaded.compiled.revision == revision


@pytest.mark.parametrize("absolute", [True, False])
def test_a_relative_policy_directory_is_kept_for_every_other_place(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    policy_with_list(
        tmp_path / "policy",
        str(tmp_path / "lists/ads.txt") if absolute else "../lists/ads.txt",
    )
    monkeypatch.chdir(tmp_path)
    revision = state.load(Path("policy"))
    monkeypatch.chdir("/")
    assert state.verdict(revision, "https://ads.example/") == ("ads", "deny")


def test_a_directory_whose_links_are_swapped_keeps_each_revision(
    tmp_path: Path, state: State
) -> None:
    """As Kubernetes mounts a ConfigMap: the files are links into a folder, which is one
    link that is swapped.
    """
    mount = tmp_path / "mount"
    mount.mkdir()
    loaded = []
    for number in range(3):
        policy_with_list(mount / f"..{number}", hosts=f"ads{number}.example\n")
        (mount / "..new").symlink_to(f"..{number}")
        (mount / "..new").rename(mount / "..data")
        for name in ("policy.yaml", "ads.txt", "token"):
            if not (mount / name).is_symlink():
                (mount / name).symlink_to(f"..data/{name}")
        loaded.append(state.load(mount))
    assert len(set(loaded)) == 3
    for number, revision in enumerate(loaded):
        assert state.verdict(revision, f"https://ads{number}.example/") == (
            "ads",
            "deny",
        )
        assert state.verdict(revision, f"https://ads{number + 1}.example/") == (
            "default",
            "deny",
        )


def test_no_secret_is_kept(tmp_path: Path, state: State) -> None:
    state.load(policy_with_list(tmp_path / "policy"))
    files = [path for path in state.revisions.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert not any(b"s3cret-value" in path.read_bytes() for path in files)


@pytest.mark.system
def test_a_list_and_a_document_that_did_not_change_are_on_disk_once(
    tmp_path: Path, state: State
) -> None:
    hosts = "".join(f"host{number}.example\n" for number in range(30_000))
    directory = policy_with_list(tmp_path / "policy", hosts=hosts)
    write_policy(
        directory,
        "clients: {a: {networks: [192.0.2.0/24]}}\n#" + "x" * 100_000,
        "large.yaml",
    )
    state.load(directory)
    before = state.bytes_on_disk()
    for number in range(10):
        write_policy(
            directory,
            f"rules: [{{name: r{number}, action: allow, hosts: [r.example]}}]",
            "more.yaml",
        )
        state.load(directory)
    assert len(stored_revisions(state.revisions)) == 11
    assert before > 100_000
    assert state.bytes_on_disk() - before < 20_000


def test_a_list_whose_compiled_form_is_nowhere_is_compiled_to_be_kept(
    tmp_path: Path, state: State
) -> None:
    directory = policy_with_list(tmp_path / "policy")
    revision = state.load(directory, list_cache=False)
    (directory / "ads.txt").unlink()
    assert state.verdict(revision, "https://ads.example/") == ("ads", "deny")


def test_a_list_that_has_changed_meanwhile_keeps_nothing(
    tmp_path: Path, state: State
) -> None:
    directory = policy_with_list(tmp_path / "policy")
    sources = read_sources(directory)
    revision = load_sources(sources, NOW).compiled.revision
    (directory / "ads.txt").write_text("other.example\n")
    with pytest.raises(OSError, match="the list has changed since it was loaded"):
        store_revision(sources, revision, state.revisions)
    assert list(state.revisions.iterdir()) == []


# --- bounds ---------------------------------------------------------------------------


def test_the_newest_fifty_are_kept_and_those_loaded_again_are_new(
    tmp_path: Path, state: State
) -> None:
    directory = tmp_path / "policy"
    text = "rules: [{{name: r{}, action: allow, hosts: [r.example]}}]"
    loaded = []
    for number in range(60):
        write_policy(directory, text.format(number))
        loaded.append(state.load(directory))
        if number == 40:
            write_policy(directory, text.format(0))
            assert state.load(directory) == loaded[0]
    assert [revision.revision for revision in stored_revisions(state.revisions)] == [
        *reversed(loaded[41:]),
        loaded[0],
        *loaded[40:10:-1],
    ]
    assert state.verdict(loaded[0], "https://r.example/") == ("r0", "allow")
    with pytest.raises(FileNotFoundError):
        read_revision(state.revisions, loaded[1])


def test_grants_push_no_edit_out(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "squidkeeper.policy.policy_store.revisions._REVISIONS_AT_MOST", 5
    )
    directory, loaded = tmp_path / "policy", []
    for number in range(5):
        write_policy(
            directory,
            f"rules: [{{name: r{number}, action: allow, hosts: [r.example]}}]",
        )
        loaded.append(state.load(directory))
    grant = (
        'version: 1\ngrants: [{{name: g{}, any_client: true, hosts: [g.example], expires: "2027-01-01T00:00:00Z",'
        ' reason: "Ticket 7"}}]'
    )
    granted = []
    for number in range(20):
        grants_file(directory).write_text(grant.format(number))
        granted.append(state.load(directory))
    stored = [revision.revision for revision in stored_revisions(state.revisions)]
    # the newest stands for the last edit, with its grants
    assert stored == [
        *granted[:-7:-1],
        *loaded[3::-1],
    ]
    write_policy(directory, "rules: [{name: new, action: allow, hosts: [r.example]}]")
    newest = state.load(directory)
    assert [kept.revision for kept in stored_revisions(state.revisions)] == [
        newest,
        *granted[:-7:-1],
        *loaded[3:0:-1],
    ]


def test_large_revisions_are_bounded_in_bytes_and_the_newest_is_always_kept(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions, "_BYTES_AT_MOST", 1_000_000)
    for number in range(8):
        write_policy(
            tmp_path / "policy",
            f"clients: {{c{number}: {{networks: [192.0.2.0/24]}}}}\n#" + "x" * 300_000,
        )
        newest = state.load(tmp_path / "policy")
    assert len(stored_revisions(state.revisions)) == 3
    write_policy(
        tmp_path / "policy",
        "clients: {c: {networks: [192.0.2.0/24]}}\n#" + "x" * 2_000_000,
    )
    newest = state.load(tmp_path / "policy")
    assert [revision.revision for revision in stored_revisions(state.revisions)] == [
        newest
    ]


def test_a_revision_that_is_pruned_takes_the_lists_with_it_that_no_other_has(
    tmp_path: Path, state: State
) -> None:
    for number in range(60):
        directory = policy_with_list(
            tmp_path / "policy", hosts=f"host{number}.example\n"
        )
        state.load(directory)
    assert len(list(state.revisions.rglob("*.hosts"))) == 50


def test_what_a_crash_left_half_written_goes_in_time(
    tmp_path: Path, state: State
) -> None:
    state.load(
        write_policy(
            tmp_path / "policy", "rules: [{name: a, action: allow, hosts: [a.example]}]"
        )
    )
    old, new = (state.revisions / f".0123456789a{digit}.1.part" for digit in "ab")
    for path in (old, new):
        path.mkdir()
    os.utime(old, (0, 0))
    state.load(
        write_policy(
            tmp_path / "policy", "rules: [{name: b, action: allow, hosts: [a.example]}]"
        )
    )
    assert (old.exists(), new.exists()) == (False, True)


# --- several at once, and disks that fail ---------------------------------------------

KEEPER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.policy_store.loading import load_sources
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import grants_file, read_sources
directory, folder = map(Path, sys.argv[1:3])
sources = read_sources(directory)
revision = load_sources(sources, datetime.now(UTC), folder / "lists").compiled.revision
print(revision, flush=True)
sys.stdin.readline()
for _ in range(30):
    store_revision(sources, revision, folder / "revisions", folder / "lists")
"""


@pytest.mark.system
def test_several_processes_keep_the_same_and_different_revisions_at_once(
    tmp_path: Path, state: State
) -> None:
    keepers = []
    for number in range(6):
        directory = policy_with_list(
            tmp_path / f"policy{number % 2}", hosts=f"ads{number % 2}.example\n"
        )
        command = [
            sys.executable,
            "-c",
            KEEPER,
            str(directory),
            str(state.revisions.parent),
        ]
        keepers.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    named = [keeper.stdout.readline().strip() for keeper in keepers if keeper.stdout]
    for keeper in keepers:
        assert keeper.communicate("go\n") == ("", "")
    assert {revision.revision for revision in stored_revisions(state.revisions)} == set(
        named
    )
    assert len(set(named)) == 2
    assert len(list(state.revisions.iterdir())) == 2
    for number, revision in enumerate(named[:2]):
        assert state.verdict(revision, f"https://ads{number}.example/") == (
            "ads",
            "deny",
        )


@pytest.mark.parametrize("lost", ["policy/policy.yaml", "sources.json", "lists"])
def test_a_revision_that_is_not_whole_is_not_read_and_is_made_whole_when_it_is_loaded(
    tmp_path: Path, state: State, lost: str
) -> None:
    directory = policy_with_list(tmp_path / "policy")
    revision = state.load(directory)
    for path in [
        state.revisions / revision / lost,
        *(state.revisions / revision / lost).glob("*"),
    ]:
        if path.is_file():
            path.write_bytes(b"")  # as a machine that lost its power can leave it
    (directory / "ads.txt").rename(directory / "away")
    with pytest.raises((OSError, PolicyError)):
        load_stored_revision(state.revisions, revision)
    (directory / "away").rename(directory / "ads.txt")
    assert state.load(directory) == revision
    assert state.verdict(revision, "https://ads.example/") == ("ads", "deny")


def test_a_revision_under_another_name_is_not_taken_for_it(
    tmp_path: Path, state: State
) -> None:
    revision = state.load(policy_with_list(tmp_path / "policy"))
    (state.revisions / revision).rename(state.revisions / "0123456789ab")
    with pytest.raises(OSError, match=f"what is stored is revision {revision}"):
        load_stored_revision(state.revisions, "0123456789ab")


@pytest.mark.parametrize(
    "name",
    ["", "-", "..", "./REVISION", "../revisions/REVISION", "REVISION/../REVISION"],
)
def test_what_a_record_names_leads_nowhere_else(
    tmp_path: Path, state: State, name: str
) -> None:
    revision = state.load(policy_with_list(tmp_path / "policy"))
    with pytest.raises(FileNotFoundError, match="no revision has such a name"):
        read_revision(state.revisions, name.replace("REVISION", revision))
    assert stored_revisions(tmp_path / "none") == []


def test_a_document_that_was_changed_where_it_is_kept_is_not_read(
    tmp_path: Path, state: State
) -> None:
    revision = state.load(policy_with_list(tmp_path / "policy"))
    (state.revisions / revision / "policy/policy.yaml").write_text(
        "version: 1\ndefaults: {action: allow}\n"
    )
    with pytest.raises(OSError, match="this revision is not stored completely"):
        read_revision(state.revisions, revision)


@contextmanager
def full_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.system
def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path: Path) -> None:
    write_policy(
        tmp_path / "policy",
        "clients: {c: {networks: [192.0.2.0/24]}}\n#" + "x" * 600_000,
    )
    with full_disk(tmp_path / "disk") as disk:
        state = State(disk)
        with pytest.raises(OSError, match="No space left"):
            state.load(tmp_path / "policy")
        assert list(state.revisions.iterdir()) == []
        write_policy(tmp_path / "policy", "clients: {c: {networks: [192.0.2.0/24]}}")
        revision = state.load(tmp_path / "policy")
        assert [other.revision for other in stored_revisions(state.revisions)] == [
            revision
        ]


ENDLESS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "link": lambda file: file.symlink_to("/dev/zero"),
    "deep": lambda file: file.write_text("[" * 200_000),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_manifest_that_squids_account_has_replaced_is_none(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "in-force").symlink_to("0123456789ab")
    (tmp_path / "0123456789ab").mkdir()
    ENDLESS[kind](tmp_path / "0123456789ab/sources.json")
    assert revision_in_force(tmp_path) is None


@pytest.mark.parametrize("name", ["x\x1b[2J", "../0123456789ab", ""])
def test_what_is_marked_as_in_force_is_the_name_of_a_revision(
    tmp_path: Path, name: str
) -> None:
    place = tmp_path / "folder" / (name or "x")
    place.mkdir(parents=True)
    (place / "sources.json").write_text(
        json.dumps({"directory": "/etc/squidkeeper/policy"})
    )
    (tmp_path / "folder/in-force").symlink_to(name or ".")
    assert revision_in_force(tmp_path / "folder") is None


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("name", ["sources.json", "policy/policy.yaml", "lists"])
def test_a_file_of_a_revision_that_squids_account_has_replaced_holds_up_no_reader(
    tmp_path: Path, state: State, kind: str, name: str
) -> None:
    directory = policy_with_list(tmp_path / "policy")
    revision = state.load(directory)
    place = state.revisions / revision / name
    [file] = place.iterdir() if place.is_dir() else [place]
    file.unlink()
    ENDLESS[kind](file)
    (directory / "ads.txt").unlink()
    with pytest.raises((OSError, PolicyError)):
        load_stored_revision(state.revisions, revision)


def test_a_list_that_leads_to_a_file_without_an_end_is_not_compiled(
    tmp_path: Path, state: State
) -> None:
    directory = policy_with_list(tmp_path / "policy")
    revision = state.load(directory)
    (directory / "ads.txt").unlink()
    (directory / "ads.txt").symlink_to("/dev/zero")
    shutil.rmtree(state.revisions / revision / "lists")
    with pytest.raises(PolicyError, match="not a regular file"):
        load_stored_revision(state.revisions, revision)


def test_a_reader_writes_nothing_among_stored_revisions(
    tmp_path: Path, state: State
) -> None:
    """Where another account could have put a link, to have root write elsewhere."""
    revision = state.load(policy_with_list(tmp_path / "policy"))
    lists = state.revisions / revision / "lists"
    for path in lists.iterdir():
        path.unlink()
    # compiled again, in memory
    assert state.verdict(revision, "https://ads.example/") == (
        "ads",
        "deny",
    )
    assert list(lists.iterdir()) == []
