"""The values of secrets that sessions bring, each for its own requests alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from squidkeeper.base.errors import SessionValueMissing
from squidkeeper.policy.engine import CompiledPolicy, HostMatch
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.lines import Reply, Result, parse_tokens
from squidkeeper.policy.protocol.request import (
    REQUEST_TOKENS,
    Malformed,
    parse_request,
)
from squidkeeper.policy.protocol.request_headers import READ_HEADERS
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.brought_values import brought_values_folder
from squidkeeper.serving.credentials.watched_values import WatchedValues
from squidkeeper.serving.helpers import credential, watch
from squidkeeper.serving.helpers.credential import Injector
from squidkeeper.serving.helpers.rewrite import Rewriter, answer
from squidkeeper.serving.helpers.watch import Watch

from ..conftest import write_policy
from .test_helpers import compiled_in

POLICY = """
defaults: {watch_secrets: true}
session_networks: [10.20.0.0/16]
roles: {agent: {ttl: 8h}}
rules: [{name: agents, action: allow, clients: [agent], hosts: [a.example, q.example, s.example]}]
secrets:
  git: {session: true, hosts: [a.example, q.example, s.example]}
  id: {session: true, hosts: [s.example]}
  shared: {file: shared}
credentials:
  - {name: git, clients: [agent], hosts: [a.example], paths: [/git/**], basic: {username: x, password: git}}
  - {name: both, clients: [agent], hosts: [a.example], paths: [/both/**], headers: {X-Api-Key: "{git}:{shared}"}}
  - {name: shared, clients: [agent], hosts: [a.example], paths: [/shared/**], bearer: shared}
  - {name: query, clients: [agent], hosts: [q.example], parameters: {key: "{git}"}}
  - {name: aws, clients: [agent], hosts: [s.example], aws_sigv4: {access_key_id: id, secret_access_key: git, region: r}}
"""
# by the last number of the address
SESSIONS = {number: Session(number, f"vm-{number}", "agent", {}) for number in (1, 2)}
ONE, TWO, NOBODY = "10.20.0.1", "10.20.0.2", "10.20.0.3"
HEADERS = " ".join(["-"] * len(READ_HEADERS))


class Matches:
    """What a policy holds for the requests of two sessions and of none."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy

    def find(self, tokens: bytes) -> HostMatch:
        request = parse_request(parse_tokens(tokens, (REQUEST_TOKENS,)))
        assert not isinstance(request, Malformed)
        assert request.client
        session = SESSIONS.get(int(request.client.text.rpartition(".")[2]))
        return self._policy.match(request._replace(session=session))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = brought_values_folder(tmp_path / "run")
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> CompiledPolicy:
    directory = write_policy(tmp_path / "policy", POLICY)
    (directory / "shared").write_text("of-the-gateway\n")
    (directory / "shared").chmod(0o600)
    return compiled_in(directory)


@pytest.fixture
def injector(policy: CompiledPolicy, folder: Path) -> Injector:
    injector = Injector(policy, brought=folder)
    injector._matches = Matches(policy)  # type: ignore[assignment]
    return injector


def bring(folder: Path, number: int, values: Mapping[str, str]) -> None:
    new = folder / f".{number}"
    new.write_text(json.dumps(values))
    new.rename(folder / str(number))


def place(client: str, host: str) -> str:
    return f"{client} - GET https {host} 443 {host} {host}%3A443 -"


def asked(injector: Injector, client: str, url: str) -> Reply:
    line = f"{place(client, url.split('/')[2])} {url} - - {HEADERS}"
    return credential.answer(injector, line.encode(), 4, with_headers=True)


def authorization(reply: Reply) -> str:
    assert reply.result is Result.OK, reply
    return dict(reply.annotations)["authorization_"]


GIT, SHARED = "https://a.example/git/x", "https://a.example/shared/x"


def test_each_session_gets_its_own_value_and_a_new_one_at_once(
    injector: Injector, folder: Path
) -> None:
    bring(folder, 1, {"git": "of-one"})
    bring(folder, 2, {"git": "of-two"})
    found = [authorization(asked(injector, at, GIT)) for at in (ONE, TWO, ONE)]
    assert found == ["Basic eDpvZi1vbmU=", "Basic eDpvZi10d28=", "Basic eDpvZi1vbmU="]
    bring(folder, 1, {"git": "of-one-later"})
    assert authorization(asked(injector, ONE, GIT)) == "Basic eDpvZi1vbmUtbGF0ZXI="
    assert authorization(asked(injector, TWO, GIT)) == "Basic eDpvZi10d28="


def test_a_change_of_a_session_forgets_no_reply_of_others(
    injector: Injector, folder: Path
) -> None:
    kept = asked(injector, TWO, SHARED)
    for value in ("first", "second"):
        bring(folder, 1, {"git": value})
        asked(injector, ONE, GIT)
    assert asked(injector, TWO, SHARED) is kept
    assert asked(injector, ONE, SHARED) is kept
    assert "second" not in str([*injector._replies.values()])


CONTENTS: dict[str, Mapping[str, str] | bytes | None] = {
    "no file": None,
    "no name": {"other": "value"},
    "an empty value": {"git": ""},
    "a header of its own": {"git": "x\r\nX-Api-Key: y"},
    "no JSON": b"{",
    "no object of texts": b'{"git": 1}',
}


@pytest.mark.parametrize("what", CONTENTS)
def test_without_a_value_the_request_is_denied(
    injector: Injector, folder: Path, what: str
) -> None:
    content = CONTENTS[what]
    bring(folder, 2, {"git": "of-two"})
    if isinstance(content, bytes):
        (folder / "1").write_bytes(content)
    elif content is not None:
        bring(folder, 1, content)
    reply = asked(injector, ONE, GIT)
    notes = dict(reply.annotations)
    assert (reply.result, notes["rule_"]) == (Result.ERR, "credential-unavailable")
    is_there = what in ("an empty value", "a header of its own")
    assert (reply.message or "").startswith("secrets-missing: ") != is_there
    assert "of-two" not in str(reply)
    assert authorization(asked(injector, TWO, GIT)) == "Basic eDpvZi10d28="


def test_a_link_and_a_pipe_are_no_values(injector: Injector, folder: Path) -> None:
    bring(folder, 2, {"git": "of-two"})
    (folder / "1").symlink_to("2")
    assert asked(injector, ONE, GIT).result is Result.ERR
    (folder / "1").unlink()
    os.mkfifo(folder / "1")
    assert asked(injector, ONE, GIT).result is Result.ERR


def test_a_request_of_no_session_gets_no_value(
    policy: CompiledPolicy, folder: Path
) -> None:
    bring(folder, 1, {"git": "of-one"})
    store = SecretStore(policy.source.secrets, {}, brought=folder)
    with pytest.raises(SessionValueMissing):
        store.get("git")
    assert store.get("git", 1).reveal() == "of-one"
    assert store.problem("git") is None


def test_every_form_of_a_credential_takes_the_value_of_the_session(
    injector: Injector, policy: CompiledPolicy, folder: Path
) -> None:
    bring(folder, 1, {"git": "of-one", "id": "key-of-one"})
    bring(folder, 2, {"git": "of-two", "id": "key-of-two"})
    both = asked(injector, ONE, "https://a.example/both/x")
    assert dict(both.annotations)["x_api_key_"] == "of-one:of-the-gateway"
    signed = [asked(injector, at, "https://s.example/x") for at in (ONE, TWO)]
    keys = [authorization(reply).partition("/")[0] for reply in signed]
    assert [key.rpartition("=")[2] for key in keys] == ["key-of-one", "key-of-two"]
    rewriter = Rewriter(policy, brought=folder)
    rewriter.matches = Matches(policy)  # type: ignore[assignment]
    url = "https://q.example/x"
    sent = [
        dict(answer(rewriter, f"{url} {place(at, 'q.example')}".encode()).annotations)
        for at in (ONE, TWO, NOBODY)
    ]
    assert "key=of-one" in str(sent[0])
    assert "key=of-two" in str(sent[1])
    assert "key=" not in str(sent[2])


def test_a_request_is_searched_for_what_its_own_session_has_brought(
    policy: CompiledPolicy, folder: Path
) -> None:
    watching = Watch(policy, WatchedValues(), brought=folder)
    watching._matches = Matches(policy)  # type: ignore[assignment]

    def rule(client: str, value: str) -> str | None:
        line = f"{place(client, 'a.example')} https://a.example/{value} {HEADERS}"
        reply = watch.answer(watching, line.encode())
        return dict(reply.annotations).get("rule_")

    bring(folder, 1, {"git": "a-long-value-of-one"})
    bring(folder, 2, {"git": "a-long-value-of-two", "unknown": "something-else"})
    assert rule(ONE, "a-long-value-of-one") == "secret-leaving"
    assert rule(ONE, "a-long-value-of-two") is None
    assert rule(TWO, "a-long-value-of-two") == "secret-leaving"
    assert rule(TWO, "something-else") is None
    assert rule(NOBODY, "a-long-value-of-one") is None
    bring(folder, 1, {"git": "another-value-of-one"})
    assert rule(ONE, "another-value-of-one") == "secret-leaving"
    assert rule(ONE, "a-long-value-of-one") == "secret-leaving"
