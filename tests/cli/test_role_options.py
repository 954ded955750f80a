"""The session that `explain`, `brief` and `probe` assume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main

from ..conftest import write_policy

POLICY = """
clients: {dev: {networks: [192.0.2.0/24]}}
roles:
  agent:
    variables:
      repo: {type: path, pattern: "[a-z]+/[a-z]+", many: 2}
      docs: {type: hosts, within: [.example], many: 2}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [github.com], paths: ["/{session.repo}/**"]}
  - {name: docs, action: allow, clients: [agent], hosts: ["{session.docs}"], methods: [GET]}
  - {name: dev, action: allow, clients: [dev], hosts: [dev.example]}
"""
SESSION = ["--role", "agent", "--variable", "repo=acme/app", "--variable"]
SESSION += ["repo=acme/lib", "--variable", "docs=a.example"]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "policy", POLICY)


def explained(policy: Path, url: str, *options: str) -> tuple[int, str]:
    said = CliRunner().invoke(
        main, ["explain", "--policy", str(policy), *options, "GET", url]
    )
    return said.exit_code, said.output


@pytest.mark.parametrize(
    ("url", "exit_code", "rule"),
    [
        ("https://github.com/acme/app/x", 0, "clone"),
        ("https://github.com/acme/lib/x", 0, "clone"),
        ("https://github.com/acme/other/x", 1, "default"),
        ("https://a.example/", 0, "docs"),
        ("https://b.example/", 1, "default"),
        ("https://dev.example/", 1, "default"),
    ],
)
def test_explain_decides_for_a_session(
    policy: Path, url: str, exit_code: int, rule: str
) -> None:
    said = explained(policy, url, "--json", *SESSION)
    assert said[0] == exit_code
    told = json.loads(said[1])
    assert told["rule"] == rule
    assert told["session"] == {
        "role": "agent",
        "variables": {"repo": ["acme/app", "acme/lib"], "docs": ["a.example"]},
    }


def test_explain_says_what_a_session_does_not_name(policy: Path) -> None:
    _, told = explained(policy, "https://b.example/", *SESSION)
    assert "session      role agent; repo acme/app, acme/lib; docs a.example" in told
    assert "passed over  docs (" in told
    assert "): hosts did not hold" in told
    assert explained(policy, "https://github.com/acme/app/x")[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--role", "agnt"], "'agnt' is not a role of the policy, which has agent"),
        (["--variable", "repo=x"], "--variable is for --role"),
        (["--role", "agent", "--variable", "repo"], "'repo' is not NAME=VALUE"),
        (["--role", "agent", "--variable", "repo=acme/app"], "docs has no value"),
        ([*SESSION, "--variable", "repo=*"], "3 values, expected 1 to 2"),
        ([*SESSION[:3], "repo=*", *SESSION[-2:]], "holds '*'"),
    ],
)
def test_a_session_that_cannot_be_is_refused(
    policy: Path, options: list[str], message: str
) -> None:
    exit_code, told = explained(policy, "https://a.example/", *options)
    assert exit_code == 2
    assert message in " ".join(told.split())


def test_a_brief_has_the_values_of_a_session(policy: Path) -> None:
    said = CliRunner().invoke(main, ["brief", "--policy", str(policy), *SESSION])
    assert said.exit_code == 0
    assert "`/acme/app/**`, `/acme/lib/**`" in said.output
    assert "`a.example`; methods `GET`" in said.output
    assert "{session." not in said.output
    assert "dev.example" not in said.output
