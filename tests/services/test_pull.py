"""`squidkeeper pull`: what a repository, a bundle and their servers can do to a
gateway, and what they cannot.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from errno import ENOSPC
from itertools import takewhile
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from click.testing import CliRunner

from squidkeeper.base.errors import PullRefused
from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.reload_gate import GateVerdict, write_verdict
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.places import mark_in_force
from squidkeeper.services.pulling import (
    bundle,
    git_repository,
    judgement,
    programs,
    puller,
    reading,
    versions,
)
from squidkeeper.services.pulling.judgement import Used
from squidkeeper.services.pulling.puller import Puller, WhatCounts, what_counts
from squidkeeper.services.pulling.reading import (
    VersionToRead,
    read_version,
    read_version_apart,
)
from squidkeeper.services.pulling.settings import (
    PullStatus,
    read_pull_settings,
    read_pull_status,
)
from squidkeeper.services.pulling.signatures import split_commit
from squidkeeper.services.pulling.versions import Version, Versions

from ..conftest import NOW
from ..pull_servers import (
    GIT_ENVIRONMENT,
    Repository,
    WebServer,
    allowed_signer,
    make_key,
    serving,
    ssh_server,
)
from ..waiting import files_at_rest, wait_for

pytestmark = pytest.mark.system

POLICY = "version: 1\nrules: [{name: %s, action: allow, hosts: [%s.example]}]\n"
LOCAL = "version: 1\nsecrets: {token: {file: token, hosts: [api.example]}}\n"
SETTINGS = """source: {{git: {url}/policies.git, branch: main, path: policy, ca: {ca}{more}}}
allowed_signers: {signers}
{settings}
"""


@dataclass
class Gateway:
    """A gateway's files, and the repository and server that it pulls from."""

    etc: Path
    state: Path
    repository: Repository
    server: WebServer
    key: Path

    @property
    def policy(self) -> Path:
        return self.etc / "policy"

    @property
    def helpers(self) -> Path:
        """Their state."""
        return self.state.with_name("helpers")

    @property
    def settings(self) -> Path:
        return self.etc / "pull.yaml"

    def configure(self, more: str = "", settings: str = "") -> None:
        text = SETTINGS.format(
            url=self.server.url,
            ca=self.server.ca,
            more=more,
            signers=self.etc / "allowed_signers",
            settings=settings,
        )
        self.settings.write_text(text)

    def pull(self, accepted: str = "") -> PullStatus:
        return Puller(self.settings, self.state, self.policy).pull(accepted)

    def commit(self, rule: str, *, signed: bool = True) -> str:
        self.repository.write("policy/policy.yaml", POLICY % (rule, rule))
        return self.repository.commit(signed=signed)

    def rules(self) -> list[str]:
        return [rule.name for rule in load(self.policy, NOW).compiled.source.rules]

    def raw_commit(self, entries: list[tuple[str, str, str]]) -> str:
        """Commit a folder `policy` with entries that no work tree could hold: mode,
        object, name.
        """
        git = self.repository.git
        lines = b"".join(
            f"{mode} {'commit' if mode == '160000' else 'tree' if mode == '040000' else 'blob'} {blob}\t{name}".encode()
            + b"\0"
            for mode, blob, name in entries
        )
        tree = git("mktree", "-z", "--missing", given=lines)
        root = git("mktree", given=f"040000 tree {tree}\tpolicy\n".encode())
        commit = git("commit-tree", "-S", "-m", "x", "-p", "HEAD", root)
        git("reset", "-q", "--soft", commit)
        self.repository.push()
        return commit

    def blob(self, text: str) -> str:
        return self.repository.git("hash-object", "-w", "--stdin", given=text.encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with serving(tmp_path_factory.mktemp("server") / "root") as made:
        yield made


@pytest.fixture(autouse=True)
def readings(monkeypatch: pytest.MonkeyPatch) -> list[VersionToRead]:
    """What was read: here, where a test can change a bound, and not in a process of its
    own.
    """
    read: list[VersionToRead] = []

    def read_here(version: VersionToRead) -> str:
        read.append(version)
        return read_version(version)

    monkeypatch.setattr(puller, "read_version_apart", read_here)
    return read


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, readings: list[VersionToRead]) -> None:
    """Versions are read in a process of their own, as on a gateway."""
    monkeypatch.setattr(puller, "read_version_apart", read_version_apart)


@pytest.fixture
def gateway(tmp_path: Path, server: WebServer) -> Iterator[Gateway]:
    key = make_key(tmp_path / "key")
    served = server.root / "policies.git"
    subprocess.run(["rm", "-rf", str(served)], check=True)
    repository = Repository.make(tmp_path / "work", key, served)
    made = Gateway(tmp_path / "etc", tmp_path / "state", repository, server, key)
    made.etc.mkdir()
    made.state.mkdir()
    (made.etc / "local.yaml").write_text(LOCAL)
    (made.etc / "allowed_signers").write_text(allowed_signer(key))
    made.policy.symlink_to(made.state / "current")
    made.configure()
    yield made
    server.down, server.redirect, server.cut_after, server.endless = (
        False,
        "",
        None,
        b"",
    )
    server.dumb, server.pack_uri = False, ""


# --- what is taken --------------------------------------------------------------------


def test_a_signed_tip_is_put_in_place_and_so_is_the_next(gateway: Gateway) -> None:
    first = gateway.commit("one")
    status = gateway.pull()
    assert (status.version, status.signer, status.failure, status.refused) == (
        first,
        "alice@example.com",
        "",
        "",
    )
    assert gateway.rules() == ["one"]
    second = gateway.commit("two")
    assert gateway.pull().version == second
    assert gateway.rules() == ["two"]
    again = gateway.pull()
    assert again.version == second
    assert read_pull_status(gateway.state) == again


@pytest.mark.long
def test_only_policy_files_and_the_lists_that_they_name_reach_the_gateway(
    gateway: Gateway,
) -> None:
    gateway.repository.write(
        "policy/policy.yaml", "version: 1\nlists: {l: {file: lists/l.txt}}\n"
    )
    for name in (
        "lists/l.txt",
        "lists/other.txt",
        "README.md",
        "run.sh",
        "nested/more.yaml",
    ):
        gateway.repository.write(f"policy/{name}", "a.example\n")
    gateway.repository.write(
        ".gitattributes", "* filter=lfs diff=x text eol=crlf ident\n"
    )
    gateway.repository.write(
        "policy/.gitattributes".replace("/.", "/x."), "* filter=lfs\n"
    )
    gateway.repository.commit()
    assert gateway.pull().refused == ""
    found = sorted(
        str(path.relative_to(gateway.policy))
        for path in gateway.policy.rglob("*")
        if path.is_file()
    )
    assert found == [".digest", ".signed", "lists/l.txt", "policy.yaml"]
    assert (gateway.policy / "lists/l.txt").read_text() == "a.example\n"


