"""How the helpers decide for sessions: each by its own role and values, at once after
each change, and nothing is inherited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pytest

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Stage,
    decide,
    listed_rules,
    session_of_list,
)
from squidkeeper.policy.language.bodies import GitBody
from squidkeeper.policy.language.model import BUILT_IN_REASONS
from squidkeeper.policy.protocol.lines import Reply, Result
from squidkeeper.policy.protocol.request import parse_request
from squidkeeper.serving.helpers import login
from squidkeeper.serving.helpers.acl import HostScope, RequestScope
from squidkeeper.serving.helpers.credential import Injector
from squidkeeper.serving.helpers.credential import answer as inject
from squidkeeper.serving.sessions.index import SessionIndex
from squidkeeper.serving.sessions.store import FILE, SessionStore
from tests.conftest import compiled_of
from tests.serving.sessions_made import Clock, new

VM, OTHER, OUTSIDE = "192.0.2.1", "192.0.2.2", "203.0.113.9"
TOKEN = "a token of 128 bits"
SHA256 = sha256(TOKEN.encode()).hexdigest()
ID = SHA256[:12]
POLICY = """
session_networks: [192.0.2.0/24]
clients:
  office: {networks: [203.0.113.0/24]}
  all: {networks: [0.0.0.0/0]}
  bosses: {users: [boss]}
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}}}
  reader: {ttl: 8h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: docs, action: allow, clients: [reader, office], hosts: [docs.example]}
  - {name: everybody, action: allow, clients: [all], hosts: [open.example]}
  - {name: bosses, action: allow, clients: [bosses], hosts: [boss.example]}
