"""Tokens of clients, added to and removed from the policy's files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.base.errors import EditRefused
from squidkeeper.cli import main
from squidkeeper.policy.language.model import Client, Token
from squidkeeper.policy.policy_edit import add_token, remove_tokens
from squidkeeper.policy.policy_store.loading import load

from ..conftest import NOW

ONE, TWO = Token.of("one"), Token.of("two", NOW + timedelta(hours=2))
RULES = """
# --- rules: nothing below changes
rules:
    - {name: a,   action: allow, hosts: [a.example,
         b.example], expires: 2027-12-01 18:00:00+01:00}   # odd, and legal
"""
FLOW = """clients:   # all
  ci: {networks: [192.0.2.0/24]}   # first
  # and
  b: {users: [x]}
"""
BLOCK = """clients:
    # who
    ci:
        networks: [192.0.2.0/24]
        # here
    b:
        users: [x]
        # there
"""
POLICIES = {
    "none": f"version: 1\n{RULES}",
    "no newline": "version: 1\ndefaults: {action: deny}",
    "with an end": f"version: 1\n{RULES}end: true\n",
    "flow": f"version: 1\n{FLOW}{RULES}",
    "block": f"version: 1\n{BLOCK}{RULES}",
    "one token": f"version: 1\nclients:\n  ci:\n    token_sha256: {Token.of('old').sha256}  # the laptop\n{RULES}",
    "tokens": f"version: 1\nclients: {{ci: {{token_sha256: [{Token.of('old').sha256}]}}}}\n{RULES}",
    "all in one line": "{version: 1, clients: {b: {users: [x]}}}\n",
}


def policy_of(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "policy.yaml").write_text(text)
    return folder


def client_of(folder: Path, name: str = "ci") -> Client:
    return next(
        client
        for client in load(folder, NOW).compiled.source.clients
        if client.name == name
    )


@pytest.mark.parametrize("text", POLICIES.values(), ids=POLICIES)
def test_tokens_are_added_and_revoked_and_every_comment_stays(
    tmp_path: Path, text: str
) -> None:
    folder = policy_of(tmp_path, text)
    before = [client.name for client in load(folder, NOW).compiled.source.clients]
    kept = client_of(folder) if "ci" in before else None
    for token in (ONE, TWO):
        assert add_token(folder, "ci", token, (), NOW) == folder / "policy.yaml"
    client, written = client_of(folder), (folder / "policy.yaml").read_text()
    assert client.tokens == (*((kept and kept.tokens) or ()), ONE, TWO)
    assert client.networks == (kept and kept.networks)
    for comment in re.findall(r"#.*", text):
        assert comment in written
    assert written.endswith(RULES) == text.endswith(RULES) or "clients" not in text
    assert remove_tokens(folder, "ci", ONE.id, NOW) == (ONE.id,)
    assert TWO in (client_of(folder).tokens or ())
    assert TWO.id in remove_tokens(folder, "ci", None, NOW)
    # not None: networks alone would open what the token did
    assert client_of(folder).tokens == ()
    assert {client.name for client in load(folder, NOW).compiled.source.clients} == {
        *before,
        "ci",
    }


def test_a_new_client_gets_its_networks_and_a_known_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    folder = policy_of(tmp_path, POLICIES["none"])
    add_token(folder, "ci", ONE, ("192.0.2.0/24",), NOW)
    assert [str(network) for network in client_of(folder).networks or ()] == [
        "192.0.2.0/24"
    ]
    with pytest.raises(EditRefused, match="in the policy already"):
        add_token(folder, "ci", TWO, ("198.51.100.0/24",), NOW)


@pytest.mark.parametrize(
    ("name", "text", "networks", "problem"),
    [
        ("a:b", POLICIES["none"], (), "no program can log in as 'a:b'"),
        ("ci", POLICIES["none"], ("192.0.2.1/24",), "does not load with this change"),
        ("b", POLICIES["flow"], (), "'users' beside 'token_sha256'"),
        ("ci", "version: 1\nrulez: []\n", (), "fix it first"),
        (
            "ci",
            "version: 1\nclients: {b: {users: &x [x]}}\nrules: []\n",
            (),
            "fix it first",
        ),
    ],
)
def test_an_edit_that_would_not_load_changes_nothing(
    tmp_path: Path, name: str, text: str, networks: tuple[str, ...], problem: str
) -> None:
    folder = policy_of(tmp_path, text)
    with pytest.raises(EditRefused, match=problem):
        add_token(folder, name, ONE, networks, NOW)
    assert (folder / "policy.yaml").read_text() == text
    assert [file.name for file in folder.iterdir()] == ["policy.yaml"]


def test_what_is_not_there_cannot_be_revoked(tmp_path: Path) -> None:
    folder = policy_of(tmp_path, POLICIES["tokens"])
    for name, token in (("ci", ONE.id), ("nobody", None)):
        with pytest.raises(EditRefused, match="has no token"):
            remove_tokens(folder, name, token, NOW)


def test_owner_mode_and_links_stay(tmp_path: Path) -> None:
    folder, file = (
        policy_of(tmp_path / "policy", POLICIES["none"]),
        tmp_path / "real.yaml",
    )
    (folder / "policy.yaml").rename(file)
    (folder / "policy.yaml").symlink_to(file)
    file.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(file, 1, 2)
    owner = (file.stat().st_uid, file.stat().st_gid)
    add_token(folder, "ci", ONE, (), NOW)
    state = file.stat()
    assert (folder / "policy.yaml").is_symlink()
    assert (state.st_mode & 0o777, state.st_uid, state.st_gid) == (0o604, *owner)


def squidkeeper(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "squidkeeper", *words],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_client_that_needed_no_login_gets_the_way_back(tmp_path: Path) -> None:
    folder = policy_of(tmp_path, POLICIES["flow"])
    told = [
        CliRunner().invoke(main, ["client", verb, "ci", "--policy", str(folder)]).stderr
        for verb in ("add", "add", "remove")
    ]
    assert ["remove `token_sha256` of ci" in text for text in told] == [
        True,
        False,
        True,
    ]


@pytest.mark.system
def test_the_command_prints_a_token_once_and_the_policy_has_its_hash_alone(
    tmp_path: Path,
) -> None:
    folder = policy_of(tmp_path, POLICIES["none"])
    made = squidkeeper("client", "add", "ci", "--for", "2h", "--policy", folder)
    text = made.stdout.strip()
    assert re.fullmatch(r"sqk_[\w-]{43}", text)
    assert text not in made.stderr
    assert made.stderr.endswith(
        f"squidkeeper env --policy {folder} --client ci --token-file FILE\n"
    )
    assert text not in (folder / "policy.yaml").read_text()
    [token] = client_of(folder).tokens or ()
    assert token.sha256 == Token.of(text).sha256
    listed = squidkeeper("client", "list", "--policy", folder).stdout
    assert listed.startswith(f"ci (any network)\n  {token.id}, expires in ")
    assert (
        squidkeeper("client", "remove", "ci", "--policy", folder).stdout
        == f"Client ci: revoked {token.id}\n"
    )
    assert (
        "nobody can log in" in squidkeeper("client", "list", "--policy", folder).stdout
    )
    gateway = tmp_path / "gateway"
    shutil.copytree(folder, gateway / "etc/policy")
    made = squidkeeper("client", "add", "ci", "--policy", gateway / "etc/policy")
    assert made.stderr.endswith(
        f"{gateway}/bin/squidkeeper env --client ci --token-file FILE\n"
    )
    wrong = squidkeeper("client", "add", "ci", "--for", "soon", "--policy", folder)
    assert (wrong.returncode, wrong.stdout) == (2, "")
