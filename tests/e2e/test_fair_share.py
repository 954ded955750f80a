"""What one client gets while another sends what costs most of what it may send; by a clock, so for a quiet machine."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import tunnel

pytestmark = pytest.mark.long
ATTACKER, HONEST = "127.0.0.2", "127.0.0.9"
WATCHES = """
version: 1
canaries:
  bait: {file: secrets/bait}
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: asked, action: ask, hosts: [asked.example]}
"""
JUDGES_PATHS = "version: 1\nrules:\n" + "".join(
    f'  - {{name: path-{number}, action: allow, hosts: [open.example], paths: ["/**/{number}/*.js"]}}\n'
    for number in range(50)
)
Request = Callable[[int], bytes]


def with_header(value: bytes) -> Request:
    head = b"GET http://open.example/ HTTP/1.1\r\nHost: open.example\r\nUser-Agent: %b\r\n\r\n" % value
    return lambda _: head


def with_path(path: bytes) -> Request:
    head = b"GET http://open.example/%b HTTP/1.1\r\nHost: open.example\r\n\r\n" % path
    return lambda _: head


def asked(number: int) -> bytes:
    return b"GET http://asked.example/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number


LONG_HEADER = with_header(b"%25" * 20_000)
ESCAPES = with_header(b"%25" * 5_300)  # with the rest of the head just under what Squid takes
PERCENT_SIGNS = with_header(b"%" * 15_900)
BACKSLASHES = with_path(b"\\" * 8_000)
DOTS = with_path(b"%252f.." * 1_100)


@pytest.fixture(scope="module")
def watching(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(WATCHES)
    gateway.secret("bait", "AKIAWATCHBAIT0EXAMPLE")
    gateway.render()
    return gateway.start()


@pytest.fixture(scope="module")
def judging(new_gateway: NewGateway) -> Gateway:
    return new_gateway(JUDGES_PATHS).start()


async def attack(
    address: tuple[str, int], connections: int, request: Request, over: threading.Event, *, aborts: bool
) -> None:
    """Keep so many connections busy; with `aborts`, each request is broken off at once."""

    async def one(number: int) -> None:
        while not over.is_set():
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*address, local_addr=(ATTACKER, 0))
                number += connections
                writer.write(request(number))
                if not aborts:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(), 60)
                writer.transport.abort()

    await asyncio.gather(*map(one, range(connections)))


@contextmanager
def attacked(gateway: Gateway, connections: int, request: Request, *, aborts: bool) -> Iterator[None]:
    over = threading.Event()
    attacking = attack(gateway.address, connections, request, over, aborts=aborts)
    thread = threading.Thread(target=lambda: asyncio.run(attacking))
    thread.start()
    try:
        time.sleep(4)  # the helpers start
        yield
    finally:
        over.set()
        thread.join()


def new_tunnel(gateway: Gateway, path: str) -> float:
    """Give the seconds that another client's request in a new tunnel takes."""
    begun = time.monotonic()
    with tunnel(gateway, "open.example:443", client=HONEST) as raw:
        reply = raw.get(path, "open.example")
    assert reply is not None
    assert reply.status == 200
    return time.monotonic() - begun


def p99_of_another_client(gateway: Gateway, path: str) -> float:
    took = []
    for _ in range(100):
        took.append(new_tunnel(gateway, path))
        time.sleep(0.02)
    return sorted(took)[98]


@pytest.mark.parametrize("connections", [200, 1500])
@pytest.mark.parametrize(
    "request_", [LONG_HEADER, ESCAPES, PERCENT_SIGNS], ids=["long header", "escapes", "percent signs"]
)
def test_another_client_hardly_waits_for_a_search(
    watching: Gateway, origins: Origins, connections: int, request_: Request
) -> None:
    new_tunnel(watching, "/")  # starts the helpers
    with attacked(watching, connections, request_, aborts=False):
        assert p99_of_another_client(watching, "/") < 0.3


def test_another_client_hardly_waits_for_tickets(watching: Gateway, origins: Origins) -> None:
    with attacked(watching, 100, asked, aborts=True):
        assert p99_of_another_client(watching, "/") < 0.3


@pytest.mark.parametrize("request_", [BACKSLASHES, DOTS], ids=["backslashes", "dots"])
def test_another_client_hardly_waits_for_paths(judging: Gateway, origins: Origins, request_: Request) -> None:
    path = "/a/49/b.js"
    new_tunnel(judging, path)  # starts the helpers
    with attacked(judging, 1500, request_, aborts=False):
        assert p99_of_another_client(judging, path) < 0.3
