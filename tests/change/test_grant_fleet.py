"""`squidkeeper grant --fleet`: a grant for all gateways is a signed commit, and nothing
else changes.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.services.pulling.git_command import what_git_told

from ..pull_servers import GIT_ENVIRONMENT, Repository, allowed_signer, make_key

pytestmark = pytest.mark.system

WORDS = ("a.example", "--client", "agents", "--for", "2h", "--reason", "Ticket 7")

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
    made = Repository.make(
        tmp_path / "work", make_key(tmp_path / "key"), tmp_path / "served.git"
    )
    made.write("policy/policy.yaml", POLICY)
    made.write("local.yaml", LOCAL)
    made.commit()
    (tmp_path / "signers").write_text(
        allowed_signer(made.key, options='namespaces="git"')
    )
    return made


def run(repository: Repository, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        main, ["grant", "--fleet", str(repository.served), *words]
    )
    return done.exit_code, done.output


def grant(repository: Repository, *words: str) -> tuple[int, str]:
    signers = repository.served.with_name("signers")
    return run(
        repository,
        "--key",
        str(repository.key),
        "--allowed-signers",
        str(signers),
        *words,
    )


def to_agents(repository: Repository, target: str) -> tuple[int, str]:
    return grant(
        repository, target, "--client", "agents", "--for", "2h", "--reason", "Ticket 7"
    )


def served(repository: Repository, *arguments: str) -> str:
    command = ["git", "-C", str(repository.served), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_grant_is_one_signed_commit_of_one_file(
    repository: Repository, tmp_path: Path
) -> None:
    status, output = to_agents(repository, "a.example")
    assert status == 0, output
    assert re.match(
        r"Granted grant-a-example until .* UTC \(2 h\), in policy/fleet-grants\.yaml:\n",
        output,
    )
    tip = served(repository, "rev-parse", "main").strip()
    in_force = "Each gateway whose ceiling allows it has it in force once it has pulled this commit."
    assert output.splitlines()[-1] == f"Pushed {tip}. {in_force}"
    assert served(repository, "log", "--format=%s", "--name-only", "-1", "main").split(
        "\n\n"
    ) == [
        "Grant grant-a-example",
        "policy/fleet-grants.yaml\n",
    ]
    verify = (
        "-c",
        "gpg.format=ssh",
        "-c",
        f"gpg.ssh.allowedSignersFile={tmp_path}/signers",
        "verify-commit",
        "main",
    )
    served(repository, *verify)
    repository.git("pull", "-q", str(repository.served), "main")
    loaded = load(repository.folder / "policy", datetime.now(UTC)).compiled.source
    assert [(one.name, one.owner) for one in loaded.grants] == [
        ("grant-a-example", GIT_ENVIRONMENT["GIT_AUTHOR_NAME"])
    ]


def test_the_policys_tests_do_not_count_a_grant_however_long_it_holds(
    repository: Repository,
) -> None:
    status, output = grant(
        repository, "a.example", "--client", "agents", "--for", "30d", "--reason", "x"
    )
    assert status == 0, output


def test_grants_of_all_gateways_are_listed_revoked_and_pruned(
    repository: Repository,
) -> None:
    to_agents(repository, "a.example")
    to_agents(repository, "b.example")
    assert [
        line.split(":")[0]
        for line in grant(repository, "--list")[1].splitlines()
        if line[0] != " "
    ] == [
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
        (
            "closed.example",
            "rule 'closed' (policy/policy.yaml:3:9) denies it, and no grant overrides a deny",
        ),
        ("*", "too wide for a grant"),
    ],
)
def test_what_one_gateway_refuses_is_not_pushed(
    repository: Repository, target: str, why: str
) -> None:
    before = served(repository, "rev-parse", "main")
    status, output = to_agents(repository, target)
    assert status == 1
    assert why in output
    assert served(repository, "rev-parse", "main") == before


def test_nothing_is_pushed_without_a_key_or_to_what_is_no_repository(
    repository: Repository, tmp_path: Path
) -> None:
    before = served(repository, "rev-parse", "main")
    status, output = run(
        repository, "--allowed-signers", str(tmp_path / "signers"), *WORDS
    )
    assert (status, "git commit failed" in output) == (1, True), output
    assert "has no folder '../x'" in grant(repository, "--path", "../x", *WORDS)[1]
    nowhere = CliRunner().invoke(
        main, ["grant", "--fleet", str(tmp_path / "nowhere"), *WORDS]
    )
    assert "git clone failed" in nowhere.output
    assert served(repository, "rev-parse", "main") == before


def unsigned(repository: Repository, tmp_path: Path) -> str:
    return "it is not signed"


def of_another(repository: Repository, tmp_path: Path) -> str:
    repository.key = make_key(tmp_path / "other")
    return "it is signed by a key that is none of an allowed signer"


def by_a_key_whose_time_is_over(repository: Repository, tmp_path: Path) -> str:
    line = allowed_signer(repository.key, options='valid-before="20200101Z"')
    (tmp_path / "signers").write_text(line)
    return "or whose time is over"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (unsigned, WORDS),
        (unsigned, ("--revoke", "grant-b-example")),
        (unsigned, ("--prune",)),
        (unsigned, ("--list",)),
        (of_another, WORDS),
        (by_a_key_whose_time_is_over, WORDS),
    ],
)
def test_nothing_is_signed_on_top_of_a_tip_that_gateways_refuse(
    repository: Repository,
    tmp_path: Path,
    how: Callable[[Repository, Path], str],
    words: tuple[str, ...],
) -> None:
    repository.write(
        "policy/policy.yaml", POLICY.replace("action: deny", "action: allow")
    )
    person, why = repository.key, how(repository, tmp_path)
    tip = repository.commit(
        signed=how is not unsigned, environment={"GIT_AUTHOR_NAME": "Mallory\x1b[2J"}
    )
    repository.key = person
    status, output = grant(repository, *words)
    assert status == 1, output
    assert (
        f"commit {tip} by Mallory\\x1b[2J <a@example.com>, the tip of main, is refused: "
        in output
    )
    assert why in output
    assert ("None of the last 2 commits is signed by" in output) == (
        how is by_a_key_whose_time_is_over
    )
    assert served(repository, "rev-parse", "main").strip() == tip


def test_the_command_that_a_refusal_names_drops_all_that_is_unsigned(
    repository: Repository,
) -> None:
    """Of two unsigned commits, the second shows, and the first may be the one that
    matters.
    """
    signed = repository.git("rev-parse", "HEAD")
    repository.write(
        "policy/policy.yaml", POLICY.replace("action: deny", "action: allow")
    )
    repository.commit(signed=False)
    repository.write("policy/more.yaml", "broken")
    tip = repository.commit(signed=False)
    output = to_agents(repository, "closed.example")[1]
    assert f"(git diff {signed}..{tip})" in output
    command = re.search(r"\(git (restore .*) && git (commit -S)\)", output)
    assert command
    repository.git(*command[1].split())
    repository.git(*command[2].split(), "-m", "Restore")
    repository.push()
    assert repository.git("diff", signed, "HEAD") == ""
    assert repository.git("log", "--format=%P", "-1") == tip, (
        "nothing between is signed"
    )
    assert "rule 'closed'" in to_agents(repository, "closed.example")[1]


def test_nothing_is_pushed_that_is_signed_by_a_key_of_nobody(
    repository: Repository, tmp_path: Path
) -> None:
    before = served(repository, "rev-parse", "main")
    repository.key = make_key(tmp_path / "other")
    status, output = to_agents(repository, "a.example")
    assert status == 1
    assert (
        "gateways would refuse the new commit: it is signed by a key that is none of an allowed signer"
        in output
    )
    assert f"sign with a key that {tmp_path / 'signers'} allows (--key FILE)" in output
    assert served(repository, "rev-parse", "main") == before


def test_who_may_sign_is_what_git_has_unless_an_option_says_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("--key", str(repository.key))
    status, output = run(repository, *key, *WORDS)
    assert status == 1
    assert (
        "by --allowed-signers FILE or `git config --global gpg.ssh.allowedSignersFile FILE`"
        in output
    )
    (tmp_path / "gitconfig").write_text('[gpg "ssh"]\nallowedSignersFile = ~/signers\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))
    status, output = run(repository, *key, *WORDS)
    assert status == 0, output


def test_a_repository_leads_the_command_to_no_file_of_the_person(
    repository: Repository, tmp_path: Path
) -> None:
    target = tmp_path / "of-the-person.yaml"
    target.write_text("version: 1\n")
    (repository.folder / "policy/fleet-grants.yaml").symlink_to(target)
    repository.commit()
    status, output = to_agents(repository, "a.example")
    assert status == 1, output
    assert target.read_text() == "version: 1\n"


def test_a_repository_without_the_names_of_secrets_is_told_where_they_belong(
    repository: Repository,
) -> None:
    (repository.folder / "local.yaml").unlink()
    repository.commit()
    status, output = to_agents(repository, "a.example")
    assert (status, "or of local.yaml beside its folder" in output) == (1, True), output


def test_nothing_is_pushed_that_a_gateway_would_not_load(
    repository: Repository,
) -> None:
    to_agents(repository, "a.example")
    repository.git("pull", "-q", str(repository.served), "main")
    policy = repository.folder / "policy/policy.yaml"
    policy.write_text(policy.read_text().replace("agents:", "builders:"))
    before = repository.commit()
    status, output = grant(
        repository, "b.example", "--client", "builders", "--for", "2h", "--reason", "x"
    )
    assert status == 1
    assert "policy would not load on a gateway" in output
    assert "policy/fleet-grants.yaml:" in output
    assert served(repository, "rev-parse", "main").strip() == before
    assert grant(repository, "--revoke", "grant-a-example")[0] == 0


def test_a_branch_that_moves_meanwhile_is_not_overwritten(
    repository: Repository,
) -> None:
    hook = repository.served / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho moved >&2\nexit 1\n")
    hook.chmod(0o755)
    status, output = to_agents(repository, "a.example")
    assert status == 1
    assert (
        "git push failed: remote: moved; ! [remote rejected] HEAD -> main (pre-receive hook declined); "
        in output
    )


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (
            "To ssh://git.example/p\n ! [rejected]        HEAD -> main (fetch first)\n"
            "error: failed to push some refs to 'ssh://git.example/p'\nhint: Updates\nhint: See the 'Note'\n",
            "! [rejected]        HEAD -> main (fetch first)",
        ),
        (
            "warning: Could not find remote branch gone to clone.\nfatal: Remote branch gone not found\n"
            "fatal: the remote end hung up unexpectedly\n",
            "warning: Could not find remote branch gone to clone.; fatal: Remote branch gone not found",
        ),
        (
            "fatal: the remote end hung up unexpectedly\n",
            "fatal: the remote end hung up unexpectedly",
        ),
        ("", ""),
    ],
)
def test_of_what_git_says_the_lines_that_tell_are_shown(
    messages: str, told: str
) -> None:
    assert what_git_told(messages) == told
