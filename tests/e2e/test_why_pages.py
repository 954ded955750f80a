"""Every page of the gateway, each made on a live one: `why` has the cause that the page has.

A denial that is added needs its row in MADE. All are made with and without a placeholder in the policy: with one, a
helper decides what the access log has.
"""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from squidkeeper.operate.setup.error_pages import DENIALS
from squidkeeper.policy.language.model import Token
from squidkeeper.policy.language.sealed_tokens import format_content
from squidkeeper.serving.credentials.sealing import SealingPrivateKey, seal_bytes
from tests.waiting import wait_for

from .curl import curl
from .dns import PUBLIC, Names
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Answer, Origins
from .parent import Parent
from .raw import Raw, tunnel
from .reply import Reply

TOKEN = "why-token-of-every-page-0001"
ENDS = "203.0.113.20"  # an origin that ends each handshake
KEY = SealingPrivateKey.new()
POLICY = f"""\
version: 1
defaults: {{reason: Ask for a host.}}
clients:
  vm-7: {{token_sha256: {Token.of(TOKEN).sha256}}}
rules:
  - {{name: closed, action: deny, hosts: [closed.example], reason: It is closed.}}
  - {{name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}}
  - {{name: few, action: allow, hosts: [few.example]}}
  - {{name: open, action: allow, hosts: [.open.example, .corp.example], ports: [80, 443, 8085, 8086, 8087]}}
  - {{name: keyed, action: allow, hosts: [keyed.example]}}
  - {{name: sealed, action: allow, hosts: [sealed.example]}}
  - {{name: of-vm, action: allow, clients: [vm-7], hosts: [vm.example]}}
  - {{name: inside, action: allow, hosts: [.inside.example], private: true}}
  - {{name: paid, action: ask, hosts: [pay.example], reason: Ask Ann.}}
quotas:
  - {{name: once, per: rule, rules: [few], requests: 1, every: day}}
secrets:
  missing: {{file: secrets/missing}}
  password: {{file: secrets/password}}
  key: {{file: secrets/key}}
credentials:
  - {{name: no-token, hosts: [keyed.example], bearer: missing, placeholder: PLACEHOLDER}}
upstreams:
  - {{name: down, hosts: [.down.corp.example], url: "http://127.0.0.1:4997"}}
  - name: wrong
    hosts: [.wrong.corp.example]
    url: http://127.0.0.1:4128
    basic: {{username: agents, password: password}}
sealed_tokens: {{keys: [key]}}
"""
LOCAL = (
    *("negative_dns_ttl 1 second", "connect_timeout 2 seconds", "read_timeout 2 seconds", "forward_timeout 4 seconds"),
    *("request_body_max_size 10 KB", "reply_body_max_size 100 KB"),
    *("acl banned dstdomain banned.open.example", "http_access deny banned"),
    *("acl nowhere dstdomain nowhere.open.example", "never_direct allow nowhere"),
)


def sealed() -> str:
    """A token for another host than it is sent to."""
    return seal_bytes(format_content({"hosts": ["other.example"], "secret": "sealed-in-every-page"}), KEY.public)


class BrokenOff(Answer):
    """An answer that does not come: the connection ends instead."""

    def encode(self) -> bytes:
        raise ConnectionAbortedError("as the test wants it")


class Bytes(Answer):
    """An answer that is written as it is."""

    def encode(self) -> bytes:
        return self.body


# --- how pages are made -----------------------------------------------------------------------------------------------

Trial = Callable[[Gateway], Reply | None]
JSON = "Accept: application/json"


def get(url: str, *options: str) -> Trial:
    return lambda gateway: curl(gateway, url, "-H", JSON, *options)


def both(place: str, *options: str) -> list[Trial]:
    """The same over http, and in a tunnel."""
    return [get(f"{scheme}://{place}", *options) for scheme in ("http", "https")]


def sent(data: str) -> Trial:
    def send(gateway: Gateway) -> Reply | None:
        with Raw(gateway) as client:
            return client.send(data).answer()

    return send


def inside(target: str, host: str, method: str = "GET") -> Trial:
    """A request in the tunnel to a.open.example."""

    def ask(gateway: Gateway) -> Reply | None:
        with tunnel(gateway, "a.open.example:443") as client:
            return client.get(target, host, JSON, method=method)

    return ask


def with_lost_helper(gateway: Gateway) -> Reply | None:
    """Ask while the helper that decides hangs, and end it."""
    curl(gateway, "http://a.open.example/")
    helpers = gateway.helpers("acl --scope host")
    for pid in helpers:
        os.kill(pid, signal.SIGSTOP)
    with Raw(gateway) as client:
        client.send(f"GET http://unasked.open.example/ HTTP/1.1\r\nHost: unasked.open.example\r\n{JSON}\r\n\r\n")
        wait_for(lambda: gateway.unread() == 0, "Squid to read the request")
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)
        return client.answer()


