"""What is published decides as what was loaded, and what is damaged denies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE
from subprocess import PIPE

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidPublication
from squidkeeper.policy.engine import CompiledPolicy, Stage, decide
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import RevisionWriter
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.protocol.request import Request, request_to
from squidkeeper.policy.published import places
from squidkeeper.policy.published.codec import decode, encode
from squidkeeper.policy.published.places import (
    marked_in_force,
    publication_file,
    published_folder,
)
from squidkeeper.policy.published.publication import (
    read_publication,
    write_publication,
)
from squidkeeper.policy.published.reader import PolicyReader, load_published
from squidkeeper.serving.parts import needed_keys
from tests.waiting import wait_for

from ..conftest import write_policy
from ..serving.test_trusted_base import EVERYTHING, HOSTS

EXAMPLES = sorted((Path(__file__).parents[2] / "policy/examples").glob("*/"))
NOW = datetime(2026, 12, 2, 9, tzinfo=UTC)
GOOD = "rules: [{name: open, action: allow, hosts: [open.example]}]"


def published(directory: Path, folder: Path) -> CompiledPolicy:
    """Publish the policy of a directory; return it as helpers read it."""
    loaded = load(directory, NOW).compiled
    writer = RevisionWriter(folder, None)
    publication = write_publication(loaded, needed_keys(loaded.source), directory)
    writer.loaded(read_sources(directory), loaded.revision, publication)
    writer.write()
    return load_published(folder, loaded.revision, directory)


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    directory = write_policy(tmp_path / "policy", EVERYTHING)
    for name in ("token", "decoy"):
        (directory / name).write_text(f"the-value-of-{name}\n")
        (directory / name).chmod(0o600)
    return directory


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_the_same_once_it_is_published(
    example: Path, tmp_path: Path
) -> None:
    source = load(example, NOW).compiled.source
    found = published(example, tmp_path).source
    assert list(map(encode, found.rules)) == list(map(encode, source.rules))
    assert {name: hosts.digest for name, hosts in found.lists.items()} == (
        {name: hosts.digest for name, hosts in source.lists.items()}
    )
    assert encode(replace(found, rules=(), lists={})) == (
        encode(replace(source, rules=(), lists={}, tests=()))
    )


def requests() -> Iterator[str]:
    for host in (*HOSTS, "unknown.example", "10.0.0.1"):
        for scheme, path in (("https", "/"), ("https", "/v1/a?q=b"), ("http", "/x")):
            yield f"{scheme}://{host}{path}"


@pytest.mark.parametrize("client", ["192.0.2.1", "198.51.100.1"])
@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND"])
def test_what_is_published_decides_as_what_was_loaded(
    everything: Path, tmp_path: Path, client: str, method: str
) -> None:
    loaded = load(everything, NOW).compiled
    read = published(everything, tmp_path / "revisions")
    for url in requests():
        request = request_to(method, url, client)
        for stage in (Stage.HOST, Stage.ALL):
            told, expected = (
                decide(policy, policy.match(request), NOW, stage, url)
                for policy in (read, loaded)
            )
            assert (told.action, told.rule, told.reason, told.outlook) == (
                (expected.action, expected.rule, expected.reason, expected.outlook)
            ), url
    assert read.index.needs == needed_keys(loaded.source)


def test_a_rule_is_read_when_a_host_is_asked_for_that_it_is_for(
    everything: Path, tmp_path: Path
) -> None:
    read = published(everything, tmp_path / "revisions")
    assert set(read.source.rules._read) == {None}  # type: ignore[attr-defined] # what is tested
    read.match(request_to("GET", "https://open.example/", "192.0.2.1"))
    names = [rule.name for rule in read.source.rules._read if rule]  # type: ignore[attr-defined]
    assert names == ["open"]


# --- damaged --------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_any_bytes_are_a_value_or_are_refused(data: bytes) -> None:
    try:
        decode(data)
    except InvalidPublication:
        return


@given(data=st.data())
def test_a_value_that_is_altered_is_another_one_or_is_refused(
    data: st.DataObject,
) -> None:
    rule = load(EXAMPLES[0], NOW).compiled.source.rules[0]
    written = bytearray(encode(rule))
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    try:
        decode(bytes(written))
    except InvalidPublication:
        return


def test_what_is_published_decides_for_each_session(tmp_path: Path) -> None:
    example = next(path for path in EXAMPLES if path.name == "sessions")
    loaded = load(example, NOW).compiled
    found = published(example, tmp_path)
    assert found.source.roles == loaded.source.roles
    assert found.source.session_networks == loaded.source.session_networks
    assert found.index.of_variables == loaded.index.of_variables
    for test in loaded.source.tests:
        request = request_to(test.method, test.url)
        assert isinstance(request, Request)
        request = request._replace(session=test.session)
        before, after = (
            decide(policy, policy.match(request), NOW) for policy in (loaded, found)
        )
        assert encode(before.by_body) == encode(after.by_body)
        assert (before.action, before.rule) == (after.action, after.rule)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: content[:-1], "its digest is another one"),
        (lambda content: content[:20], "expected 48 to"),
        (lambda content: b"sqkpol01" + content[8:], "has another format than 3"),
        (lambda content: content[:60] + b"\xff" + content[61:], "its digest"),
        (lambda _: b"", "has 0 bytes"),
    ],
    ids=["cut", "short", "format", "altered", "empty"],
)
def test_what_is_damaged_denies_until_another_is_in_force(
    tmp_path: Path, damage: object, told: str
) -> None:
    directory = write_policy(tmp_path / "policy", GOOD)
    folder = tmp_path / "revisions"
    revision = published(directory, folder).revision
    file = publication_file(folder, revision)
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator] # a function
    reader = PolicyReader(directory, folder, lambda policy: policy)
    reader.check()
    assert reader.current is None
    assert told in reader.state.problem
    write_policy(tmp_path / "policy", GOOD.replace("open,", "again,"))
    published(directory, folder)
    reader.check()
    assert reader.current
    assert [rule.name for rule in reader.current.source.rules] == ["again"]
    assert reader.state.ok


def test_the_last_five_are_kept_for_requests_that_name_them(tmp_path: Path) -> None:
    folder = tmp_path / "revisions"
    names = []
    for number in range(7):
        directory = write_policy(
            tmp_path / "policy", GOOD.replace("open,", f"r{number},")
        )
        names.append(published(directory, folder).revision)
    kept = [name for name in names if publication_file(folder, name).exists()]
    assert kept == names[-5:]


def test_a_link_and_a_fifo_are_no_publication(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OSError, match="symbolic links"):
        read_publication(tmp_path / "link", lambda _: pytest.fail("no list"), tmp_path)


# --- another policy in the same state folder ------------------------------------------


def test_what_was_published_of_another_directory_is_not_followed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "revisions"
    ours, other = (write_policy(tmp_path / name, GOOD) for name in ("ours", "other"))
    published(ours, folder)
    reader = PolicyReader(ours, folder, lambda policy: policy)
    reader.check()
    assert reader.current
    published(other, folder)  # with the same content, so of the same revision
    starts = PolicyReader(ours, folder, lambda policy: policy)
    for one, goes_on in ((reader, True), (starts, False)):
        one.check()
        assert (one.current is not None) is goes_on
        assert f"is the policy of {other}, not of {ours}" in one.state.problem
        assert not one.state.ok
    published(ours, folder)
    starts.check()
    assert starts.current
    assert starts.state.ok


def publisher(directory: Path, state: Path) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "squidkeeper", "publish")
    options = ("--policy", str(directory), "--state", str(state))
    return subprocess.Popen(
        [*command, *options], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
    )


@pytest.fixture
def publishing(tmp_path: Path) -> Iterator[Path]:
    """A state folder in which a process publishes the policy of `ours`."""
    write_policy(tmp_path / "ours", GOOD)
    state = tmp_path / "state"
    with publisher(tmp_path / "ours", state) as process:
        wait_for(lambda: marked_in_force(state / "revisions"), "a publication")
        yield state
        process.communicate()
        assert process.returncode == 0


@pytest.mark.system
def test_a_second_publisher_of_another_policy_says_so(publishing: Path) -> None:
    other = write_policy(publishing.with_name("other"), GOOD)
    with publisher(other, publishing) as second:
        _, told = second.communicate()
        assert second.returncode == 1
    assert f"another process publishes {publishing.with_name('ours')} there" in told
    with publisher(publishing.with_name("ours"), publishing) as third:
        assert third.communicate() == ("", "")
        assert third.returncode == 0


# --- a publication that is damaged while its publisher runs ---------------------------


@pytest.mark.system
@pytest.mark.parametrize("damage", ["cut", "removed", "unmarked", "gone"])
def test_a_publication_that_is_damaged_is_published_again(
    publishing: Path, damage: str
) -> None:
    folder = publishing / "revisions"
    directory = publishing.with_name("ours")
    revision, _ = marked_in_force(folder) or ("", 0)
    file = publication_file(folder, revision)
    if damage != "gone":  # then it comes from memory
        (directory / "policy.yaml").write_text("rules: [")
    before = file.read_bytes()
    if damage == "cut":
        file.write_bytes(before[:-1])
    elif damage == "removed":
        file.unlink()
    elif damage == "unmarked":
        (folder / "in-force").unlink()
    else:
        shutil.rmtree(folder / revision)
    reader = PolicyReader(directory, folder, lambda policy: policy)

    def is_whole() -> bool:
        reader.check()
        return reader.current is not None and file.read_bytes() == before

    wait_for(is_whole, "the publication to be whole")


# --- the folder in memory -------------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    state.write_text("no folder, so nobody can write there")
    return state


def test_a_folder_in_memory_is_for_this_account_alone(
    tmp_path: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_MEMORY", tmp_path)
    folder = published_folder(tmp_path / "policy", unwritable)
    assert folder.parent == tmp_path
    assert S_IMODE(folder.stat().st_mode) == 0o700
    assert published_folder(tmp_path / "policy", unwritable) == folder


@pytest.mark.parametrize("planted", ["mode", "owner", "link", "file"])
def test_a_folder_that_another_account_has_planted_is_not_used(
    tmp_path: Path,
    unwritable: Path,
    planted: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(places, "_MEMORY", tmp_path)
    folder = published_folder(tmp_path / "policy", unwritable)
    if planted == "mode":
        folder.chmod(0o777)
    elif planted == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        folder = folder.rename(folder.with_name(folder.name.replace("-0-", "-1-", 1)))
    else:
        folder.rename(tmp_path / "theirs")
        if planted == "link":
            folder.symlink_to(tmp_path / "theirs")
        else:
            folder.write_text("")
    used = published_folder(tmp_path / "policy", unwritable)
    assert used == unwritable / "revisions"
    assert f"{folder}: expected a folder of this account, with mode 0700" in caplog.text
