"""What a client has open is cut on a live Squid, whatever it is, and others' go on."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server

from squidkeeper.services.sessions.connections import Cut, Listener, cut
from tests.waiting import wait_for

from .gateway import Gateway
from .network import run
from .origin import Origins, Stream
from .raw import Raw, tunnel
from .websocket import open_websocket

POLICY = """
version: 1
clients:
  vms: {networks: [127.0.0.0/28, "::/64"]}
rules:
  - {name: agents, action: allow, clients: [vms], hosts: [example.com]}
  - {name: pinned, action: allow, clients: [vms], hosts: [pinned.example], tls: passthrough}
  - {name: chat, action: allow, clients: [vms], hosts: [chat.example], ports: [9443], websocket: true}
"""
BOTH_FAMILIES = 4129  # a port of Squid where IPv4 clients have IPv6 sockets
LOCAL_CONF = (f"http_port [::]:{BOTH_FAMILIES}",)
ENDED, OTHER = "127.0.0.5", "127.0.0.6"
STREAM = Stream(events=(b"data: event\n\n",) * 3000, pause=0.1)
PLAIN = "http://example.com"


class Entrance(NamedTuple):
    """A port of Squid beside the gateway's own."""

    address: tuple[str, int]
    ca: Path


def listener(gateway: Gateway) -> Listener:
    return Listener(*gateway.address)


def kept_alive(gateway: Gateway, client: str) -> Raw:
    raw = tunnel(gateway, "example.com:443", client=client)
    assert raw.get("/kept", "example.com").status == 200
    return raw


def streaming(gateway: Gateway, client: str) -> Raw:
    raw = tunnel(gateway, "example.com:443", client=client)
    raw.send("GET /stream HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert b"data: event" in raw.lines()
    return raw


def silent(gateway: Gateway, client: str) -> Raw:
    return Raw(gateway, client)


def half_a_head(gateway: Gateway, client: str) -> Raw:
    return Raw(gateway, client).send(f"GET {PLAIN}/half HTTP/1.1\r\n")


def unused_tunnel(gateway: Gateway, client: str) -> Raw:
    raw = Raw(gateway, client)
    assert raw.connect("example.com:443").status == 200
    return raw


def passed_through(gateway: Gateway, client: str) -> Raw:
    raw = Raw(gateway, client)
    assert raw.connect("pinned.example:443").status == 200
    raw.tls("pinned.example", gateway.root.parent / "upstream.crt")
    assert raw.get("/pinned", "pinned.example").status == 200
    return raw


OPEN = (kept_alive, streaming, silent, half_a_head, unused_tunnel, passed_through)


@pytest.fixture
def opened(origins: Origins) -> Iterator[ExitStack]:
    origins.answers["example.com/stream"] = STREAM
    with ExitStack() as stack:
        yield stack


def test_all_that_a_client_has_open_ends_and_others_go_on(
    gateway: Gateway, opened: ExitStack, echoing: Server
) -> None:
    before = len(gateway.log())
    theirs, others = (
        [opened.enter_context(way(gateway, client)) for way in OPEN]
        for client in (ENDED, OTHER)
    )
    theirs_live, others_live = (
        opened.enter_context(open_websocket(gateway, client=client))
        for client in (ENDED, OTHER)
    )
    all_of_it = len(OPEN) + 1
    assert cut([ip_network(ENDED)], [listener(gateway)]) == Cut(ended=all_of_it)
    for raw in theirs:
        wait_for(raw.is_ended, "the end")
    with pytest.raises(ConnectionClosed):
        theirs_live.recv(60)
    assert [raw.is_ended() for raw in others] == [False] * len(OPEN)
    others_live.send("hello")
    assert others_live.recv(60) == "hello"
    assert others[0].get("/kept", "example.com").status == 200
    ways = {"https://example.com/stream": "agents", "pinned.example:443": "pinned"}
    for url, rule in ways.items():
        line = gateway.logged(url, before)
        assert (line["client"], line["status"], line["rule"]) == (ENDED, 200, rule)
    live = gateway.logged("https://chat.example:9443/", before)
    assert (live["client"], live["status"], live["rule"]) == (ENDED, 101, "chat")


def test_a_client_of_a_listener_of_ipv6_is_found_by_either_family(
    gateway: Gateway, origins: Origins
) -> None:
    clients = (("127.0.0.1", ENDED), ("127.0.0.1", OTHER), ("::1", "::1"))
    with ExitStack() as stack:
        opened = [
            stack.enter_context(
                Raw(Entrance((host, BOTH_FAMILIES), gateway.ca), client)
            )
            for host, client in clients
        ]
        for raw in opened:
            assert raw.get(f"{PLAIN}/", "example.com").status == 200
        everywhere = [Listener("::", BOTH_FAMILIES)]
        assert cut([ip_network(ENDED)], [listener(gateway)]) == Cut()
        assert cut([ip_network(ENDED)], everywhere) == Cut(ended=1)
        assert cut([ip_network("::1")], everywhere) == Cut(ended=1)
        assert opened[1].get(f"{PLAIN}/", "example.com").status == 200


def test_what_the_kernel_does_not_end_is_left(gateway: Gateway) -> None:
    program = f"""
from ipaddress import ip_network
from squidkeeper.services.sessions.connections import Listener, cut
print(cut([ip_network("{ENDED}")], [Listener(*{gateway.address})]))
"""
    with silent(gateway, ENDED) as theirs, kept_alive(gateway, ENDED):
        said = run(
            "setpriv", "--bounding-set=-net_admin", sys.executable, "-c", program
        )
        assert said == "Cut(ended=0, left=2, problem='')\n"
        assert not theirs.is_ended()


def test_without_the_program_nothing_is_known(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = cut([ip_network(ENDED)], [listener(gateway)])
    assert found == Cut(problem="ss cannot be started: No such file or directory")