# By page of a denial, or error of Squid's: what makes it, by the cause that `why` has.
MADE: dict[str, dict[str, list[Trial]]] = {
    "denied": {
        "policy": both("closed.example/a?b=c"),
        "no-rule": both("unknown.example/a?b=c") + both("paths.example/closed"),
        "ambiguous-path": both("paths.example/open/%2e%2e/x"),
        "sealed-token-refused": [get("https://sealed.example/", "-H", f"Authorization: Bearer {sealed()}")],
        "machine-address": both("169.254.169.254/latest"),
        "invalid-request": both("a.open.example/%1b"),
    },
    "asked": {"asked": both("pay.example/a")},
    "quota": {"quota": both("few.example/")},
    "no-credential": {"credential-unavailable": [get("https://keyed.example/")]},
    "invalid": {
        "invalid-request": [
            get("http://b.open.example/", "-X", "TRACE"),
            inside("a.open.example:443", "a.open.example:443", "CONNECT"),
        ]
    },
    "private": {"private-address": both("private.open.example/")},
    "passing": {"not-rendered": both("unrendered.example/")},
    "ERR_ACCESS_DENIED": {"squid-conf": both("banned.open.example/"), "no-helper": [with_lost_helper]},
    "ERR_DNS_FAIL": {"name-unresolved": both("none.inside.example/") + both("none.open.example/")},
    "ERR_CONNECT_FAIL": {
        "origin-refused": both("refused.open.example:8085/"),
        "origin-silent": both("silent.open.example:8086/"),
    },
    "ERR_SECURE_CONNECT_FAIL": {
        "origin-tls": [get("https://ended.open.example:8087/")],
        "origin-certificate": [get("https://bad.open.example/")],
        "authority-mismatch": [inside("/", "other.open.example")],
    },
    "ERR_READ_TIMEOUT": {"origin-slow": both("slow.open.example/x")},
    "ERR_READ_ERROR": {"not-forwarded": both("nowhere.open.example/") + both("a.down.corp.example/")},
    "ERR_ZERO_SIZE_OBJECT": {"origin-broke-off": [get("http://empty.open.example/x")]},
    "ERR_INVALID_RESP": {"invalid-answer": both("garbled.open.example/x")},
    "ERR_ICAP_FAILURE": {
        "invalid-answer": both("far.open.example/x"),
        "parent-refused": [get("http://a.wrong.corp.example/")],
    },
    "ERR_TOO_BIG": {
        "too-large": both("big.open.example/", "--data", "x" * 20_000, "-H", "Expect:") + both("head.open.example/x"),
    },
    "ERR_ONLY_IF_CACHED_MISS": {"not-cached": both("cached.open.example/", "-H", "Cache-Control: only-if-cached")},
    "ERR_INVALID_REQ": {"not-http": both("y.open.example/", "-H", "Expect: more")},
    "ERR_UNSUP_HTTPVERSION": {"not-http": [sent("GET http://z.open.example/ HTTP/3.7\r\n\r\n")]},
    "ERR_PROTOCOL_UNKNOWN": {"tls-to-plain-port": [sent("nonsense\r\n\r\n")]},
    "ERR_CACHE_ACCESS_DENIED": {
        "login-refused": [get("http://vm.example/?wrong", "--proxy-user", "vm-7:wrong")],
        "login-needed": [get("http://vm.example/")],
    },
}