secrets: {key: {env: SQUIDKEEPER_TEST_KEY}}
credentials:
  - {name: git, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"], bearer: key}
"""


@dataclass
class Gateway:
    """A policy whose helpers follow a store of sessions."""

    policy: CompiledPolicy
    store: SessionStore
    index: SessionIndex
    folder: Path

    def __post_init__(self) -> None:
        self.policy.follow(self.index)
        self.host = HostScope(self.policy)
        self.request = RequestScope(self.policy)

    def at_host(
        self,
        host: str,
        client: str = VM,
        user: str = "-",
        login: str = "-",
        method: str = "GET",
        scheme: str = "https",
        tag: str | None = "",
    ) -> Reply:
        """Answer at host scope; `tag` is the tunnel's, by default that of this
        session.
        """
        return self.host.answer(
            self.line(host, client, user, login, method, scheme, tag) + b" -"
        )

    def line(
        self,
        host: str,
        client: str = VM,
        user: str = "-",
        login: str = "-",
        method: str = "GET",
        scheme: str = "https",
        tag: str | None = "",
    ) -> bytes:
        is_inner = method != "CONNECT" and scheme == "https"
        if tag == "":
            tag = self.tag(host, client, user, login) if is_inner else "-"
        port = 443 if method == "CONNECT" or scheme == "https" else 80
        stated = scheme if method != "CONNECT" else "-"
        parts = (
            client,
            user,
            method,
            stated,
            host,
            port,
            "-",
            quote(tag or "-"),
            login,
        )
        return " ".join(map(str, parts)).encode()

    def tag(
        self, host: str, client: str = VM, user: str = "-", login: str = "-"
    ) -> str:
        """Open a tunnel; return its tag."""
        connect = self.line(host, client, user, login, "CONNECT")
        return dict(self.host.answer(connect + b" -").annotations)["clt_conn_tag"]

    def at_url(self, url: str, client: str = VM, tag: str | None = "") -> Reply:
        scheme, _, host, *_ = url.split("/")
        line = self.line(host, client, scheme=scheme[:-1], tag=tag)
        return self.request.answer(line, url)

    def end(self, name: str) -> None:
        row = self.store.by_name(name)
        assert row
        self.store.end(row.number, "deleted")


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setenv("SQUIDKEEPER_TEST_KEY", "the-value-of-the-key")
    clock, folder = Clock(), tmp_path / "sessions"
    store = SessionStore(folder, clock)
    store.start()
    with closing(store), closing(SessionIndex(folder, clock)) as index:
        yield Gateway(compiled_of(tmp_path, POLICY), store, index, folder)


def rule(reply: Reply) -> str:
    """Name the rule, with a `!` where it denies."""
    denies = "!" if reply.result is Result.ERR else ""
    return denies + dict(reply.annotations)["rule_"]


def repo(name: str) -> dict[str, tuple[str, ...]]:
    return {"repo": (name,)}


def test_each_session_reaches_its_own_alone(gateway: Gateway) -> None:
    for number in (1, 2):
        values = repo(f"acme/app-{number}")
        gateway.store.create(
            new(f"vm-{number}", f"192.0.2.{number}/32", variables=values)
        )
    for own, others, client in (("app-1", "app-2", VM), ("app-2", "app-1", OTHER)):
        for _ in range(2):  # the second time from the caches
            at_host = gateway.at_host("git.example", client)
            assert (rule(at_host), dict(at_host.annotations)["tag"]) == (
                "clone",
                "sk_url_decides",
            )
            own_url = f"https://git.example/acme/{own}/x"
            assert rule(gateway.at_url(own_url, client)) == "clone"
            others_url = f"https://git.example/acme/{others}/x"
            assert rule(gateway.at_url(others_url, client)) == "!default"


def test_a_tunnel_has_the_number_of_its_session(gateway: Gateway) -> None:
    made = gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    reply = gateway.at_host("docs.example", scheme="http")
    assert dict(reply.annotations)["session_"] == str(made.number)
    assert gateway.tag("docs.example") == f"docs.example:443 s={made.number}"
    office = gateway.at_host("docs.example", OUTSIDE, scheme="http")
    assert "session_" not in dict(office.annotations)
    assert gateway.tag("docs.example", OUTSIDE) == "docs.example:443"


def test_a_session_has_the_rights_of_its_role_and_of_the_clients(
    gateway: Gateway,
) -> None:
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    assert rule(gateway.at_host("open.example")) == "everybody"
    assert rule(gateway.at_host("docs.example")) == "docs"
    assert rule(gateway.at_host("docs.example", OUTSIDE)) == "docs"


def test_an_address_of_sessions_needs_one(gateway: Gateway) -> None:
    reply = gateway.at_host("open.example", scheme="http")
    assert rule(reply) == "!session-required"
    assert reply.message == (
        "Only sessions may use this address, and none is active here."
    )
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    assert rule(gateway.at_host("open.example", scheme="http")) == "everybody"
    for name in ("vm-1", "vm-2"):
        gateway.end(name)
        reply = gateway.at_host("open.example", scheme="http")
        assert rule(reply) == "!session-required"
        assert "The last one ended at 2027-01-15" in (reply.message or "")
        assert name not in (reply.message or ""), "it is not told whose it was"
        gateway.store.create(new("vm-2", f"{VM}/32", role="reader", variables={}))


@pytest.mark.parametrize("successor", [True, False])
def test_a_tunnel_belongs_to_the_session_that_opened_it(
    gateway: Gateway, successor: bool
) -> None:
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    tag = gateway.tag("docs.example")
    assert rule(gateway.at_host("docs.example", tag=tag)) == "docs"
    gateway.end("vm-1")
    if successor:
        gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
        assert rule(gateway.at_host("docs.example", tag=tag)) == "!tunnel-outdated"
        assert rule(gateway.at_url("https://docs.example/x", tag=tag)) == (
            "!tunnel-outdated"
        )
        assert rule(gateway.at_host("docs.example")) == "docs"
    else:
        assert rule(gateway.at_host("docs.example", tag=tag)) == "!session-required"


def test_no_tunnel_opens_without_a_session(gateway: Gateway) -> None:
    reply = gateway.at_host("docs.example", method="CONNECT")
    assert rule(reply) == "!session-required"  # which Squid does not keep
    assert "clt_conn_tag" not in dict(reply.annotations)


def test_a_url_is_decided_for_the_session_that_is_active_now(gateway: Gateway) -> None:
    for name in ("app-1", "app-2", "app-1"):
        gateway.store.create(new("vm-1", f"{VM}/32", variables=repo(f"acme/{name}")))
        for asked in ("app-1", "app-2"):
            reply = gateway.at_url(f"http://git.example/acme/{asked}/x")
            assert rule(reply) == ("clone" if asked == name else "!default")
        gateway.end("vm-1")
        reply = gateway.at_url("http://git.example/acme/app-1/x")
        assert rule(reply) == "!session-required"


def test_a_tunnel_of_no_session_is_none_of_a_session(gateway: Gateway) -> None:
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    for tag in ("docs.example:443", "docs.example:443 s=1"):
        assert rule(gateway.at_host("docs.example", tag=tag)) == "!tunnel-outdated"
    outside = gateway.at_host("docs.example", OUTSIDE, tag="docs.example:443 s=1")
    assert rule(outside) == "!tunnel-outdated"


def test_an_extended_session_keeps_its_tunnels(gateway: Gateway) -> None:
    made = gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    tag = gateway.tag("docs.example")
    gateway.store.change(made.number, lifetime=900.0)
    assert rule(gateway.at_host("docs.example", tag=tag)) == "docs"


def test_a_change_of_a_session_forgets_nothing_of_the_others(gateway: Gateway) -> None:
    first = gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    gateway.store.create(new("vm-2", f"{OTHER}/32", role="reader", variables={}))
    replies = [gateway.at_host("docs.example", OTHER) for _ in range(2)]
    gateway.store.change(first.number, lifetime=900.0)
    replies.append(gateway.at_host("docs.example", OTHER))
    assert replies[0] is replies[1] is replies[2]


def test_a_session_as_the_policy_no_longer_has_it_opens_nothing(
    gateway: Gateway, tmp_path: Path
) -> None:
    gateway.store.create(new("vm-1", f"{VM}/32", variables=repo("acme/app")))
    gateway.store.create(new("vm-2", f"{OTHER}/32", role="reader", variables={}))
    assert rule(gateway.at_host("git.example")) == "clone"
    narrowed = POLICY.replace("[a-z0-9-]+/", "corp/")
    edited = Gateway(
        compiled_of(tmp_path, narrowed), gateway.store, gateway.index, gateway.folder
    )
    reply = edited.at_host("git.example", scheme="http")
    assert rule(reply) == "!session-invalid"
    assert "no longer takes what the session vm-1 was given" in (reply.message or "")
    assert "corp/" not in (reply.message or ""), "the client reads no pattern"
    assert rule(edited.at_host("docs.example", OTHER)) == "docs"
    removed = POLICY.replace("  reader: {ttl: 8h}\n", "").replace(
        "[reader, office]", "[office]"
    )
    edited = Gateway(
        compiled_of(tmp_path, removed), gateway.store, gateway.index, gateway.folder
    )
    reply = edited.at_host("open.example", OTHER, scheme="http")
    assert rule(reply) == "!session-invalid"
    assert "no role reader any longer, which the session vm-2 has" in (
        reply.message or ""
    )


def test_without_the_file_sessions_are_denied_and_nobody_else(gateway: Gateway) -> None:
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    assert rule(gateway.at_host("docs.example")) == "docs"
    gateway.index.close()
    gateway.store.close()
    (gateway.folder / FILE).write_bytes(b"damaged")
    gateway.index._look_at = 0.0
    assert rule(gateway.at_host("docs.example")) == "!sessions-unavailable"
    named = gateway.at_host("docs.example", OUTSIDE, user="bot", login=ID)
    assert rule(named) == "!sessions-unavailable"
    assert rule(gateway.at_host("docs.example", OUTSIDE)) == "docs"


# --- logins ---------------------------------------------------------------------------


def logged_in(gateway: Gateway, name: str, token: str, client: str = VM) -> Reply:
    line = f"{name} {quote(token)} {client} -".encode()
    return login.answer(login.Logins(gateway.policy), line)


def test_a_session_logs_in_by_its_token(gateway: Gateway) -> None:
    gateway.store.create(new("bot", token_sha256=SHA256, role="reader", variables={}))
    assert dict(logged_in(gateway, "bot", TOKEN).annotations) == {"token_": ID}
    assert logged_in(gateway, "bot", "another").result is Result.ERR
    assert logged_in(gateway, "nobody", TOKEN).result is Result.ERR
    for client in (VM, OUTSIDE):  # from wherever it comes
        assert rule(gateway.at_host("docs.example", client, "bot", ID)) == "docs"
    gateway.end("bot")
    assert logged_in(gateway, "bot", TOKEN).result is Result.ERR
    ended = gateway.at_host("docs.example", OUTSIDE, "bot", ID, scheme="http")
    assert rule(ended) == "!login-refused"


def test_a_user_of_the_name_of_a_session_follows_the_session_of_its_address(
    gateway: Gateway,
) -> None:
    gateway.store.create(new("bot", token_sha256=SHA256, role="reader", variables={}))
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    asked = ("docs.example", VM, "bot", "-", "GET", "http")
    assert rule(gateway.at_host(*asked)) == "docs"
    gateway.end("vm-1")
    assert rule(gateway.at_host(*asked)) == "!session-required"
    gateway.store.create(new("vm-2", f"{VM}/32", variables=repo("acme/app")))
    assert rule(gateway.at_host(*asked)) == "!default"


def test_a_session_is_no_proxy_user_of_its_name(gateway: Gateway) -> None:
    gateway.store.create(new("boss", token_sha256=SHA256, role="reader", variables={}))
    asked = ("boss.example", OUTSIDE, "boss", ID, "GET", "http")
    assert rule(gateway.at_host(*asked)) == "!default"
    own = ("boss.example", OUTSIDE, "boss", "-", "GET", "http")
    assert rule(gateway.at_host(*own)) == "bosses"


def test_a_successor_of_the_name_has_none_of_its_logins(gateway: Gateway) -> None:
    gateway.store.create(new("bot", token_sha256=SHA256, role="reader", variables={}))
    assert rule(gateway.at_host("docs.example", OUTSIDE, "bot", ID)) == "docs"
    gateway.end("bot")
    gateway.store.create(new("bot", token_sha256="1" * 64, role="reader", variables={}))
    stale = gateway.at_host("docs.example", OUTSIDE, "bot", ID, scheme="http")
    assert rule(stale) == "!login-refused"


def asks(reply: Reply) -> bool:
    return "ask_login_" in dict(reply.annotations)


def test_a_login_is_asked_for_where_a_session_could_have_one(gateway: Gateway) -> None:
    assert not asks(gateway.at_host("docs.example", scheme="http"))
    made = gateway.store.create(
        new("bot", token_sha256=SHA256, role="reader", variables={})
    )
    assert asks(gateway.at_host("docs.example", scheme="http"))
    assert asks(gateway.at_host("git.example", method="CONNECT"))
    assert not asks(gateway.at_host("other.example", scheme="http"))
    gateway.store.create(new("vm-1", f"{VM}/32", role="reader", variables={}))
    assert not asks(gateway.at_host("git.example", scheme="http"))  # it is a session
    gateway.store.end(made.number, "deleted")
    assert not asks(gateway.at_host("docs.example", OTHER, scheme="http"))


# --- other helpers --------------------------------------------------------------------


def test_a_credential_is_for_the_session_that_names_its_place(gateway: Gateway) -> None:
    for number in (1, 2):
        values = repo(f"acme/app-{number}")
        gateway.store.create(
            new(f"vm-{number}", f"192.0.2.{number}/32", variables=values)
        )
    injector = Injector(gateway.policy)

    def injected(client: str, name: str) -> Reply:
        line = gateway.line("git.example", client)
        url = f"https://git.example/acme/{name}/x"
        return inject(injector, line + f" {url} {url} - -".encode(), 32)

    first, second = injected(VM, "app-1"), injected(OTHER, "app-2")
    for reply in (first, second):
        assert dict(reply.annotations)["authorization_"] == (
            "Bearer the-value-of-the-key"
        )
    assert injected(VM, "app-2").result is Result.ERR
    # neither has forgotten what is kept for the other
    assert injected(VM, "app-1") is first
    assert injected(OTHER, "app-2") is second


PUSH = """
roles: {agent: {variables: {task: {type: path, pattern: "[a-z0-9-]+"}}}}
rules:
  - name: push
    action: allow
    clients: [agent]
    hosts: [git.example]
    body: {git: {push: ["refs/heads/agent/{session.task}/**"]}}
"""


def test_the_service_of_bodies_is_told_the_session(
    gateway: Gateway, tmp_path: Path
) -> None:
    pushing = Gateway(
        compiled_of(tmp_path, PUSH), gateway.store, gateway.index, gateway.folder
    )
    listed = []
    for client in (VM, OTHER):
        task = {"task": (f"of-{client[-1]}",)}
        made = gateway.store.create(new(f"vm-{client}", f"{client}/32", variables=task))
        url = "https://git.example/acme/app.git/git-receive-pack"
        line = pushing.line("git.example", client, method="POST")
        reply = dict(pushing.request.answer(line, url).annotations)
        text, number = session_of_list(reply["body_"])
        assert number == made.number
        session = gateway.index.numbered(made.number)
        (rule,) = listed_rules(pushing.policy, text, session)
        assert isinstance(rule.body, GitBody)
        listed.append([*rule.body.push])
        with pytest.raises(PatternError, match="is for sessions, and this is none"):
            listed_rules(pushing.policy, text)
    assert listed == [["refs/heads/agent/of-1/**"], ["refs/heads/agent/of-2/**"]]


@pytest.mark.parametrize("text", ["r0@", "r0@x", "r0@-1", "r0@1@2"])
def test_a_list_of_no_session_is_told_apart(text: str) -> None:
    with pytest.raises(PatternError, match="is not the number of a session"):
        session_of_list(text)


def test_a_policy_that_follows_no_sessions_knows_none(tmp_path: Path) -> None:
    policy = compiled_of(tmp_path, POLICY)
    request = parse_request(
        [OUTSIDE, None, "GET", "http", "docs.example", "80", None, None, None]
    )
    at = datetime.now(UTC)
    assert decide(policy, policy.match(request), at, Stage.HOST).rule == "docs"


def test_the_built_in_rules_are_known() -> None:
    names = {"session-required", "session-invalid", "sessions-unavailable"}
    assert names <= set(BUILT_IN_REASONS)
