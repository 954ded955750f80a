"""The ways in which a client of a session can be connected, on a real Squid: IPv6, a
passthrough, a WebSocket, shared connections; and several workers.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server

from tests.conftest import DOCUMENTED
from tests.waiting import wait_for

from .gateway import Gateway, NewGateway
from .network import run
from .origin import Origins
from .raw import Proxy, Raw, tunnel
from .reply import Reply
from .session_service import Service

pytestmark = pytest.mark.long
VM, OTHER = "127.0.0.13", "127.0.0.12"
NET, NEXT = "2001:db8:38:1", "2001:db8:38:2"
HERE = f"{NET}::1"  # where Squid takes IPv6 clients, beside those of IPv4
BOTH_FAMILIES = 4138
POOL, WITH_SECRET = "a.pool.example", "own.pool.example"
SECRET, OTHERS_SECRET = (
    f"value-of-a-{name}-on-a-shared-connection" for name in ("first", "second")
)
POLICY = """
version: 1
session_networks: [127.0.0.8/29, "2001:db8:38::/48"]
clients:
  office: {networks: [127.0.0.1/32]}
roles: {reader: {ttl: 1h}, writer: {ttl: 1h}}
rules:
  - {name: read, action: allow, clients: [reader, writer, office], hosts: [docs.example]}
  - {name: pool, action: allow, hosts: [.pool.example], ports: [443], methods: [GET], connections: shared}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
  - {name: pinned, action: allow, clients: [writer], hosts: [pinned.example], tls: passthrough}
  - {name: chat, action: allow, clients: [writer], hosts: [chat.example], ports: [9443], websocket: true}
secrets: {key: {session: true, hosts: [own.pool.example]}}
credentials:
  - {name: own, clients: [reader, writer], hosts: [own.pool.example], bearer: key}
"""


class Six:
    """The gateway's port of both families, as one of IPv6, or of IPv4."""

    def __init__(self, gateway: Gateway, host: str = HERE) -> None:
        self.address, self.ca = (host, BOTH_FAMILIES), gateway.ca


@pytest.fixture(scope="module")
def addresses() -> Iterator[None]:
    given = [f"{net}::{host}/128" for net in (NET, NEXT) for host in ("1", "a", "b")]
    with ExitStack() as stack:
        for address in given:
            run("ip", "addr", "add", address, "dev", "lo", "nodad")
            stack.callback(run, "ip", "addr", "del", address, "dev", "lo")
        yield


@pytest.fixture(scope="module")
def started(new_gateway: NewGateway, addresses: None) -> Iterator[Service]:
    gateway = new_gateway(POLICY)
    conf = (gateway.root / "etc/squid.conf").read_text()
    [own] = re.findall(rf"(?m)^http_port {gateway.authority}((?:.*\\\n)*.*)", conf)
    gateway.local_conf(f"http_port [::]:{BOTH_FAMILIES}{own}")
    for value in (SECRET, OTHERS_SECRET):
        gateway.remember(value)
    service = Service(gateway, gateway.authority, f"[::]:{BOTH_FAMILIES}")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, gateway.layout.sessions_run)
        stack.callback(service.kill)
        gateway.start()
        service.start()
        yield service


@pytest.fixture
def service(started: Service) -> Iterator[Service]:
    yield started
    started.call("PUT", "/v1/sessions", {"sessions": []})


def told(reply: Reply) -> object:
    return reply.rule or reply.status


def ask(gateway: Proxy, client: str, url: str) -> object:
    """Ask for a URL of http in a connection of its own."""
    with Raw(gateway, client) as raw:
        return told(raw.get(url, url.split("/")[2]))


def inner(gateway: Proxy, client: str, host: str) -> object:
    """Ask for a host by https; the status of a refused CONNECT."""
    with Raw(gateway, client) as raw:
        answer = raw.connect(f"{host}:443")
        if answer.status != 200:
            return told(answer)
        return told(raw.tls(host).get("/", host))


# ── IPv6 ──────────────────────────────────────────────────────────────────────────────


def test_a_network_of_ipv6_is_one_session_and_the_next_one_is_none(
    service: Service, origins: Origins
) -> None:
    six, url = Six(service.gateway), "http://docs.example/"
    made = service.put("net", "reader", address=f"{NET}::/64")
    before = len(service.gateway.log())
    for host in ("a", "b"):
        assert ask(six, f"{NET}::{host}", url) == 200
        assert inner(six, f"{NET}::{host}", "docs.example") == 200
        assert ask(six, f"{NET}::{host}", "http://upload.example/") == "default"
        assert ask(six, f"{NEXT}::{host}", url) == "session-required"
    numbers = {
        line["session"]
        for line in service.gateway.log()[before:]
        if line["client"].startswith(NET)
    }
    assert numbers == {f"{made['number']}"}
    with ExitStack() as stack:
        opened = [
            stack.enter_context(tunnel(six, "docs.example:443", client=client))
            for client in (f"{NET}::a", f"{NET}::b")
        ]
        for raw in opened:
            assert raw.get("/", "docs.example").status == 200
        ended = service.delete("net")
        assert (ended.status, ended.body) == (204, None)
        for raw in opened:
            wait_for(raw.is_ended, "the end")
    wait_for(lambda: ask(six, f"{NET}::a", url) == "session-required")


