"""Sessions on a real Squid: each client has the rights of its own session alone, from
its beginning to its end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256

import pytest

from squidkeeper.base.places import sessions_folder
from squidkeeper.serving.sessions.answers import StoredAnswer
from squidkeeper.serving.sessions.clock import TimeNow
from squidkeeper.serving.sessions.store import (
    FILE,
    NewSession,
    SessionRow,
    SessionStore,
)
from tests.waiting import pause, wait_for

from .curl import CurlFailed, curl
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import tunnel
from .reply import Reply
from .test_ask import ticket_of

TOKEN = "token-of-a-session-of-this-test-01"
ONE, TWO, VM, OUTSIDE = "127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.1"
OTHER_VM = "127.0.0.14"
POLICY = """
version: 1
session_networks: [127.0.0.8/29]
clients:
  office: {networks: [127.0.0.1/32]}
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}}}
  reader: {ttl: 1h}
  writer: {ttl: 1h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: read, action: allow, clients: [reader, writer, office], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example], methods: [POST, GET]}
  - {name: office, action: allow, clients: [office], hosts: [office.example]}
  - {name: asked, action: ask, clients: [reader], hosts: [ask.example]}
secrets: {key: {file: secrets/key}}
credentials:
  - {name: git, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"], bearer: key}
"""


class Sessions:
    """The store that the gateway reads, as the service writes it."""

    def __init__(self, gateway: Gateway) -> None:
        self.folder = sessions_folder(gateway.layout.state)
        self.folder.mkdir()
        self.store = SessionStore(self.folder)
        self.start()

    def start(self) -> None:
        self.store.start()
        for path in (self.folder, *self.folder.iterdir()):
            shutil.chown(path, group="proxy")
        self.folder.chmod(0o2750)

    def begin(
        self, client: str | None, role: str = "reader", repo: str = "", name: str = ""
    ) -> SessionRow:
        return self.store.create(
            NewSession(
                name=name or f"vm-{client}",
                role=role,
                network=client and f"{client}/32",
                token_sha256=None if client else sha256(TOKEN.encode()).hexdigest(),
                variables={"repo": (repo,)} if repo else {},
                labels={},
                secrets=(),
                orchestrator="test",
                lifetime=3_000,
                content="",
            )
        )

    def end_all(self) -> None:
        for row in self.store.active():
            self.store.end(row.number, "deleted")


@pytest.fixture(scope="module")
def started(new_gateway: NewGateway) -> Iterator[tuple[Gateway, Sessions]]:
    gateway = new_gateway(POLICY)
    gateway.secret("key", "value-of-the-key-of-sessions")
    gateway.remember(TOKEN)
    sessions = Sessions(gateway)
    with closing(sessions.store):
        yield gateway.start(), sessions


@pytest.fixture
def gateway(started: tuple[Gateway, Sessions]) -> Gateway:
    return started[0]


@pytest.fixture
def sessions(started: tuple[Gateway, Sessions]) -> Iterator[Sessions]:
    yield started[1]
    started[1].end_all()
    pause(2.5, "Squid keeps an answer about an address until the second whole second")


def outcome(gateway: Gateway, url: str, *options: str, client: str = VM) -> object:
    """Return the rule of a denial, or the status; of a refused tunnel, that of the
    CONNECT; 0 where Squid does not listen.
    """
    try:
        reply = curl(gateway, url, *options, client=client)
    except CurlFailed as error:
        status = str(error).rpartition("response ")[2].strip()
        return int(status) if status.isdigit() else 0
    return reply.rule or reply.status


def test_two_sessions_of_a_role_reach_each_its_own_alone(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    numbers = {
        ONE: sessions.begin(ONE, "agent", "acme/one").number,
        TWO: sessions.begin(TWO, "agent", "acme/two").number,
    }
    for client, own, others in ((ONE, "one", "two"), (TWO, "two", "one")):
        before, url = len(gateway.log()), f"https://git.example/acme/{own}/info"
        seen = allowed(gateway, origins, url, "clone", client=client)
        assert seen.values("Authorization") == ["Bearer value-of-the-key-of-sessions"]
        wrong = f"https://git.example/acme/{others}/info"
        assert outcome(gateway, wrong, client=client) == "default"
        for asked in (url, wrong):
            assert gateway.logged(asked, before)["session"] == str(numbers[client])
        denied(gateway, origins, "https://docs.example/", "default", client=client)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_session_is_in_force_at_once_though_it_was_asked_for_before(
    gateway: Gateway, sessions: Sessions, origins: Origins, scheme: str
) -> None:
    url = f"{scheme}://docs.example/"
    for _ in range(3):
        assert outcome(gateway, url) == "session-required"
    sessions.begin(VM)
    allowed(gateway, origins, url, "read", client=VM)


def test_an_address_without_a_session_is_denied_and_told_which_has_ended(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    row = sessions.begin(VM)
    allowed(gateway, origins, "http://docs.example/", "read", client=VM)
    with tunnel(gateway, "docs.example:443", client=VM) as kept:
        assert kept.get("/", "docs.example").status == 200
        sessions.store.end(row.number, "deleted")
        url = "http://docs.example/"
        wait_for(lambda: outcome(gateway, url) == "session-required")
        wait_for(lambda: kept.get("/", "docs.example").rule == "session-required")
    reply = denied(gateway, origins, url, "session-required", client=VM)
    assert "The last one ended at" in (reply.reason or "")
    assert row.name not in (reply.reason or "")
    allowed(gateway, origins, "https://docs.example/", "read", client=OUTSIDE)


def test_a_session_ends_by_time(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    row = sessions.begin(VM)
    allowed(gateway, origins, "http://docs.example/", "read", client=VM)
    sessions.store.change(row.number, lifetime=0.5)
    wait_for(lambda: outcome(gateway, "http://docs.example/") == "session-required")


def test_an_address_used_again_has_nothing_of_its_predecessor(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    row = sessions.begin(VM, "writer")
    upload = "https://upload.example/"
    allowed(gateway, origins, upload, "write", client=VM)
    with (
        tunnel(gateway, "docs.example:443", client=VM) as same,
        tunnel(gateway, "upload.example:443", client=VM) as other,
    ):
        assert same.get("/", "docs.example").status == 200
        assert other.get("/", "upload.example").status == 200
        sessions.store.end(row.number, "deleted")
        pause(2.5, "which the service waits before it gives an address again")
        sessions.begin(VM, "reader")
        denied(gateway, origins, upload, "default", client=VM)
        allowed(gateway, origins, "https://docs.example/", "read", client=VM)
        for kept, host in ((same, "docs.example"), (other, "upload.example")):
            assert kept.get("/", host).rule == "tunnel-outdated"


def test_a_token_is_that_of_its_session_until_it_ends(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    login = ("--proxy-user", f"bot:{TOKEN}")
    url = "https://docs.example/"
    assert outcome(gateway, url, *login) == 407
    row = sessions.begin(None, name="bot")
    pause(2.5, "credentialsttl of a login that was refused")
    for client in (VM, OUTSIDE):
        allowed(gateway, origins, url, "read", *login, client=client)
    assert outcome(gateway, url, "--proxy-user", "bot:another-token") == 407
    assert outcome(gateway, "http://docs.example/") == 407  # it may log in
    allowed(gateway, origins, url, "read", "--proxy-anyauth", *login, client=VM)
    sessions.store.end(row.number, "deleted")
    wait_for(lambda: outcome(gateway, url, *login) == 407)
    sessions.begin(None, name="bot")  # of the same token: it is another session
    wait_for(lambda: outcome(gateway, url, *login) == 200)


def test_sessions_go_on_without_the_service_and_are_read_by_helpers_that_start(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    sessions.begin(VM)
    allowed(gateway, origins, "https://docs.example/", "read", client=VM)
    sessions.store.close()
    gateway.reconfigure()
    wait_for(lambda: outcome(gateway, "https://docs.example/") == 200)
    sessions.start()
    allowed(gateway, origins, "https://docs.example/", "read", client=VM)


def test_a_damaged_file_denies_sessions_and_nobody_else(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    sessions.begin(VM)
    allowed(gateway, origins, "http://docs.example/", "read", client=VM)
    sessions.store.close()
    files = [path.name for path in sessions.folder.glob(f"{FILE}*")]
    kept = sessions.folder / "kept"
    kept.mkdir()
    for name in files:
        (sessions.folder / name).rename(kept / name)
    damaged = sessions.folder / FILE
    damaged.write_bytes(b"damaged")
    wait_for(lambda: outcome(gateway, "http://docs.example/") == "sessions-unavailable")
    other = "http://docs.example/of-the-office"
    allowed(gateway, origins, other, "read", client=OUTSIDE)
    assert "the sessions cannot be read" in gateway.cache_log()
    for name in files:
        (kept / name).replace(sessions.folder / name)
    kept.rmdir()
    sessions.start()
    wait_for(lambda: outcome(gateway, "http://docs.example/") == 200)


def test_an_edit_that_removes_a_role_denies_its_sessions_and_says_why(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    sessions.begin(ONE)
    sessions.begin(TWO, "agent", "acme/two")
    allowed(gateway, origins, "http://docs.example/", "read", client=ONE)
    without = POLICY.replace("  reader: {ttl: 1h}\n", "").replace("[reader, ", "[")
    without = without.replace("[reader]", "[writer]")
    gateway.write("policy.yaml", without)
    gateway.settle()

    def reply(client: str, url: str) -> Reply:
        return curl(gateway, url, client=client)

    invalid = reply(ONE, "http://docs.example/")
    assert (invalid.rule, invalid.reason) == (
        "session-invalid",
        f"The policy has no role reader any longer, which the session vm-{ONE} has.",
    )
    allowed(gateway, origins, "https://git.example/acme/two/x", "clone", client=TWO)
    gateway.write("policy.yaml", POLICY)
    gateway.settle()
    allowed(gateway, origins, "http://docs.example/", "read", client=ONE)


def test_what_was_approved_for_a_session_is_none_of_its_successor(
    gateway: Gateway, sessions: Sessions, origins: Origins
) -> None:
    url, row = "https://ask.example/x", sessions.begin(VM)
    sessions.begin(OTHER_VM)
    ticket = ticket_of(denied(gateway, origins, url, "asked", client=VM))
    page = f"http://squidkeeper.internal/tickets/{ticket}"
    secure = page.replace("http:", "https:")
    assert state_of(gateway, page) == state_of(gateway, secure) == "pending"
    assert state_of(gateway, page, OTHER_VM) is None
    sessions.store.answer(row.number, (approval(ticket, url),))
    allowed(gateway, origins, url, "session-approval", client=VM)
    assert state_of(gateway, page) == "approved"
    denied(gateway, origins, url, "asked", client=OTHER_VM)
    sessions.store.end(row.number, "deleted")
    pause(2.5, "which the service waits before it gives an address again")
    sessions.begin(VM)
    assert state_of(gateway, page) is None
    again = denied(gateway, origins, url, "asked", client=VM)
    assert ticket_of(again) != ticket
    assert state_of(gateway, page) is None


def approval(ticket: str, url: str) -> StoredAnswer:
    at = TimeNow.now()
    return StoredAnswer(
        ticket=ticket,
        approved=True,
        by="test",
        at=at.wall,
        method="GET",
        url=url,
        seconds=600,
        boot=at.boot,
        since_boot=at.since_boot,
    )


def state_of(gateway: Gateway, page: str, client: str = VM) -> object:
    reply = curl(gateway, page, client=client)
    return json.loads(reply.body)["state"] if reply.status == 200 else None