@contextmanager
def failing_origins(origins: Origins, names: Names) -> Iterator[None]:
    """Origins, names and a parent that fail in every way."""
    origins.forget()
    origins.untrusted.add("bad.open.example")
    origins.answers |= {
        "slow.open.example/x": Answer(gate=(gate := origins.gate())),
        "empty.open.example/x": BrokenOff(),
        "garbled.open.example/x": Bytes(body=b"HTTP/1.1 two hundred\r\n\r\n"),
        "far.open.example/x": Answer(206, b"x", {"Content-Range": f"bytes {2**63 - 9}-{2**63 - 9}/{2**63 - 1}"}),
        "head.open.example/x": Bytes(body=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"),
    }
    names.set("private.open.example", ["10.0.0.5"])
    names.set("ended.open.example", [ENDS])
    names.set("none.open.example", [])
    names.set("none.inside.example", [])
    parent = Parent(4128)
    parent.password = "Basic another"
    with ExitStack() as stack:
        ending = stack.enter_context(socket.create_server((ENDS, 8087)))
        Thread(target=end_handshakes, args=(ending,), daemon=True).start()
        stack.enter_context(socket.create_server((PUBLIC, 8086), backlog=0))  # its queue is full: it answers nobody
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((PUBLIC, 8086))
        yield
        gate.open()
        ending.shutdown(socket.SHUT_RDWR)
        parent.stop()


def end_handshakes(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection = server.accept()[0]
            connection.recv(65536)
            connection.close()


@dataclass(frozen=True, slots=True)
class Shown:
    """A page as a client got it: its kind, its line of the access log, and what `why` tells by its request ID."""

    kind: str
    line: dict[str, Any]
    told: dict[str, Any]


Row = tuple[str, str]  # the name of a page, and a cause


UNRENDERED = """
version: 1
rules:
  - {name: unrendered, action: allow, hosts: [unrendered.example], strip: [X-Never]}
"""
POLICIES = [
    pytest.param(", placeholder: dummy-key-of-every-page", id="watching"),
    pytest.param("", id="plain", marks=pytest.mark.long),
]


@pytest.fixture(scope="module", params=POLICIES)
def shown(
    request: pytest.FixtureRequest, new_gateway: NewGateway, all_origins: Origins, names: Names
) -> dict[Row, list[Shown]]:
    """Every page."""
    policy = POLICY.replace(", placeholder: PLACEHOLDER", request.param)
    gateway = new_gateway(policy, *LOCAL)
    gateway.remember(TOKEN)
    gateway.secret("password", "password-of-every-page")
    gateway.secret("key", KEY.reveal())
    gateway.render()
    gateway.start()
    gateway.renders = False
    gateway.write("unrendered.yaml", UNRENDERED)
    curl(gateway, "http://few.example/")  # all that the quota gives
    wait_for(lambda: curl(gateway, "http://unrendered.example/").rule == "not-rendered", "the edit")
    rows = [(page, cause, trials) for page, causes in MADE.items() for cause, trials in causes.items()]
    rows.sort(key=lambda row: row[1] == "no-helper")  # which no other request must meet
    with failing_origins(all_origins, names), ThreadPoolExecutor(4) as pool:
        replies = [*pool.map(lambda row: made(gateway, row[2]), rows[:-1]), made(gateway, rows[-1][2])]
    told = told_by_why(gateway, [request_id(one) for row in replies for one in row])
    return {
        (page, cause): [Shown(kind_of(one), *told[request_id(one)]) for one in row]
        for (page, cause, _), row in zip(rows, replies, strict=True)
    }


def made(gateway: Gateway, trials: list[Trial]) -> list[Reply]:
    replies = [trial(gateway) for trial in trials]
    # on a loaded machine Squid can miss why a connection has ended
    replies = [
        trial(gateway) if reply and "Error: ERR_READ_ERROR" in reply.text else reply
        for trial, reply in zip(trials, replies, strict=True)
    ]
    assert None not in replies
    return [reply for reply in replies if reply]


def is_json(reply: Reply) -> bool:
    return (reply.header("Content-Type") or "").endswith("json")


def request_id(reply: Reply) -> str:
    return str(reply.json["request_id"] if is_json(reply) else reply.line("Request ID"))


def kind_of(reply: Reply) -> str:
    """Name the page of a denial, or the error of Squid's."""
    if is_json(reply):
        return str(reply.json["type"]).removeprefix("urn:squidkeeper:")
    told = reply.line("Error") or next(page.name for page in DENIALS if f"<title>{page.title}<" in reply.text)
    return told.partition(" ")[0]


def told_by_why(gateway: Gateway, ids: list[str]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Ask `why` once about all; give the line and the cause of each."""
    wait_for(lambda: {*ids} <= {line["request_id"] for line in gateway.log()}, "their lines")
    places = {"--policy": gateway.policy_folder, "--state": gateway.root / "state", "--run": gateway.root / "run"}
    words = [word for option in places.items() for word in option]
    command = (gateway.root / "bin/squidkeeper", "why", "--json", "-n", "1000", gateway.root / "log/access.log")
    found = json.loads(run(*command, *words, *ids, check=False))
    causes = {one["request_id"]: cause for cause in found["causes"] for one in cause["newest"]}
    return {line["request_id"]: (line, causes.get(line["request_id"], {})) for line in gateway.log()}


def test_each_page_of_a_denial_is_made() -> None:
    assert {page.name.replace("_", "-") for page in DENIALS} <= MADE.keys()


@pytest.mark.parametrize("page", MADE)
def test_why_has_the_cause_of_the_page(shown: dict[Row, list[Shown]], page: str) -> None:
    for cause in MADE[page]:
        for one in shown[page, cause]:
            assert (one.kind, one.told.get("cause")) == (page, cause), one
            assert one.line["page"] in ("-", one.kind, "no-address")
            is_judged = one.line["verdict"] != "-" and cause != "authority-mismatch"  # else it was not searched
            assert (one.line["url"] != "-") or not is_judged, one.line


def test_why_proposes_a_rule_and_says_what_the_page_says(shown: dict[Row, list[Shown]]) -> None:
    for one in shown["denied", "no-rule"]:
        assert "add this rule: `- {name: allow-" in one.told["remedy"]
    [sealed_token] = shown["denied", "sealed-token-refused"]
    assert sealed_token.told["sentence"] == "The sealed token is refused: it is for another host."
