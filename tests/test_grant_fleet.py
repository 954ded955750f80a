"""`squidkeeper grant --fleet`: a grant for all gateways is a signed commit, and nothing else changes."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.policy_store.loading import load

from .pull_servers import GIT_ENVIRONMENT, Repository, allowed_signer, make_key

POLICY = """version: 1
clients: {agents: {networks: [192.0.2.0/24]}}
rules: [{name: closed, action: deny, hosts: [closed.example]}]
credentials: [{name: api, hosts: [api.example], bearer: token}]
tests: [{request: "GET https://a.example/", client: 192.0.2.1, expect: deny}]
"""
LOCAL = "version: 1\nsecrets: {token: {file: token, hosts: [api.example]}}\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    for name, value in GIT_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = Repository.make(tmp_path / "work", make_key(tmp_path / "key"), tmp_path / "served.git")
    made.write("policy/policy.yaml", POLICY)
    made.write("local.yaml", LOCAL)
    made.commit()
    return made


def grant(repository: Repository, *words: str) -> tuple[int, str]:
    options = ("--fleet", str(repository.served), "--key", str(repository.key))
    done = CliRunner().invoke(main, ["grant", *options, *words])
    return done.exit_code, done.output


def to_agents(repository: Repository, target: str) -> tuple[int, str]:
    return grant(repository, target, "--client", "agents", "--for", "2h", "--reason", "Ticket 7")


def served(repository: Repository, *arguments: str) -> str:
    command = ["git", "-C", str(repository.served), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_grant_is_one_signed_commit_of_one_file(repository: Repository, tmp_path: Path) -> None:
    status, output = to_agents(repository, "a.example")
    assert status == 0, output
    assert re.match(r"Granted grant-a-example until .* UTC \(2 h\), in policy/fleet-grants\.yaml:\n", output)
    tip = served(repository, "rev-parse", "main").strip()
    assert output.splitlines()[-1] == (f"Pushed {tip}. Each gateway has it in force once it has pulled this commit.")
    assert served(repository, "log", "--format=%s", "--name-only", "-1", "main").split("\n\n") == [
        "Grant grant-a-example",
        "policy/fleet-grants.yaml\n",
    ]
    (tmp_path / "signers").write_text(allowed_signer(repository.key))
    verify = ("-c", "gpg.format=ssh", "-c", f"gpg.ssh.allowedSignersFile={tmp_path}/signers", "verify-commit", "main")
    served(repository, *verify)
    repository.git("pull", "-q", str(repository.served), "main")
    loaded = load(repository.folder / "policy", datetime.now(UTC)).compiled.source
    assert [(one.name, one.owner) for one in loaded.grants] == [("grant-a-example", GIT_ENVIRONMENT["GIT_AUTHOR_NAME"])]


def test_the_policys_tests_do_not_count_a_grant_however_long_it_holds(repository: Repository) -> None:
    status, output = grant(repository, "a.example", "--client", "agents", "--for", "30d", "--reason", "x")
    assert status == 0, output


def test_grants_of_all_gateways_are_listed_revoked_and_pruned(repository: Repository) -> None:
    to_agents(repository, "a.example")
    to_agents(repository, "b.example")
    assert [line.split(":")[0] for line in grant(repository, "--list")[1].splitlines() if line[0] != " "] == [
        "grant-a-example",
        "grant-b-example",
    ]
    status, output = grant(repository, "--revoke", "grant-a-example")
    assert (status, output.splitlines()[0]) == (0, "Revoked grant-a-example.")
    assert "grant-a-example" not in grant(repository, "--list")[1]
    before = served(repository, "rev-parse", "main")
    assert grant(repository, "--prune")[1] == "Removed 0 lapsed grants. 1 grant left.\n"
    assert served(repository, "rev-parse", "main") == before
    assert json.loads(grant(repository, "--list", "--json")[1])["commit"] is None


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("closed.example", "rule 'closed' (policy/policy.yaml:3:9) denies it, and no grant overrides a deny"),
        ("*", "too wide for a grant"),
    ],
)
def test_what_one_gateway_refuses_is_not_pushed(repository: Repository, target: str, why: str) -> None:
    before = served(repository, "rev-parse", "main")
    status, output = to_agents(repository, target)
    assert status == 1
    assert why in output
    assert served(repository, "rev-parse", "main") == before


def test_nothing_is_pushed_without_a_key_or_to_what_is_no_repository(repository: Repository, tmp_path: Path) -> None:
    before = served(repository, "rev-parse", "main")
    words = ("a.example", "--client", "agents", "--for", "2h", "--reason", "x")
    unsigned = CliRunner().invoke(main, ["grant", "--fleet", str(repository.served), *words])
    assert unsigned.exit_code == 1
    assert "git commit failed" in unsigned.output
    nowhere = CliRunner().invoke(main, ["grant", "--fleet", str(tmp_path / "nowhere"), *words])
    assert "git clone failed" in nowhere.output
    other = CliRunner().invoke(main, ["grant", "--fleet", str(repository.served), "--path", "../x", *words])
    assert "has no folder '../x'" in other.output
    assert served(repository, "rev-parse", "main") == before


def test_a_repository_leads_the_command_to_no_file_of_the_person(repository: Repository, tmp_path: Path) -> None:
    target = tmp_path / "of-the-person.yaml"
    target.write_text("version: 1\n")
    (repository.folder / "policy/fleet-grants.yaml").symlink_to(target)
    repository.commit()
    status, output = to_agents(repository, "a.example")
    assert status == 1, output
    assert target.read_text() == "version: 1\n"


def test_nothing_is_pushed_that_a_gateway_would_not_load(repository: Repository) -> None:
    to_agents(repository, "a.example")
    repository.git("pull", "-q", str(repository.served), "main")
    policy = repository.folder / "policy/policy.yaml"
    policy.write_text(policy.read_text().replace("agents:", "builders:"))
    before = repository.commit()
    status, output = grant(repository, "b.example", "--client", "builders", "--for", "2h", "--reason", "x")
    assert status == 1
    assert "policy would not load on a gateway" in output
    assert "policy/fleet-grants.yaml:" in output
    assert served(repository, "rev-parse", "main").strip() == before
    assert grant(repository, "--revoke", "grant-a-example")[0] == 0


def test_a_branch_that_moves_meanwhile_is_not_overwritten(repository: Repository) -> None:
    hook = repository.served / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho moved >&2\nexit 1\n")
    hook.chmod(0o755)
    status, output = to_agents(repository, "a.example")
    assert status == 1
    assert "git push failed" in output