@pytest.mark.parametrize(
    ("first", "second"),
    [(f"{NET}::/64", f"{NET}::a"), (f"{NET}::a", f"{NET}::/64")],
)
def test_networks_that_overlap_inherit_nothing_when_used_after_each_other(
    service: Service, origins: Origins, first: str, second: str
) -> None:
    six, client = Six(service.gateway), f"{NET}::a"
    service.put("first", "writer", address=first)
    assert ask(six, client, "http://upload.example/") == 200
    assert inner(six, client, "upload.example") == 200
    service.delete("first")
    service.put("second", "reader", address=second)
    before = len(origins.seen)
    assert ask(six, client, "http://upload.example/") == "default"
    assert inner(six, client, "upload.example") == "default"
    assert origins.seen[before:] == []
    assert ask(six, client, "http://docs.example/") == 200


def test_an_ipv4_client_of_a_port_of_ipv6_has_the_session_of_its_address(
    service: Service, origins: Origins
) -> None:
    four = Six(service.gateway, "127.0.0.1")
    made = service.put("vm", "reader", address=f"::ffff:{VM}")
    assert ask(four, VM, "http://docs.example/") == 200
    assert ask(four, OTHER, "http://docs.example/") == "session-required"
    assert made["address"] == VM
    with tunnel(four, "docs.example:443", client=VM) as kept:
        assert kept.get("/", "docs.example").status == 200
        service.delete("vm")
        wait_for(kept.is_ended, "the end")


# ── What is not read ──────────────────────────────────────────────────────────────────


def passed_through(gateway: Gateway, client: str) -> Raw:
    raw = Raw(gateway, client)
    assert raw.connect("pinned.example:443").status == 200
    return raw.tls("pinned.example", gateway.root.parent / "upstream.crt")


def websocket(gateway: Gateway, client: str) -> ClientConnection:
    opened = socket.create_connection(gateway.address, source_address=(client, 0))
    with opened.makefile("rb") as answer:
        opened.sendall(
            b"CONNECT chat.example:9443 HTTP/1.1\r\nHost: chat.example:9443\r\n\r\n"
        )
        assert b" 200 " in answer.readline()
        while answer.readline() != b"\r\n":
            pass
    context = ssl.create_default_context(cafile=str(gateway.ca))
    return connect(
        "wss://chat.example:9443/", sock=opened, ssl=context, compression=None
    )


def test_a_passthrough_and_a_websocket_are_for_the_role_and_end_with_the_session(
    service: Service, origins: Origins, echoing: Server
) -> None:
    gateway = service.gateway
    service.put("vm", "writer", address=VM)
    service.put("other", "reader", address=OTHER)
    with Raw(gateway, OTHER) as refused:
        assert told(refused.connect("pinned.example:443")) in ("default", 403, 200)
        with suppress(ssl.SSLError):  # the page is of the gateway
            page = refused.tls("pinned.example").get("/", "pinned.example")
            assert told(page) == "default"
    with ExitStack() as stack:
        raw = stack.enter_context(passed_through(gateway, VM))
        live = stack.enter_context(websocket(gateway, VM))
        live.send("hello")
        assert live.recv(60) == "hello"
        assert raw.get("/", "pinned.example").status == 200
        ended = service.delete("vm")
        assert (ended.status, ended.body) == (204, None)
        wait_for(raw.is_ended, "the end")
        with pytest.raises(ConnectionClosed):
            live.recv(60)
    service.put("successor", "reader", address=VM)
    before = len(origins.connections)
    assert inner(gateway, VM, "pinned.example") == "default"
    assert origins.connections[before:] == []


# ── Shared connections ────────────────────────────────────────────────────────────────


@pytest.mark.skipif(DOCUMENTED in os.environ, reason="nothing is shared then")
def test_what_sessions_share_has_neither_the_rights_nor_the_secret_of_another(
    service: Service, origins: Origins
) -> None:
    gateway = service.gateway
    service.put("one", "reader", address=VM, secrets={"key": SECRET})
    service.put("two", "writer", address=OTHER, secrets={"key": OTHERS_SECRET})
    with ExitStack() as stack:
        open_at = partial(tunnel, gateway)
        shared, closed = (
            [
                (stack.enter_context(open_at(f"{host}:443", client=client)), value)
                for client, value in ((VM, SECRET), (OTHER, OTHERS_SECRET))
            ]
            for host in (POOL, WITH_SECRET)
        )
        for number in range(5):
            for raw, _ in shared:
                assert raw.get(f"/{number}", POOL).status == 200
            assert inner(gateway, (VM, OTHER)[number % 2], POOL) == 200
        assert not [seen for seen in origins.seen if seen.values("Authorization")]
        for number in range(5):
            for raw, value in closed:
                assert raw.get(f"/{number}", WITH_SECRET).status == 200
                assert origins.seen[-1].target == f"/{number}"
                assert origins.seen[-1].values("Authorization") == [f"Bearer {value}"]
        service.delete("one")
        service.put("three", "reader", address=VM)  # it brings none
        at = len(origins.seen)
        assert inner(gateway, VM, WITH_SECRET) != 200
        assert origins.seen[at:] == []
        assert inner(gateway, VM, POOL) == 200
        assert origins.seen[-1].values("Authorization") == []
        assert closed[1][0].get("/still", WITH_SECRET).status == 200
        assert origins.seen[-1].values("Authorization") == [f"Bearer {OTHERS_SECRET}"]
        service.delete("three")
        wait_for(lambda: inner(gateway, VM, POOL) != 200)
