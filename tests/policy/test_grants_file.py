"""The file beside a policy that holds what commands grant: read with the policy,
watched, stored, and forgiving.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load, load_stored_revision
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.policy_store.revisions import store_revision
from squidkeeper.policy.policy_store.sources import (
    grants_file,
    policy_files,
    read_sources,
)
from squidkeeper.policy.protocol.request import request_to

from ..conftest import NOW, decided, write_policy
from ..waiting import files_at_rest, wait_for

POLICY = """
clients:
  agents: {networks: [192.0.2.0/24]}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
tests:
  - {request: "GET https://a.example/", client: 192.0.2.1, expect: deny, rule: default}
"""
GRANT = """version: 1
grants:
  - {name: g, clients: [%s], hosts: [a.example, closed.example], expires: 2036-01-01T00:00:00Z, reason: x}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "policy", POLICY)


def verdict(compiled: CompiledPolicy, host: str) -> str:
    decision = decided(
        compiled, request_to("GET", f"https://{host}/", "192.0.2.1"), NOW
    )
    return f"{decision.action} by {decision.rule}"


def grant(directory: Path, client: str = "agents") -> Path:
    file = grants_file(directory)
    file.write_text(GRANT % client)
    return file


def test_what_is_granted_beside_the_policy_is_part_of_it_and_not_of_its_tests(
    directory: Path,
) -> None:
    before = load(directory, NOW).compiled
    file = grant(directory)
    after = load(directory, NOW).compiled
    assert file == directory.parent / "grants.yaml"
    assert (verdict(before, "a.example"), verdict(after, "a.example")) == (
        "deny by default",
        "allow by g",
    )
    assert verdict(after, "closed.example") == "deny by closed"
    assert before.revision != after.revision
    assert [path.name for path in policy_files(directory)] == [
        "policy.yaml",
        "grants.yaml",
    ]


@pytest.mark.parametrize("place", [".", "../policy", "policy/../policy", "link"])
def test_the_file_is_beside_the_folder_however_that_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (directory.parent / "elsewhere").mkdir()
    (directory.parent / "link").symlink_to(directory)
    monkeypatch.chdir(directory if place in (".", "../policy") else directory.parent)
    assert grants_file(Path(place)) == directory.parent / "grants.yaml"


def test_a_client_that_is_gone_leaves_its_grant_without_effect(directory: Path) -> None:
    grant(directory, "gone")
    found = load(directory, NOW)
    assert verdict(found.compiled, "a.example") == "deny by default"
    assert [str(warning.code) for warning in found.warnings] == ["grant-for-nobody"]


def test_a_client_that_is_gone_is_a_fault_in_a_file_of_the_policy(
    directory: Path,
) -> None:
    (directory / "grants.yaml").write_text(GRANT % "gone")
    with pytest.raises(PolicyError) as raised:
        load(directory, NOW)
    assert [str(fault.code) for fault in raised.value.faults] == ["unknown-name"]


def test_the_file_holds_nothing_but_grants(directory: Path) -> None:
    grants_file(directory).write_text(
        "version: 1\nrules: [{name: r, action: allow, hosts: [b.example]}]\n"
    )
    with pytest.raises(PolicyError) as raised:
        load(directory, NOW)
    assert "'rules' is no section of this file" in str(raised.value)


def test_a_policy_file_of_the_same_name_is_another_file(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "grants.yaml").write_text(
        f"{GRANT % 'agents'}end: true\n".replace("name: g", "name: own").replace(
            "a.example", "own.example"
        )
    )
    grant(directory)
    sources = read_sources(directory)
    store_revision(sources, sources.revision, tmp_path / "revisions")
    stored = load_stored_revision(tmp_path / "revisions", sources.revision)
    assert [grant.name for grant in stored.source.grants] == ["own", "g"]
    load_again = load(directory, NOW).compiled
    assert load_again.revision == stored.revision


def test_a_stored_revision_has_what_was_granted(
    directory: Path, tmp_path: Path
) -> None:
    grant(directory)
    sources = read_sources(directory)
    store_revision(sources, sources.revision, tmp_path / "revisions")
    grants_file(directory).unlink()
    assert (
        verdict(
            load_stored_revision(tmp_path / "revisions", sources.revision), "a.example"
        )
        == "allow by g"
    )
    again = read_sources(directory)
    assert again.revision == sources.revision_without_granted
    store_revision(again, again.revision, tmp_path / "revisions")
    assert (
        verdict(
            load_stored_revision(tmp_path / "revisions", again.revision), "a.example"
        )
        == "deny by default"
    )


# --- watched --------------------------------------------------------------------------


@pytest.fixture
def watcher(
    directory: Path, tmp_path: Path
) -> Callable[[], PolicyWatcher[CompiledPolicy]]:
    def make() -> PolicyWatcher[CompiledPolicy]:
        made = PolicyWatcher(
            directory, None, lambda compiled: compiled, tmp_path / "revisions"
        )
        # a file that has just been written is read again
        wait_for(lambda: loaded(made))
        return made

    return make


@pytest.mark.system
def test_a_grant_is_in_force_after_a_check_and_ends_with_the_file(
    directory: Path, watcher: Callable[[], PolicyWatcher[CompiledPolicy]]
) -> None:
    watching = watcher()
    new = directory.parent / "grants.yaml.new"
    new.write_text(GRANT % "agents")
    new.rename(grants_file(directory))
    wait_for(lambda: checked(watching, "a.example") == "allow by g")
    grants_file(directory).unlink()
    wait_for(lambda: checked(watching, "a.example") == "deny by default")


@pytest.mark.system
def test_a_grant_that_is_being_written_is_not_loaded(
    directory: Path, watcher: Callable[[], PolicyWatcher[CompiledPolicy]]
) -> None:
    watching = watcher()
    first = watching.state.revision
    with grants_file(directory).open("w") as opened:
        opened.write(GRANT % "agents")
        opened.flush()
        for _ in range(3):
            files_at_rest()
            watching.check()
            assert watching.state.revision == first
    wait_for(lambda: checked(watching, "a.example") == "allow by g")


def loaded(watching: PolicyWatcher[CompiledPolicy]) -> CompiledPolicy | None:
    watching.check()
    return watching.current


def checked(watching: PolicyWatcher[CompiledPolicy], host: str) -> str:
    watching.check()
    assert watching.current is not None
    return verdict(watching.current, host)
