"""What is published decides as what was loaded, and what is damaged denies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidPublication
from squidkeeper.policy.engine import CompiledPolicy, Stage, decide
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.policy.policy_store.revisions import RevisionWriter
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.policy.published.codec import decode, encode
from squidkeeper.policy.published.places import publication_file
from squidkeeper.policy.published.publication import (
    read_publication,
    write_publication,
)
from squidkeeper.policy.published.reader import PolicyReader, load_published
from squidkeeper.serving.parts import needed_keys

from ..conftest import write_policy
from ..serving.test_trusted_base import EVERYTHING, HOSTS

EXAMPLES = sorted((Path(__file__).parents[2] / "policy/examples").glob("*/"))
NOW = datetime(2026, 12, 2, 9, tzinfo=UTC)
GOOD = "rules: [{name: open, action: allow, hosts: [open.example]}]"


def published(directory: Path, folder: Path) -> CompiledPolicy:
    """Publish the policy of a directory; return it as helpers read it."""
    loaded = load(directory, NOW).compiled
    writer = RevisionWriter(folder, None)
    publication = write_publication(loaded, needed_keys(loaded.source))
    writer.loaded(read_sources(directory), loaded.revision, publication)
    writer.write()
    return load_published(folder, loaded.revision)


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


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: content[:-1], "its digest is another one"),
        (lambda content: content[:20], "expected 48 to"),
        (lambda content: b"sqkpol02" + content[8:], "has another format than 1"),
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
        read_publication(tmp_path / "link", lambda _: pytest.fail("no list"))
