"""The environment of a VM of a session: the proxy is right, or is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from squidkeeper.base.places import sessions_folder
from squidkeeper.cli import main
from squidkeeper.cli.sessions import _client_side
from squidkeeper.serving.sessions.store import SessionStore

from ..conftest import write_policy
from ..serving.sessions_made import new

POLICY = """
session_networks: [127.0.0.0/8, 192.168.137.0/24]
roles: {agent: {variables: {repo: {type: path, pattern: ".*"}}}}
"""
TOKEN = "sqk_of_a_session"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    write_policy(tmp_path / "etc/policy", POLICY)
    made = SessionStore(sessions_folder(tmp_path / "state"))
    with closing(made):
        made.start()
        made.create(new("vm-7", "127.0.0.7/32"))
        made.create(new("vm-8", "192.168.137.8/32"))
        hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
        made.create(new("ci-1", token_sha256=hashed))
        yield made


def env(root: Path, *options: object) -> Result:
    given = ["env", "--root", str(root), *map(str, options)]
    return CliRunner().invoke(main, given)


def listens(root: Path, place: str) -> None:
    (root / "etc/squid.conf").write_text(f"http_port {place} \\\n    ssl-bump\n")


@pytest.mark.parametrize(
    ("listen", "session", "proxy"),
    [
        ("192.0.2.1:3129", "vm-8", "http://192.0.2.1:3129"),
        ("192.0.2.1:3129", "ci-1", "http://ci-1:PASSWORD@192.0.2.1:3129"),
        ("8080", "vm-7", "http://127.0.0.1:8080"),  # its own address among theirs
        ("3129", "vm-8", None),
        ("3129", "ci-1", None),
        ("0.0.0.0:3129", "vm-7", None),
        ("[::]:3129", "vm-7", None),
    ],
)
def test_the_proxy_of_a_session_is_right_or_has_to_be_given(
    tmp_path: Path, store: SessionStore, listen: str, session: str, proxy: str | None
) -> None:
    assert store
    listens(tmp_path, listen)
    found = env(tmp_path, "--session", session)
    if proxy is None:
        assert found.exit_code == 2
        told = " ".join(found.stderr.split())
        assert "give the address that the client uses, as in --proxy http://" in told
        found = env(tmp_path, "--session", session, "--proxy", "http://192.0.2.9:1")
        assert found.exit_code == 0
        assert "192.0.2.9:1\n" in found.stdout
    else:
        assert f"export HTTPS_PROXY={proxy}\n" in found.stdout


def test_a_token_of_the_session_comes_into_the_url_and_no_other(
    tmp_path: Path, store: SessionStore
) -> None:
    assert store
    listens(tmp_path, "192.0.2.1:3129")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    given = ("--session", "ci-1", "--token-file", file)
    url = f"http://ci-1:{TOKEN}@192.0.2.1:3129"
    assert f"export HTTPS_PROXY={url}\n" in env(tmp_path, *given).stdout
    file.write_text("another\n")
    found = env(tmp_path, *given)
    assert (found.exit_code, found.stdout) == (2, "")
    assert "this is no token of the session ci-1" in found.stderr
    assert "another" not in found.stderr


def test_a_session_that_is_not_active_is_refused(
    tmp_path: Path, store: SessionStore
) -> None:
    listens(tmp_path, "192.0.2.1:3129")
    row = store.by_name("vm-7")
    assert row
    store.end(row.number, "deleted")
    found = env(tmp_path, "--session", "vm-7")
    assert found.exit_code == 2
    assert f"session {row.number}, vm-7, is not active: ended " in found.stderr
    found = env(tmp_path, "--session", "vm-8", "--user", "vm")
    assert "--session goes without --client and --user" in found.stderr


@pytest.mark.parametrize(
    ("addresses", "proxy"),
    [
        (["127.0.0.1", "::1", "fe80::1", "192.0.2.1"], "http://192.0.2.1:8080"),
        (["127.0.0.1", "192.0.2.1", "198.51.100.1"], None),
        (["127.0.0.1"], None),
    ],
)
def test_the_answer_of_the_service_has_no_proxy_where_none_is_surely_right(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], proxy: str | None
) -> None:
    monkeypatch.setattr(
        "squidkeeper.services.maintenance.own_addresses.interface_addresses",
        lambda: frozenset(map(ip_address, addresses)),
    )
    side = _client_side(None, 8080, None, "ci-1", "token")
    assert side.proxy == proxy
    assert (side.env is None) is (proxy is None)
    # the port is the one of Squid
    at_home = _client_side(None, 8080, "127.0.0.7/32", None, None)
    assert at_home.proxy == "http://127.0.0.1:8080"