def rewritten(file: Path, text: str) -> None:
    """Edit a file as an editor of root's does."""
    file.unlink(missing_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    "edit",
    [
        lambda policy: rewritten(policy / "policy.yaml", POLICY % ("own", "own")),
        pytest.param(
            lambda policy: rewritten(policy / "own.yaml", POLICY % ("own", "own")),
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda policy: rewritten(policy / ".signed", "x"), marks=pytest.mark.long
        ),
        pytest.param(
            lambda policy: (policy / "policy.yaml").rename(policy / "policy.bak"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_edit_by_hand_is_put_back_or_reported_until_it_is(
    pulled: Gateway, edit: Callable[[Path], object]
) -> None:
    tip = pulled.repository.git("rev-parse", "HEAD")
    for _ in range(2):  # also what was put back before
        edit(pulled.policy)
        pulled.server.down = True
        assert (pulled.pull().altered, pulled.pull().altered) == (True, True)
        assert command(pulled, "--status")[0] == 1
        assert (
            f"{tip} is in place, with other files than the source has"
            in command(pulled, "--status")[1]
        )
        pulled.server.down = False
        status = pulled.pull()
        assert (status.version, status.altered, status.refused, status.failure) == (
            tip,
            False,
            "",
            "",
        )
        assert pulled.rules() == ["good"]
    edit(pulled.policy)
    pulled.commit("bad", signed=False)
    assert (pulled.pull().altered, pulled.pull().refused != "") == (True, True)
    next_one = pulled.commit("next")
    status = pulled.pull()
    assert (status.version, status.altered, pulled.rules()) == (
        next_one,
        False,
        ["next"],
    )


def test_another_folder_of_the_same_commit_is_put_in_place(pulled: Gateway) -> None:
    pulled.repository.write("other/policy.yaml", POLICY % ("other", "other"))
    tip = pulled.repository.commit()
    pulled.pull()
    settings = pulled.settings.read_text()
    pulled.settings.write_text(settings.replace("path: policy", "path: missing"))
    status = pulled.pull()
    assert (status.refused, status.altered, pulled.rules()) == (tip, True, ["good"])
    pulled.settings.write_text(settings.replace("path: policy", "path: other"))
    assert (pulled.pull().version, pulled.rules()) == (tip, ["other"])


@pytest.mark.long
def test_grants_of_the_gateway_stay_beside_the_link(gateway: Gateway) -> None:
    grant = "{name: g, any_client: true, hosts: [g.example], expires: 2036-01-01T00:00:00Z, reason: x}"
    (gateway.etc / "grants.yaml").write_text(f"version: 1\ngrants: [{grant}]\n")
    gateway.commit("one")
    gateway.pull()
    gateway.commit("two")
    gateway.pull()
    assert [
        grant.name for grant in load(gateway.policy, NOW).compiled.source.grants
    ] == ["g"]


@pytest.mark.long
def test_a_tag_is_followed_too(gateway: Gateway) -> None:
    tip = gateway.commit("one")
    gateway.repository.git("tag", "-a", "-m", "x", "v1")
    gateway.repository.git("push", "-q", str(gateway.repository.served), "v1")
    gateway.settings.write_text(
        gateway.settings.read_text().replace("branch: main", "tag: v1")
    )
    assert gateway.pull().version == tip


def test_what_was_put_in_place_long_ago_is_removed(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    for number in range(13):
        version = Version(f"v{number}", {"lists/l.txt": b"a", "p.yaml": b"b"})
        versions.write(version)
        versions.put(version.name)
        versions.discard()
    assert len([*(tmp_path / "versions").iterdir()]) == 10
    assert versions.in_place == "v12"
    assert (tmp_path / "current/lists/l.txt").read_bytes() == b"a"
    assert stat.S_IMODE((tmp_path / "current/p.yaml").stat().st_mode) == 0o440


def test_a_crash_before_the_link_leaves_what_is_in_place(tmp_path: Path) -> None:
    versions, version = Versions(tmp_path), Version("v1", {"p.yaml": b"1"})
    (tmp_path / "versions/v1").mkdir(parents=True)
    (tmp_path / "versions/v1/part.yaml").touch()
    (tmp_path / "versions/.new").mkdir()
    versions.write(version)
    assert versions.in_place == ""
    versions.put(version.name)
    versions.discard()
    assert sorted(os.listdir(tmp_path / "current")) == [".digest", "p.yaml"]
    assert os.listdir(tmp_path / "versions") == ["v1"]


# Of each kind of attack, one in the default run.


def test_a_strange_name_a_link_and_a_source_of_a_secret_are_refused(
    pulled: Gateway,
) -> None:
    pulled.raw_commit([("100644", pulled.blob("version: 1\n"), "new\nline.yaml")])
    assert "has a name that is not plain" in refused(pulled)
    pulled.raw_commit([("120000", pulled.blob("/etc/shadow"), "policy.yaml")])
    assert (
        refused(pulled)
        == "'policy.yaml' is a symbolic link, expected regular files alone"
    )
    pulled.raw_commit(
        [
            (
                "100644",
                pulled.blob("version: 1\nsecrets: {x: {command: {run: [id]}}}\n"),
                "policy.yaml",
            )
        ]
    )
    assert (
        "it does not load: policy.yaml:2:1: 'secrets' is for this gateway's operator alone"
        in refused(pulled)
    )


# --- what is refused ------------------------------------------------------------------


def refused(gateway: Gateway, tip: str = "") -> str:
    """Pull, and give why the tip is refused; what was in place stays."""
    before = gateway.rules()
    status = gateway.pull()
    assert status.refused == (tip or gateway.repository.git("rev-parse", "HEAD"))
    assert gateway.rules() == before
    assert os.listdir(gateway.state / "versions") == [status.version]
    return status.reason


@pytest.fixture
def pulled(gateway: Gateway) -> Gateway:
    """A gateway with a version in place."""
    gateway.commit("good")
    assert gateway.pull().version
    return gateway


def test_a_tip_that_no_allowed_signer_has_signed_is_refused_also_where_it_is_accepted(
    pulled: Gateway, tmp_path: Path
) -> None:
    tip = pulled.commit("bad", signed=False)
    assert (
        refused(pulled)
        == "it is not signed, expected the SSH signature of an allowed signer"
    )
    assert pulled.pull(tip).refused == tip
    pulled.repository.key = make_key(tmp_path / "mallory")
    pulled.commit("worse")
    assert "a key that is none of an allowed signer" in refused(pulled)
    (pulled.etc / "allowed_signers").unlink()
    assert "nobody's signature counts" in refused(pulled)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    ['valid-before="20260101"', 'valid-after="20990101"', 'namespaces="file"'],
)
def test_a_key_whose_time_is_over_signs_nothing_new_whatever_date_it_writes(
    pulled: Gateway, options: str
) -> None:
    (pulled.etc / "allowed_signers").write_text(
        allowed_signer(pulled.key, options=options)
    )
    pulled.repository.write("policy/policy.yaml", POLICY % ("bad", "bad"))
    date = "2099-06-01T00:00:00Z" if "after" in options else "2025-06-01T00:00:00Z"
    pulled.repository.commit(
        environment={"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date}
    )
    assert "sign" in refused(pulled)


@pytest.mark.long
def test_a_signature_of_another_commit_is_refused(pulled: Gateway) -> None:
    git = pulled.repository.git
    signature = split_commit(
        subprocess.check_output(
            ["git", "cat-file", "commit", "HEAD"], cwd=pulled.repository.folder
        )
    )
    pulled.repository.write("policy/policy.yaml", POLICY % ("bad", "bad"))
    pulled.repository.commit(signed=False, push=False)
    head, _, message = git("cat-file", "commit", "HEAD").partition("\n\n")
    stolen = "gpgsig " + signature[1].decode().strip().replace("\n", "\n ")
    forged = git(
        "hash-object",
        "-w",
        "-t",
        "commit",
        "--stdin",
        given=f"{head}\n{stolen}\n\n{message}\n".encode(),
    )
    git("reset", "-q", "--soft", forged)
    pulled.repository.push()
    assert "does not hold" in refused(pulled)


def test_a_rewind_is_refused_and_so_is_another_history(pulled: Gateway) -> None:
    first = pulled.repository.git("rev-parse", "HEAD")
    pulled.commit("second")
    pulled.pull()
    second = pulled.repository.git("rev-parse", "HEAD")
    subprocess.run(["rm", "-rf", str(pulled.state / "versions" / first)], check=True)
    pulled.repository.git("reset", "-q", "--hard", first)
    pulled.repository.push()
    assert f"it does not descend from {second}" in refused(pulled)
    subprocess.run(["rm", "-rf", str(pulled.state / "repository")], check=True)
    assert f"it does not descend from {second}" in refused(pulled)
    pulled.commit("forced")
    assert f"it does not descend from {second}" in refused(pulled)
    accepted = pulled.repository.git("rev-parse", "HEAD")
    assert pulled.pull(accepted).version == accepted
    assert pulled.rules() == ["forced"]


def twin_of(
    repository: Repository, commit: str, change: Callable[[bytes], bytes]
) -> str:
    """Make another commit of the same signed content, as anyone can."""
    raw = subprocess.check_output(
        ["git", "cat-file", "commit", commit], cwd=repository.folder
    )
    return repository.git(
        "hash-object", "-w", "-t", "commit", "--stdin", given=change(raw)
    )


def wrapped_otherwise(commit: bytes) -> bytes:
    """Write each line of the armor as two."""
    head, signature, rest = re.split(
        rb"(?<=SIGNATURE-----\n)((?: .*\n)*?)(?= -----END)", commit, maxsplit=1
    )
    return head + re.sub(rb"(?m)^ (.{20})(.+)$", rb" \1\n \2", signature) + rest


def moved(commit: bytes) -> bytes:
    """Put the signature's header before another one."""
    return re.sub(rb"(encoding .*\n)(gpgsig .*\n(?: .*\n)*)", rb"\2\1", commit)


@pytest.mark.parametrize(
    ("change", "packs"),
    [(wrapped_otherwise, 50), pytest.param(moved, -1, marks=pytest.mark.long)],
)
def test_a_twin_of_a_signed_commit_does_not_keep_what_comes_after_it_out(
    pulled: Gateway,
    change: Callable[[bytes], bytes],
    packs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the copy of the repository was removed meanwhile, and the twin with
    it.
    """
    monkeypatch.setattr(git_repository, "_PACKS_AT_MOST", packs)
    pulled.repository.git("config", "i18n.commitEncoding", "ISO-8859-1")
    good, tip = pulled.repository.git("rev-parse", "HEAD"), pulled.commit("one")
    twin = twin_of(pulled.repository, tip, change)
    pulled.repository.git("reset", "-q", "--soft", twin)
    pulled.repository.push()
    assert (pulled.pull().version, twin == tip) == (twin, False)
    shutil.rmtree(pulled.state / "versions" / good)
    pulled.repository.git("reset", "-q", "--soft", tip)
    pulled.repository.git("commit", "-q", "--amend", "-S", "-m", "another")
    pulled.repository.push()
    assert f"it does not descend from {twin}" in refused(pulled)
    pulled.repository.git("reset", "-q", "--hard", good)
    pulled.commit("forced")
    assert f"it does not descend from {twin}" in refused(pulled)
    pulled.repository.git("reset", "-q", "--hard", tip)
    pulled.commit("unsigned", signed=False)
    two = pulled.commit("two")
    assert pulled.pull().version == two
    shutil.rmtree(pulled.state / "versions" / twin)
    pulled.repository.git("reset", "-q", "--hard", tip)
    pulled.repository.push()
    assert f"it does not descend from {two}" in refused(pulled)


@pytest.mark.long
def test_a_new_gateway_takes_nothing_from_before_a_commit(gateway: Gateway) -> None:
    old = gateway.commit("old")
    since = gateway.commit("new")
    gateway.repository.git("reset", "-q", "--hard", old)
    gateway.repository.push()
    gateway.configure(f", since: {since}")
    status = gateway.pull()
    assert (status.refused, status.version) == (old, "")
    assert "which pull.yaml names by 'since'" in status.reason


NAMES = [
    "new\nline.yaml",
    "colon:.yaml",
    "-dash.yaml",
    ".hidden.yaml",
    "back\\slash.yaml",
    "\x1b[31m.yaml",
    "space name.yaml",
    "é.yaml",
    "long" * 30 + ".yaml",
]


@pytest.mark.long
def test_a_name_that_is_not_plain_and_a_folder_that_leads_elsewhere_are_refused(
    pulled: Gateway,
) -> None:
    bad = pulled.blob(POLICY % ("bad", "bad"))
    for name in NAMES:
        pulled.raw_commit([("100644", bad, name)])
        reason = refused(pulled)
        assert "has a name that is not plain" in reason, name
        assert reason.isprintable(), name
    inner = pulled.repository.git(
        "mktree", given=f"100644 blob {bad}\tup.yaml\n".encode()
    )
    for name in ("..", ".git", "."):
        pulled.raw_commit([("040000", inner, name)])
        status = pulled.pull()
        assert status.refused or status.failure, name
        assert pulled.rules() == ["good"], name


@pytest.mark.long
def test_no_link_and_no_submodule_is_taken(pulled: Gateway) -> None:
    link, submodule = (
        pulled.blob("/etc/shadow"),
        pulled.repository.git("rev-parse", "HEAD"),
    )
    for name in ("policy.yaml", "README.md"):
        for mode, target, what in (
            ("120000", link, "a symbolic link"),
            ("160000", submodule, "a submodule"),
        ):
            pulled.raw_commit([(mode, target, name)])
            assert (
                refused(pulled) == f"{name!r} is {what}, expected regular files alone"
            )


@pytest.mark.long
def test_too_many_files_and_too_many_bytes_are_refused(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = pulled.blob("# nothing\n")
    pulled.raw_commit(
        [
            ("100644", blob, f"{number}.txt")
            for number in range(versions.FILES_AT_MOST + 1)
        ]
    )
    assert refused(pulled) == "there are 1,001 files, expected 1,000 at most"
    monkeypatch.setattr(versions, "BYTES_AT_MOST", 1000)
    pulled.raw_commit([("100644", pulled.blob("#" * 1001), "policy.yaml")])
    assert refused(pulled) == "the files have 1,001 bytes, expected 1,000 at most"


def test_policy_files_that_are_too_large_are_refused_before_they_are_parsed(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "POLICY_BYTES_AT_MOST", 100)
    pulled.raw_commit([("100644", pulled.blob("[" * 101), "policy.yaml")])
    assert refused(pulled) == "the policy files have 101 bytes, expected 100 at most"


@pytest.mark.long
def test_what_is_larger_than_a_child_may_write_is_not_fetched(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled.repository.write("policy/huge.yaml", os.urandom(300_000))
    pulled.repository.commit()
    monkeypatch.setattr(programs, "_FILE_BYTES", 200_000)
    status = pulled.pull()
    assert "git fetch failed" in status.failure
    assert pulled.rules() == ["good"]
    assert [*pulled.state.glob("repository/objects/pack/tmp_*")] == []


@pytest.mark.long
def test_a_repository_that_grows_too_large_is_removed(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_repository, "_REPOSITORY_BYTES", 1000)
    pulled.commit("more")
    assert "expected 1,000 at most" in pulled.pull().failure
    assert not (pulled.state / "repository").exists()
    monkeypatch.undo()
    assert pulled.pull().failure == ""
    assert pulled.rules() == ["more"]


def test_what_a_fetch_that_fails_has_brought_is_removed(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server can send packs without the tip's objects: git keeps the pack, and then
    fails.
    """
    stray = pulled.repository.git(
        "hash-object", "-w", "--stdin", given=os.urandom(60_000)
    )
    pack_objects = [
        "git",
        "-C",
        str(pulled.repository.folder),
        "pack-objects",
        "-q",
        "--stdout",
    ]
    with (tmp_path / "pack").open("wb") as pack:
        subprocess.run(
            pack_objects, input=f"{stray}\n".encode(), stdout=pack, check=True
        )
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >/dev/null; cat {tmp_path}/pack\n")
    hook.chmod(0o755)
    settings = {
        "COUNT": "1",
        "KEY_0": "uploadpack.packObjectsHook",
        "VALUE_0": str(hook),
    }
    for name, value in settings.items():
        monkeypatch.setitem(GIT_ENVIRONMENT, f"GIT_CONFIG_{name}", value)
    kept = objects(pulled)
    pulled.commit("next")
    assert "did not send all necessary objects" in pulled.pull().failure
    assert objects(pulled) == kept
    assert pulled.rules() == ["good"]


def test_what_nobody_has_signed_is_removed_and_what_torn_fetches_have_left(
    pulled: Gateway,
) -> None:
    kept = objects(pulled)
    pulled.repository.write("policy/large.txt", os.urandom(60_000))
    pulled.commit("bad", signed=False)
    for _ in range(2):
        assert "not signed" in refused(pulled)
        assert objects(pulled) == kept
    names = ("objects/pack/tmp_pack_torn", "shallow.lock", "refs/pulled/tip.lock")
    torn = [pulled.state / "repository" / name for name in names]
    for file in torn:
        file.touch()
    pulled.commit("next")
    assert pulled.pull().failure == ""
    assert pulled.rules() == ["next"]
    assert not any(file.exists() for file in torn)


def test_a_small_file_counts_as_what_it_takes_on_the_disk(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = pulled.state / "repository/small"
    small.mkdir()
    for number in range(300):
        (small / str(number)).write_text("1")
    monkeypatch.setattr(git_repository, "_REPOSITORY_BYTES", 1_000_000)
    assert pulled.pull().failure == ""
    assert not small.exists(), "made again"


@pytest.mark.long
def test_packs_do_not_pile_up(pulled: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_repository, "_PACKS_AT_MOST", 2)
    for number in range(5):
        pulled.commit(f"r{number}")
        assert pulled.pull().failure == ""
    assert len([*pulled.state.glob("repository/objects/pack/*.pack")]) <= 3


NOT_IN_FORCE = [
    ("secrets: {x: {command: {run: [id]}}}", "[local-only]"),
    ("secrets: {x: {file: /etc/shadow, hosts: [evil.example]}}", "[local-only]"),
    ("credentials: [{name: c, hosts: [evil.example], bearer: token}]", "[secret-host]"),
    ("lists: {l: {file: ../local.yaml}}", "[local-only]"),
    ("lists: {l: {file: /etc/passwd}}", "[local-only]"),
    ("upstreams: [{name: u, url: 'http://127.0.0.1:22'}]", "[local-only]"),
    ("defaults: {reload_gate: {since: 1d, denials: 1000000}}", "[local-only]"),
    ("rules: [", "[not-yaml]"),
    ("tests: [{request: 'GET https://a.example/', expect: allow}]", "[test-failed]"),
]


@pytest.mark.long
def test_a_policy_that_would_not_be_in_force_is_refused(pulled: Gateway) -> None:
    for text, why in NOT_IN_FORCE:
        pulled.repository.write("policy/policy.yaml", f"version: 1\n{text}\n")
        pulled.repository.commit()
        reason = refused(pulled)
        assert reason.startswith("it does not load: policy.yaml:"), text
        assert why in reason, text


@pytest.mark.long
def test_without_a_local_setup_nothing_is_taken(pulled: Gateway) -> None:
    (pulled.etc / "local.yaml").unlink()
    pulled.commit("bad")
    assert f"{pulled.etc}/local.yaml is missing" in refused(pulled)


def test_the_ceiling_is_not_passed(pulled: Gateway) -> None:
    ceiling = pulled.etc / "ceiling"
    ceiling.mkdir()
    (ceiling / "policy.yaml").write_text(
        "version: 1\nrules: [{name: all, action: allow, hosts: [.example]}]\n"
    )
    pulled.configure(settings=f"ceiling: {ceiling}")
    credential = (
        "version: 1\ncredentials: [{name: api, hosts: [api.example], bearer: token}]\n"
    )
    pulled.repository.write("policy/credential.yaml", credential)
    pulled.commit("api")
    assert "it passes the ceiling" in refused(pulled)
    # its secret is in the gateway's local.yaml
    (ceiling / "credential.yaml").write_text(credential)
    assert pulled.pull().refused == ""
    pulled.repository.write(
        "policy/policy.yaml",
        "version: 1\nrules: [{name: x, action: allow, hosts: [a.test]}]\n",
    )
    pulled.repository.commit()
    for version in (pulled.state / "versions").iterdir():
        if version.name != pulled.pull().version:
            subprocess.run(["rm", "-rf", str(version)], check=True)
    reason = refused(pulled)
    assert reason.startswith(
        f"it passes the ceiling {ceiling}: opened by x, such as GET https://a.test/"
    )
    (ceiling / "policy.yaml").write_text(
        "version: 1\nrules: [{name: closed, action: deny, hosts: [a.test]}]\n"
    )
    pulled.repository.write("policy/policy.yaml", "version: 1\n")
    pulled.repository.commit()
    assert (
        ": grants and approvals could open what closed of the ceiling denies, such as GET"
        in refused(pulled)
    )
    (ceiling / "policy.yaml").write_text("nonsense")
    assert "the ceiling does not load" in refused(pulled)


# --- what is large, and what was refused ----------------------------------------------


def test_a_refused_tip_is_read_again_only_when_what_counts_has_changed(
    pulled: Gateway, readings: list[VersionToRead]
) -> None:
    puller, tip = (
        Puller(pulled.settings, pulled.state, pulled.policy),
        pulled.commit("bad"),
    )
    ceiling = pulled.etc / "ceiling"
    ceiling.mkdir()
    (ceiling / "policy.yaml").write_text(POLICY % ("none", "none"))
    pulled.configure(settings=f"ceiling: {ceiling}")
    readings.clear()
    files_at_rest()
    for _ in range(3):
        status = puller.pull()
        assert (status.refused, status.reason.partition(":")[0]) == (
            tip,
            f"it passes the ceiling {ceiling}",
        )
    assert len(readings) == 1
    assert status.succeeded == pytest.approx(status.ended, abs=60)
    (pulled.etc / "allowed_signers").write_text("")
    assert "a key that is none of an allowed signer" in puller.pull().reason
    (pulled.etc / "allowed_signers").write_text(allowed_signer(pulled.key))
    (ceiling / "policy.yaml").write_text(POLICY % ("bad", "bad"))
    assert puller.pull().version == tip
    assert len(readings) == 2


def test_what_counts_for_a_refusal_is_every_file_that_it_is_judged_by(
    gateway: Gateway,
) -> None:
    ceiling = gateway.etc / "ceiling"
    (ceiling / "lists").mkdir(parents=True)
    gateway.configure(settings=f"ceiling: {ceiling}")

    def counts(tip: str = "1", before: str = "0") -> WhatCounts:
        files_at_rest()
        return what_counts(
            tip,
            before,
            read_pull_settings(gateway.settings),
            gateway.settings,
            gateway.policy,
        )

    last = counts()
    assert counts() == last
    assert counts("2") != last != counts(before="2")
    for name in (
        "local.yaml",
        "grants.yaml",
        "pull.yaml",
        "allowed_signers",
        "ceiling/policy.yaml",
        "ceiling/lists/l",
    ):
        with (gateway.etc / name).open("a") as file:
            file.write("# changed\n")
        assert last != (last := counts()), name


def test_a_failure_is_not_remembered(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller, tip = (
        Puller(pulled.settings, pulled.state, pulled.policy),
        pulled.commit("next"),
    )
    with monkeypatch.context() as full:
        full.setattr(
            Versions,
            "write",
            Mock(side_effect=OSError(ENOSPC, "No space left on device")),
        )
        assert "No space left on device" in puller.pull().failure
    assert puller.pull().version == tip


def test_a_policy_that_each_helper_would_load_for_long_is_refused(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled.commit("slow")
    with monkeypatch.context() as small:
        small.setattr(judgement, "LOAD_SECONDS", -1)
        assert (
            "s of processor time to load it, expected -1 s at most: write fewer rules"
            in refused(pulled)
        )
    monkeypatch.setattr(judgement, "LOAD_BYTES", -1)
    assert "MB of memory to load it" in refused(pulled)


def test_a_file_is_no_folder_too() -> None:
    with pytest.raises(
        PullRefused, match=r"'a.yaml' is a file, and a folder with 'a.yaml/x' in it"
    ):
        versions.check_files({"a.yaml": 1, "a.yaml/x": 1})


RULE = "- {name: rule-%d, action: allow, hosts: [h%d.example.com], paths: ['/api/%d/**'], reason: Team %d}\n"


@pytest.mark.long
@pytest.mark.usefixtures("apart")
def test_ten_thousand_rules_are_put_in_place(pulled: Gateway) -> None:
    rules = "".join(RULE % (number, number, number, number) for number in range(10_000))
    pulled.repository.write("policy/policy.yaml", f"version: 1\nrules:\n{rules}")
    assert pulled.repository.commit() == pulled.pull().version
    assert len(pulled.rules()) == 10_000


_ALLOW = "version: 1\nrules:\n- &r {name: a, action: allow, hosts: [a.example], methods: [POST]}\n"
_TEST = "{request: 'GET https://a.example/%d', expect: deny}"
LARGE = {
    "mappings": ("version: 1\nrules:\n" + "- {}\n" * 400_000, "it does not load"),
    "nothings": ("version: 1\nrules:\n" + "-\n" * 1_000_000, ""),
    "lists": ("version: 1\nrules: [" + "[[[[]]]]," * 220_000 + "]\n", ""),
    "aliases": (_ALLOW + "- *r\n" * 400_000, "more than 1,000,000 values"),
    "tests": (
        _ALLOW.replace("methods: [POST]", "paths: ['/*x']")
        + "".join(
            f"- {{name: r{n}, action: allow, hosts: [a.example], paths: ['/*{n}*/x']}}\n"
            for n in range(7000)
        )
        + "tests:\n"
        + "".join(f"- {_TEST % n}\n" for n in range(20_000)),
        "processor time",
    ),
    "tests-by-alias": (
        _ALLOW
        + "".join(
            f"- {{name: r{n}, action: allow, hosts: [a.example], methods: [POST]}}\n"
            for n in range(7000)
        )
        + f"tests:\n- &t {_TEST % 0}\n"
        + "- *t\n" * 150_000,
        "processor time",
    ),
}


@pytest.mark.long
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("form", LARGE)
def test_a_large_policy_is_refused_and_costs_the_process_that_pulls_nothing(
    pulled: Gateway, form: str
) -> None:
    text, why = LARGE[form]
    assert len(text) < versions.POLICY_BYTES_AT_MOST
    pulled.repository.write("policy/policy.yaml", text)
    pulled.repository.commit()
    before = Used.now()
    assert why in refused(pulled)
    assert Used.now().bytes - before.bytes < 20 << 20
    tip = pulled.commit("next")
    assert pulled.pull().version == tip


@pytest.mark.long
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (
            programs.ChildBounds(cpu_seconds=1),
            "that takes more than 1 s of processor time; write fewer",
        ),
        (
            programs.ChildBounds(memory_bytes=200 << 20),
            "that takes more than 200 MB of memory; write fewer",
        ),
        (programs.ChildBounds(memory_bytes=1 << 20), "its process ended with status"),
    ],
)
def test_the_process_that_reads_a_version_is_ended_by_its_bounds(
    pulled: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    bounds: programs.ChildBounds,
    why: str,
) -> None:
    pulled.repository.write("policy/policy.yaml", LARGE["nothings"][0])
    pulled.repository.commit()
    monkeypatch.setattr(reading, "_BOUNDS", bounds)
    reason = refused(pulled)
    assert reason.startswith("it is too large to be read and judged: ")
    assert why in reason


@pytest.mark.long
def test_what_reads_a_version_ends_with_the_process_that_pulls(pulled: Gateway) -> None:
    pulled.repository.write("policy/policy.yaml", LARGE["tests"][0])
    pulled.repository.commit()
    places = (
        "--config",
        pulled.settings,
        "--folder",
        pulled.state,
        "--policy",
        pulled.policy,
    )
    with subprocess.Popen(
        [sys.executable, "-m", "squidkeeper", "pull", *places],
        stderr=subprocess.DEVNULL,
    ) as service:
        try:
            reader = wait_for(lambda: reader_of(service.pid), "the version to be read")
            wait_for(
                (pulled.state / "versions/.new/policy").exists,
                "the version to be written",
            )
        finally:
            service.kill()
    wait_for(
        lambda: not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE,
        "the end of what reads it",
    )


def reader_of(service: int) -> psutil.Process | None:
    """Find the process that reads a version for the one that pulls."""
    for child in psutil.Process(service).children():
        with suppress(psutil.Error):
            if "squidkeeper.services.pulling.reading" in child.cmdline():
                return child
    return None


# --- a source that fails --------------------------------------------------------------


def failure(gateway: Gateway) -> str:
    before = (
        gateway.pull() if not gateway.server.down else read_pull_status(gateway.state)
    )
    status = gateway.pull()
    assert gateway.rules() == ["good"]
    assert before is not None
    assert status.version
    return status.failure


def test_a_source_that_is_away_leaves_what_is_in_place_and_its_time(
    pulled: Gateway,
) -> None:
    before = read_pull_status(pulled.state)
    pulled.server.down = True
    status = pulled.pull()
    assert "git fetch failed" in status.failure
    assert before is not None
    assert (status.version, status.signer, status.succeeded) == (
        before.version,
        before.signer,
        before.succeeded,
    )
    pulled.server.down = False
    assert pulled.pull().failure == ""


@pytest.mark.long
def test_a_redirect_another_certificate_and_a_branch_that_is_gone_are_failures(
    pulled: Gateway,
) -> None:
    pulled.server.redirect = (
        f"{pulled.server.url}/real/policies.git/info/refs?service=git-upload-pack"
    )
    assert "git fetch failed" in failure(pulled)
    pulled.server.redirect, settings = "", pulled.settings.read_text()
    pulled.settings.write_text(settings.replace(f", ca: {pulled.server.ca}", ""))
    assert "certificate" in failure(pulled)
    pulled.settings.write_text(settings.replace("branch: main", "branch: gone"))
    assert "couldn't find remote ref refs/heads/gone" in failure(pulled)


def objects(gateway: Gateway) -> set[Path]:
    """The files of all objects that the gateway has fetched."""
    return {
        path for path in gateway.state.glob("repository/objects/**/*") if path.is_file()
    }


def test_a_server_without_git_is_refused_before_it_gives_an_object(
    pulled: Gateway,
) -> None:
    """Its files are loose objects: no pack bounds them together, and git
    checks none.
    """
    kept = objects(pulled)
    pulled.commit("dumb")
    pulled.repository.git("-C", str(pulled.repository.served), "update-server-info")
    pulled.server.dumb = True
    assert "the server gives files alone" in pulled.pull().failure
    assert objects(pulled) == kept
    pulled.server.dumb = False
    assert pulled.pull().failure == ""
    assert pulled.rules() == ["dumb"]


@pytest.mark.parametrize(
    "protocol", ["https", pytest.param("ssh", marks=pytest.mark.long)]
)
def test_a_pack_elsewhere_is_not_fetched(
    pulled: Gateway, tmp_path: Path, protocol: str
) -> None:
    kept = objects(pulled)
    pulled.commit("elsewhere")
    (pulled.etc / "token").write_text("t0ken\n")
    with serving(tmp_path / "elsewhere/root") as elsewhere:
        uri, both = f"{elsewhere.url}/stray.pack", pulled.etc / "both.pem"
        both.write_bytes(pulled.server.ca.read_bytes() + elsewhere.ca.read_bytes())
        pulled.configure(f", token_file: {pulled.etc}/token")
        pulled.settings.write_text(
            pulled.settings.read_text().replace(str(pulled.server.ca), str(both))
        )
        with ExitStack() as stack:
            pulled.server.pack_uri = uri
            if protocol == "ssh":
                configure_ssh(
                    pulled,
                    *stack.enter_context(
                        ssh_server(tmp_path / "ssh", pulled.repository.served, uri)
                    ),
                )
            assert "the server names a URI" in pulled.pull().failure
        assert elsewhere.authorization == []
    assert objects(pulled) == kept


@pytest.mark.long
def test_a_torn_answer_is_no_version(pulled: Gateway) -> None:
    pulled.commit("torn")
    for length in (0, 100, 300, 600):
        pulled.server.cut_after = length
        assert "git fetch failed" in failure(pulled), length
    pulled.server.cut_after = None
    assert pulled.pull().failure == ""
    assert pulled.rules() == ["torn"]


@pytest.mark.long
def test_a_token_reaches_the_server_and_no_command_line_or_report(
    pulled: Gateway,
) -> None:
    (pulled.etc / "token").write_text("t0ken\n")
    pulled.configure(f", token_file: {pulled.etc}/token")
    pulled.server.authorization.clear()
    status = pulled.pull()
    assert status.failure == ""
    assert set(pulled.server.authorization) == {"Basic eC1hY2Nlc3MtdG9rZW46dDBrZW4="}
    assert "t0ken" not in repr(status)


@pytest.mark.long
def test_no_configuration_of_the_machine_counts(
    pulled: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".gitconfig").write_text(
        f'[url "file://{tmp_path}"]\n insteadOf = {pulled.server.url}\n'
    )
    for name, value in (
        ("HOME", str(tmp_path)),
        ("GIT_CONFIG_GLOBAL", str(tmp_path / ".gitconfig")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_SSL_NO_VERIFY", "1")
    pulled.commit("next")
    assert pulled.pull().failure == ""
    assert pulled.rules() == ["next"]


def configure_ssh(gateway: Gateway, url: str, key: Path, known_hosts: Path) -> None:
    source = f"{{git: '{url}', branch: main, path: policy, key: {key}, known_hosts: {known_hosts}}}"
    gateway.settings.write_text(
        f"source: {source}\nallowed_signers: {gateway.etc}/allowed_signers\n"
    )


@pytest.mark.long
def test_a_repository_is_read_over_ssh_from_a_known_host_alone(
    pulled: Gateway, tmp_path: Path
) -> None:
    with ssh_server(tmp_path / "ssh", pulled.repository.served) as (
        url,
        key,
        known_hosts,
    ):
        configure_ssh(pulled, url, key, known_hosts)
        pulled.commit("over-ssh")
        assert pulled.pull().failure == ""
        assert pulled.rules() == ["over-ssh"]
        pulled.commit("unseen")
        settings = pulled.settings.read_text()
        pulled.settings.write_text(
            settings.replace(f"key: {key}", f"key: {tmp_path}/missing")
        )
        failure = pulled.pull().failure
        assert f"Identity file {tmp_path}/missing not accessible" in failure
        assert "Permission denied (" in failure
        pulled.settings.write_text(settings)
        place, host = (
            known_hosts.read_text().split()[0],
            make_key(tmp_path / "host").with_suffix(".pub").read_text(),
        )
        known_hosts.write_text(f"{place} {host}")
        assert (
            "has changed and you have requested strict checking"
            in pulled.pull().failure
        )
        known_hosts.write_text("")
        assert "host key is known for" in pulled.pull().failure
    assert pulled.rules() == ["over-ssh"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "source: {git: 'file:///etc', branch: main}\nallowed_signers: /a",
            "is no source, expected https://",
        ),
        (
            "source: {git: 'ext::sh -c id', branch: main}\nallowed_signers: /a",
            "is no source",
        ),
        ("source: {git: '-uhelp', branch: main}\nallowed_signers: /a", "is no source"),
        (
            "source: {git: 'https://u:p@h/x', branch: main}\nallowed_signers: /a",
            "is no source",
        ),
        (
            "source: {git: 'ssh://-oProxyCommand=id/x', branch: main}\nallowed_signers: /a",
            "is no source",
        ),
        (
            "source: {git: 'https://h/x', branch: '../x'}\nallowed_signers: /a",
            "is not the name of a branch or tag",
        ),
        (
            "source: {git: 'https://h/x', branch: '-x'}\nallowed_signers: /a",
            "is not the name of a branch or tag",
        ),
        (
            "source: {git: 'https://h/x', branch: a, path: ../x}\nallowed_signers: /a",
            "is not a folder of the repo",
        ),
        (
            "source: {git: 'https://h/x', branch: a, since: abc}\nallowed_signers: /a",
            "is not the whole hash",
        ),
        (
            "source: {git: 'ssh://h/x', branch: a}\nallowed_signers: /a",
            "known_hosts is missing",
        ),
        (
            "source: {git: 'https://h/x'}\nallowed_signers: /a",
            "exactly one of branch and tag",
        ),
        (
            "source: {git: 'https://h/x', branch: a}\nallowed_signers: a",
            "is a relative path",
        ),
        (
            "source: {git: 'https://h/x', branch: a}\nallowed_signers: /a\nevery: 1s",
            "is not a time",
        ),
        ("source: {bundle: 'http://h/x'}\nallowed_signers: /a", "is no source"),
        (
            "source: {bundle: 'https://h/x', branch: a}\nallowed_signers: /a",
            "a bundle has url",
        ),
        (
            "source: {bundle: 'https://h/x', git: 'https://h/x'}\nallowed_signers: /a",
            "exactly one of git and bundle",
        ),
        ("source: {bundle: 'https://h/x'}\nallowed_signers: /a\nunknown: 1", "unknown"),
        ("source: [", "pull.yaml"),
    ],
)
def test_settings_that_are_wrong_are_a_failure_and_change_nothing(
    tmp_path: Path, text: str, fault: str
) -> None:
    settings, state = tmp_path / "pull.yaml", tmp_path / "state"
    settings.write_text(text)
    state.mkdir()
    assert fault in Puller(settings, state, tmp_path / "policy").pull().failure
    assert os.listdir(state) == ["status.json"]


# --- bundles --------------------------------------------------------------------------


def publish(
    gateway: Gateway, number: int, rule: str, *, namespace: str = "squidkeeper-policy"
) -> None:
    folder = gateway.etc.parent / "bundled"
    folder.mkdir(exist_ok=True)
    (folder / "policy.yaml").write_text(POLICY % (rule, rule))
    file = gateway.server.root / "policy.bundle"
    made = CliRunner().invoke(
        main,
        ["pull", "bundle", str(folder), "--number", str(number), "--output", str(file)],
    )
    assert made.exit_code == 0, made.output
    sign(gateway, file, namespace)


def sign(gateway: Gateway, file: Path, namespace: str = "squidkeeper-policy") -> None:
    Path(f"{file}.sig").unlink(missing_ok=True)
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-Y",
            "sign",
            "-f",
            str(gateway.key),
            "-n",
            namespace,
            str(file),
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def bundled(gateway: Gateway) -> Gateway:
    """A gateway with bundle 5 in place."""
    source = f"{{bundle: {gateway.server.url}/policy.bundle, ca: {gateway.server.ca}}}"
    gateway.settings.write_text(
        f"source: {source}\nallowed_signers: {gateway.etc}/allowed_signers\n"
    )
    publish(gateway, 5, "good")
    status = gateway.pull()
    assert status.version.startswith("bundle-5-"), status
    assert status.signer == "alice@example.com"
    return gateway


@pytest.mark.long
def test_a_bundle_with_a_higher_number_is_put_in_place(bundled: Gateway) -> None:
    publish(bundled, 6, "six")
    assert bundled.pull().version.startswith("bundle-6-")
    assert bundled.rules() == ["six"]
    rewritten(bundled.policy / "policy.yaml", POLICY % ("own", "own"))
    status = bundled.pull()
    assert (status.failure, status.refused, status.altered, bundled.rules()) == (
        "",
        "",
        False,
        ["six"],
    )


def test_a_bundle_is_not_replayed_and_no_number_stands_for_two(
    bundled: Gateway,
) -> None:
    for number in (1, 4, 5):
        publish(bundled, number, "bad")
        status = bundled.pull()
        assert (
            f"its number is {number}, expected more than 5, which is in place"
            in status.reason
        )
        assert bundled.rules() == ["good"]
    assert bundled.pull(status.refused).refused == ""
    assert bundled.rules() == ["bad"]


@pytest.mark.long
def test_a_gateway_goes_from_bundles_to_git_and_back(bundled: Gateway) -> None:
    bundles = bundled.settings.read_text()
    tip = bundled.commit("git")
    bundled.configure()
    assert bundled.pull().version == tip
    bundled.settings.write_text(bundles)
    assert bundled.pull().version.startswith("bundle-5-")


@pytest.mark.long
def test_a_bundle_is_signed_for_this_use_and_whole(bundled: Gateway) -> None:
    publish(bundled, 6, "bad", namespace="file")
    assert "does not hold" in bundled.pull().reason
    publish(bundled, 6, "bad")
    file = bundled.server.root / "policy.bundle"
    file.write_bytes(file.read_bytes().replace(b"bad", b"wxy"))
    assert "does not hold" in bundled.pull().reason
    Path(f"{file}.sig").unlink()
    assert "status 404, expected 200" in bundled.pull().failure
    bundled.server.cut_after = 10
    assert bundled.pull().failure
    assert bundled.rules() == ["good"]


NOT_IN_A_BUNDLE: list[tuple[object, str]] = [
    (
        {"number": 6, "files": {"../up.yaml": "version: 1"}},
        "has a name that is not plain",
    ),
    (
        {"number": 6, "files": {"/etc/up.yaml": "version: 1"}},
        "has a name that is not plain",
    ),
    ({"number": "6", "files": {}}, "it is no bundle"),
    ({"number": 10**15, "files": {}}, "expected one from 1 to 999,999,999,999,999"),
    ({"number": -1, "files": {}}, "expected one from 1 to"),
    ({"number": 6, "files": {}, "run": "id"}, "it is no bundle"),
    ({"number": 6, "files": {}}, "it does not load"),
    (
        {"number": 6, "files": {"a.yaml": "x", "a.yaml/x": "x"}},
        "'a.yaml' is a file, and a folder with 'a.yaml/x'",
    ),
    (
        {"number": 6, "files": {"a.yaml": "secrets: {x: {env: PATH}}"}},
        "it does not load",
    ),
    ([], "it is no bundle"),
]


@pytest.mark.long
def test_what_a_signed_bundle_may_not_hold(bundled: Gateway) -> None:
    file = bundled.server.root / "policy.bundle"
    for content, why in NOT_IN_A_BUNDLE:
        file.write_text(json.dumps(content))
        sign(bundled, file)
        assert why in bundled.pull().reason, content
        assert bundled.rules() == ["good"], content


@pytest.mark.parametrize(
    ("named", "linked", "why"),
    [
        (
            "l.txt",
            "l.txt",
            "'l.txt' is a link, or in a folder that is one, expected a regular file in its place",
        ),
        ("lists/l.txt", "lists", "'lists/l.txt' is a link, or in a folder that is one"),
        ("l.txt", "z.yaml", "'z.yaml' is a link, or in a folder that is one"),
        ("../secret/l.txt", "", "'../secret/l.txt' has a name that is not plain"),
        ("missing.txt", "", "No such file or directory"),
        ("l.txt", "pipe.yaml", "'pipe.yaml' is no regular file"),
        ("l.txt", "", "it does not load: policy.yaml:4:1: 'canaries' "),
    ],
)
def test_a_bundle_is_made_of_regular_files_that_a_gateway_would_load(
    tmp_path: Path, named: str, linked: str, why: str
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/l.txt").write_text("private.example\n")
    folder = tmp_path / "policy"
    folder.mkdir()
    text = f"version: 1\nlists: {{l: {{file: {named}}}}}\nrules: [{{name: a, action: deny, lists: [l]}}]\n"
    (folder / "policy.yaml").write_text(f"{text}canaries: {{c: {{env: C}}}}\n")
    if linked == "pipe.yaml":
        os.mkfifo(folder / linked)
    elif linked:
        (folder / linked).symlink_to(
            tmp_path / "secret" / ("" if linked == "lists" else "l.txt")
        )
    if named == "l.txt" and linked != "l.txt":
        (folder / named).write_text("open.example\n")
    output = tmp_path / "policy.bundle"
    done = CliRunner().invoke(
        main, ["pull", "bundle", str(folder), "--number", "1", "--output", str(output)]
    )
    assert (done.exit_code, output.exists()) == (1, False)
    assert done.output.startswith(f"Error: {folder} makes no bundle: ")
    assert why in done.output


@pytest.mark.long
def test_a_bundle_below_since_is_refused_and_none_is_fetched_over_a_redirect(
    bundled: Gateway,
) -> None:
    text = bundled.settings.read_text().replace("bundle, ca", "bundle, since: 9, ca")
    bundled.settings.write_text(text)
    publish(bundled, 6, "bad")
    assert "expected 9 at least" in bundled.pull().reason
    bundled.server.redirect = f"{bundled.server.url}/real/policy.bundle"
    assert (
        "status 302, expected 200: redirects are not followed" in bundled.pull().failure
    )


@pytest.mark.parametrize(
    "endless",
    [b"a", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["a trickle", "100 Continue"],
)
def test_a_server_that_never_ends_its_answer_is_a_failure(
    bundled: Gateway, monkeypatch: pytest.MonkeyPatch, endless: bytes
) -> None:
    monkeypatch.setattr(bundle, "_SECONDS", 1)
    bundled.server.endless = endless
    assert bundled.pull().failure.endswith(
        "/policy.bundle cannot be read: it has not ended within 1 s"
    )
    assert bundled.rules() == ["good"]


def test_no_token_is_shown_that_cannot_be_sent(bundled: Gateway) -> None:
    token = bundled.etc / "token"
    token.write_text("one\ntwo\n")
    bundled.settings.write_text(
        bundled.settings.read_text().replace(
            "bundle, ca", f"bundle, token_file: {token}, ca"
        )
    )
    assert bundled.pull().failure.endswith(
        f"cannot be read: {token} holds no token, expected one line"
    )


# --- the command ----------------------------------------------------------------------


def command(gateway: Gateway, *options: str) -> tuple[int, str]:
    source = ("--config", gateway.settings, "--folder", gateway.state)
    places = (*source, "--policy", gateway.policy, "--state", gateway.helpers)
    done = CliRunner().invoke(main, ["pull", *options, *map(str, places)])
    return done.exit_code, done.output


@pytest.mark.usefixtures("apart")
def test_the_command_pulls_once_and_shows_what_became_of_it(gateway: Gateway) -> None:
    tip = gateway.commit("one")
    status, output = command(gateway, "--once")
    assert (status, output.splitlines()[0]) == (
        0,
        f"{tip} is in place, signed by alice@example.com",
    )
    assert "ceiling    none: whoever signs may open everything" in output
    gateway.commit("two", signed=False)
    status, output = command(gateway, "--once")
    assert status == 1
    assert f"is refused, {tip} is in place: it is not signed" in output
    assert command(gateway, "--status")[0] == 1
    assert json.loads(command(gateway, "--status", "--json")[1])["version"] == tip


def test_a_pull_by_hand_tells_that_it_waits_for_another(pulled: Gateway) -> None:
    places = (
        "--config",
        pulled.settings,
        "--folder",
        pulled.state,
        "--policy",
        pulled.policy,
    )
    other = os.open(pulled.state, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    once = [sys.executable, "-m", "squidkeeper", "pull", "--once", *map(str, places)]
    with subprocess.Popen(
        once, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stderr is not None
        told = command.stderr.readline()
        os.close(other)
        assert command.wait() == 0
    assert told.startswith(
        f"another process pulls into {pulled.state}: the service squidkeeper-pull, or a"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_a_pull_of_root_by_hand_reads_a_key_of_the_accounts_own_group(
    gateway: Gateway,
) -> None:
    """As the service reads it: the folder has Squid's group, the key the
    account's own.
    """
    account = pwd.getpwnam("daemon")
    token = gateway.etc / "token"
    token.write_text("t0ken\n")
    token.chmod(0o640)
    shutil.chown(token, 0, account.pw_gid)
    shutil.chown(gateway.state, account.pw_uid, 4243)
    for path in (gateway.state, gateway.server.ca):
        for folder in takewhile(
            lambda parent: parent != Path(tempfile.gettempdir()), path.parents
        ):
            folder.chmod(0o755)
    gateway.configure(f", token_file: {token}")
    tip = gateway.commit("one")
    places = (
        "--config",
        gateway.settings,
        "--folder",
        gateway.state,
        "--policy",
        gateway.policy,
    )
    once = [sys.executable, "-m", "squidkeeper", "pull", "--once", *map(str, places)]
    done = subprocess.run(once, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(
        f"{tip} is in place, signed by alice@example.com\n"
    ), done
    assert {path.lstat().st_uid for path in gateway.state.iterdir()} == {account.pw_uid}


@pytest.mark.long
def test_the_command_tells_where_the_gateway_reads_something_else(
    pulled: Gateway,
) -> None:
    pulled.policy.unlink()
    pulled.policy.mkdir()
    status, output = command(pulled, "--status")
    assert (
        status,
        f"no: {pulled.policy} is no link to {pulled.state}/current" in output,
    ) == (1, True)


def test_the_status_tells_whether_what_is_in_place_is_in_force(pulled: Gateway) -> None:
    uses = "credentials: [{name: c, hosts: [api.example], bearer: token}]\n"
    pulled.repository.write("policy/credentials.yaml", f"version: 1\n{uses}")
    revisions, before = pulled.helpers / "revisions", pulled.repository.commit()
    pulled.pull()
    status, output = command(pulled, "--status")
    assert (status, output.splitlines()[0]) == (
        0,
        f"{before} is in place, signed by alice@example.com",
    )
    assert "in force   unknown: " in output
    assert "run as root, or name --state" in output
    (pulled.etc / "local.yaml").write_text(
        f"{LOCAL}defaults: {{reload_gate: {{since: 1d, denials: 3}}}}\n"
    )
    sources = read_sources(pulled.policy)
    store_revision(sources, sources.revision, revisions, None)
    mark_in_force(revisions, sources.revision)
    status, output = command(pulled, "--status")
    assert (
        status,
        f"in force   revision {sources.revision} is in force" in output,
    ) == (0, True)
    tip = pulled.commit("next")
    pulled.pull()
    two = read_sources(pulled.policy).revision
    assert f"revision {two} waits for the reload gate" in command(pulled, "--status")[1]
    write_verdict(
        revisions,
        GateVerdict(
            sources.revision, two, time.time(), denials=5, counted=5, allowed=3
        ),
    )
    status, output = command(pulled, "--status")
    assert (status, output.splitlines()[0]) == (
        1,
        f"{tip} is in place, not in force, signed by alice@example.com",
    )
    assert (
        f"in force   no: revision {two} is refused, and {sources.revision} stays in force\n"
        in output
    )
    assert json.loads(command(pulled, "--status", "--json")[1])["in_force"] is False
    (pulled.etc / "local.yaml").unlink()
    status, output = command(pulled, "--status")
    assert (status, "no: does not load" in output) == (1, True)
    assert "or of local.yaml beside its folder" in output


def test_a_refusal_names_the_command_for_this_gateway(pulled: Gateway) -> None:
    first = pulled.repository.git("rev-parse", "HEAD")
    pulled.commit("second")
    pulled.pull()
    pulled.repository.git("reset", "-q", "--hard", first)
    pulled.repository.push()
    output = command(pulled, "--once")[1]
    own = f"--policy {pulled.policy} --state {pulled.helpers} --config {pulled.settings} --folder {pulled.state}"
    assert (
        f"`squidkeeper pull {own} --once --accept {first}` takes it all the same"
        in output
    )


def test_the_parts_of_a_commit_are_those_that_git_signs() -> None:
    commit = b"tree 1\nauthor a\ngpgsig -----BEGIN\n a\n \n -----END\nencoding x\n\ngpgsig in the text\n"
    signed, signature = split_commit(commit)
    assert signed == b"tree 1\nauthor a\nencoding x\n\ngpgsig in the text\n"
    assert signature == b"-----BEGIN\na\n\n-----END\n"
    assert split_commit(b"tree 1\n\ngpgsig x\n") == (b"tree 1\n\ngpgsig x\n", b"")


# --- the report -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        {"succeeded": 1e300},
        {"placed": -1},
        {"every_seconds": 10**400},
        {"version": "x" * 40},
        {"version": "a" * 40 + "\n"},
        {"reason": "x" * 5000},
        {"signer": 1},
        [],
    ],
)
def test_a_report_that_no_page_could_show_is_none(
    tmp_path: Path, report: object
) -> None:
    (tmp_path / "status.json").write_text(json.dumps(report))
    assert read_pull_status(tmp_path) is None


def test_a_report_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("{}")
    (tmp_path / "status.json").symlink_to("other")
    assert read_pull_status(tmp_path) is None


def test_a_version_that_we_fail_on_does_not_end_the_process(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    tip = gateway.commit("one")

    def fail(*_: object) -> None:
        raise RecursionError("secret text")

    monkeypatch.setattr("squidkeeper.services.pulling.judgement.judge", fail)
    status = gateway.pull()
    assert status.refused == tip
    assert status.reason.startswith("squidkeeper itself failed on it: RecursionError")
    assert "secret text" not in status.reason
