"""Sessions that come and go at addresses and names that others have just left, on a
real Squid: each answer is for the session that asked.
"""

import json
import sys
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import pytest

from tests.waiting import pause, wait_for

from .gateway import NewGateway
from .origin import Origins
from .raw import Raw
from .reply import NO_ANSWER, Reply
from .session_service import Service

POLICY = """
version: 1
session_networks: [127.64.0.0/10]
clients:
  office: {networks: [127.0.0.1/32]}
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}}}
  writer: {ttl: 1h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: read, action: allow, clients: [agent, writer, office], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
  - {name: few, action: allow, clients: [agent, writer], hosts: [few.example]}
secrets: {key: {session: true, hosts: [git.example, upload.example]}}
credentials:
  - {name: git, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"], bearer: key}
  - {name: upload, clients: [writer], hosts: [upload.example], bearer: key}
quotas:
  - {name: few, per: session, clients: [agent, writer], rules: [few], requests: 2, every: hour}
"""
BY_LOGIN = "127.0.0.14"  # in no network of sessions
PLACES = 6  # addresses and names of a worker: each is used again and again


@dataclass(frozen=True)
class Life:
    """One session: where it asks from, and what it alone has."""

    name: str
    role: str
    repo: str
    secret: str
    address: str | None  # None: it logs in by a token

    def call(self) -> dict[str, object]:
        """Make the body of the call."""
        asked: dict[str, object] = {"secrets": {"key": self.secret}}
        if self.role == "agent":
            asked["variables"] = {"repo": self.repo}
        return asked | ({"address": self.address} if self.address else {})


@dataclass
class Load:
    """All that come and go, and what was wrong."""

    service: Service
    wrong: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    numbers: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, *, right: bool, told: object) -> None:
        """Count an answer; keep it where it is wrong."""
        with self.lock:
            self.seen[what] += 1
            if not right:
                self.wrong.append(f"{what}: {told}")

    def run(self, worker: int, lives: int) -> None:
        """Make sessions, one after the other, at the places of this worker."""
        random = Random(worker)
        left: dict[str, Asker] = {}
        with ExitStack() as stack:
            for number in range(lives):
                place = random.randrange(PLACES)
                life = Life(
                    name=f"vm-{worker}-{place}",
                    role=random.choice(("agent", "agent", "writer")),
                    repo=f"team-{worker}/app-{number}",
                    secret=f"secret-of-life-{worker}-{number}-0123456789",
                    address=f"127.64.{worker}.{place + 1}" if place else None,
                )
                kept = self.live(life)
                stack.callback(kept.close)
                if life.name in left:
                    self.expect_gone(left[life.name])
                left[life.name] = kept

    def live(self, life: Life) -> "Asker":
        """Make a session, use it in several ways, and end it."""
        made = self.service.put(life.name, life.role, **life.call())
        with self.lock:
            assert made["number"] not in self.numbers
            self.numbers.add(made["number"])
        asker = Asker(self, life, made.get("token", ""))
        asker.use()
        self.service.delete(life.name)
        return asker

    def expect_gone(self, asker: "Asker") -> None:
        """A successor does not inherit the tunnel of a session that has ended."""
        reply = asker.again()
        right = reply == NO_ANSWER or reply.status in (403, 407, 502, 503)
        self.note("tunnel of an ended session", right=right, told=reply)
        asker.close()


class Asker:
    """The programs of a session."""

    def __init__(self, load: Load, life: Life, token: str) -> None:
        self._load, self._life = load, life
        login = b64encode(f"{life.name}:{token}".encode()).decode()
        self._login = [f"Proxy-Authorization: Basic {login}"] if token else []
        self._host = "git.example" if life.role == "agent" else "upload.example"
        self._raw: Raw | None = None

    def use(self) -> None:
        """Ask for what it has, what another has, and for all of its quota."""
        life, load = self._life, self._load
        self._raw = self._tunnel()
        if self._raw is None:
            return
        path = f"/{life.repo}/info"
        self._own(self._raw.get(path, self._host))
        if life.role == "agent" and (raw := self._tunnel()):
            reply = raw.get(f"/{life.repo}-other/info", self._host)
            raw.close()  # Squid ends it after a denial
            load.note("path of another", right=reply.status == 403, told=(life, reply))
        with self._connected() as raw:
            other = "upload.example" if life.role == "agent" else "git.example"
            reply = raw.get(f"http://{other}{path}", other, *self._login)
            load.note("role of another", right=reply.status == 403, told=(life, reply))
            for number in range(3):
                reply = raw.get("http://few.example/", "few.example", *self._login)
                right = reply.status == (200 if number < 2 else 403)
                load.note("quota", right=right, told=(life, number, reply))
        self._own(self._raw.get(path, self._host))

    def again(self) -> Reply:
        """Ask in the tunnel that it had."""
        if self._raw is None:
            return NO_ANSWER
        try:
            return self._raw.get(f"/{self._life.repo}/info", self._host)
        except OSError:
            return NO_ANSWER

    def close(self) -> None:
        if self._raw:
            self._raw.close()

    def _connected(self) -> Raw:
        return Raw(self._load.service.gateway, self._life.address or BY_LOGIN)

    def _tunnel(self) -> Raw | None:
        raw = self._connected()
        authority = f"{self._host}:443"
        head = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", *self._login]
        reply = raw.send("\r\n".join([*head, "", ""])).answer("CONNECT")
        right = reply.status == 200
        self._load.note("CONNECT", right=right, told=(self._life, reply))
        try:
            return raw.tls(self._host) if right else None
        except OSError as error:
            raw.close()
            self._load.note("TLS", right=False, told=(self._life, error))
            return None

    def _own(self, reply: Reply) -> None:
        life, told = self._life, {}
        if reply.status == 200:
            told = json.loads(reply.body)
        values = [
            value for name, value in told.get("headers", ()) if name == "Authorization"
        ]
        right = values == [f"Bearer {life.secret}"]
        right &= told.get("url") == f"https://{self._host}/{life.repo}/info"
        self._load.note("own", right=right, told=(life, reply))


@pytest.fixture(scope="module")
def service(new_gateway: NewGateway) -> Iterator[Service]:
    made = Service(new_gateway(POLICY))
    made.gateway.start()
    try:
        made.start()
        with Raw(made.gateway) as raw:  # a helper takes the policy up
            assert raw.get("http://docs.example/", "docs.example").status == 200
        first = {"role": "writer", "address": "127.64.200.1"}
        put = ("PUT", "/v1/sessions/first", first)
        wait_for(lambda: made.call(*put).status == 201, "the policy")
        yield made
    finally:
        made.kill()


def come_and_go(service: Service, workers: int, lives: int) -> Load:
    load = Load(service)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(load.run, number, lives) for number in range(workers)]
        while not all(one.done() for one in running):
            with Raw(service.gateway) as raw:  # a client of the policy
                reply = raw.get("http://docs.example/", "docs.example")
                load.note("office", right=reply.status == 200, told=reply)
            pause(0.02, "the pace of a client")
        for one in running:
            one.result()
    sys.stdout.write(f"{len(load.numbers)} sessions: {load.seen}\n")
    return load


def test_sessions_that_follow_each_other_get_nothing_of_each_other(
    service: Service, origins: Origins
) -> None:
    load = come_and_go(service, 8, 10)
    assert not load.wrong
    assert len(load.numbers) == 80
    assert load.seen["tunnel of an ended session"] > 10


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_sessions_get_nothing_of_each_other(
    service: Service, origins: Origins
) -> None:
    load = come_and_go(service, 16, 320)
    assert not load.wrong
    assert len(load.numbers) == 16 * 320
