"""`squidkeeper session import`: which clients a session can stand for."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from squidkeeper.cli import main

from ..conftest import write_policy

HASH = "0123456789abcdef" * 4
POLICY = """
session_networks: [10.20.0.0/16, "2001:db8::/32"]
roles: {agent: {variables: {repo: {type: path, pattern: "[a-z]+"}}}}
rules: [{name: r, action: allow, clients: [agent], hosts: [a.example], paths: ["/{session.repo}"]}]
"""
CLIENTS = f"""
clients:
  address: {{networks: [10.20.0.7]}}
  subnet: {{networks: ["2001:db8:0:1::/64"]}}
  token: {{token_sha256: {HASH}}}
  both: {{networks: [10.20.0.8], token_sha256: {HASH.replace("0", "1")}}}
"""
OTHERS = {
    "{users: [u]}": "it has `users`, and a session logs in by its own name",
    "{networks: [10.20.0.1], connections: own}": "it has `connections`, which no role has",
    "{token_sha256: []}": "it has 0 tokens, and a session has one",
    f"{{token_sha256: [{HASH[::-1]}, {'f' * 64}]}}": "it has 2 tokens, and a session has one",
    f"{{token_sha256: [{{sha256: {'e' * 64}, expires: 2020-01-01T00:00:00Z}}]}}": (
        "its token has expired, or does in a minute"
    ),
    "{networks: [10.20.1.0/24]}": "it has 10.20.1.0/24, and a session has one address, or an IPv6 /64",
    "{networks: [10.20.0.1, 10.20.0.2]}": (
        "it has 10.20.0.1/32, 10.20.0.2/32, and a session has one address, or an IPv6 /64"
    ),
    "{networks: [192.0.2.1]}": "192.0.2.1/32 is not within session_networks: add it there first",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "policy"


def imported(directory: Path, *options: object) -> Result:
    given = ("session", "import", "--policy", directory, *options)
    return CliRunner().invoke(main, [*map(str, given)])


def test_each_command_makes_the_session_of_its_client(directory: Path) -> None:
    write_policy(directory, POLICY + CLIENTS)
    found = imported(directory, "--role", "agent", "--variable", "repo=app")
    assert (found.exit_code, found.stderr) == (0, "")
    commands = [shlex.split(line) for line in found.stdout.splitlines()]
    rest = ["--variable", "repo=app"]
    shown = [command[3:] for command in commands]
    made = {name: options for name, *options in shown}
    assert {name: options[2:-2] for name, options in made.items()} == {
        "address": ["--address", "10.20.0.7"],
        "subnet": ["--address", "2001:db8:0:1::/64"],
        "token": ["--token-hash", HASH],
        "both": ["--address", "10.20.0.8", "--token-hash", HASH.replace("0", "1")],
    }
    assert {(*options[:2], *options[-2:]) for options in made.values()} == {
        ("--role", "agent", *rest)
    }
    only = imported(
        *(directory, "--role", "agent", "--variable", "repo=app", "--client", "token")
    )
    assert only.stdout.count("\n") == 1


@pytest.mark.parametrize(("client", "why"), OTHERS.items())
def test_a_client_that_no_session_can_stand_for_is_told_with_the_reason(
    directory: Path, client: str, why: str
) -> None:
    write_policy(directory, f"{POLICY}\nclients: {{vm: {client}}}")
    found = imported(directory, "--role", "agent", "--variable", "repo=app")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == (
        f"vm: {why}\n1 client of 1 not printed: leave them in the policy.\n"
    )


def test_no_session_outlives_the_token_of_its_client(directory: Path) -> None:
    for hours, ttl in ((2, True), (12, False)):  # the role has 8 hours
        ends = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        token = f"{{sha256: {HASH}, expires: {ends}}}"
        write_policy(
            directory, f"{POLICY}\nclients: {{vm: {{token_sha256: [{token}]}}}}"
        )
        found = imported(directory, "--role", "agent", "--variable", "repo=app")
        assert found.exit_code == 0
        assert (re.search(r" --ttl 11[0-9]m$", found.stdout) is not None) is ttl


def test_a_name_that_no_session_can_have_is_told(directory: Path) -> None:
    write_policy(directory, f"{POLICY}\nclients: {{a b: {{networks: [10.20.0.1]}}}}")
    found = imported(directory, "--role", "agent", "--variable", "repo=app")
    assert "a b: a session cannot have this name\n" in found.stderr


def test_values_that_the_role_does_not_take_are_refused(directory: Path) -> None:
    write_policy(directory, POLICY + CLIENTS)
    for options in (["--role", "agent"], ["--role", "no"]):
        found = imported(directory, *options)
        assert (found.exit_code, found.stdout) == (2, "")
