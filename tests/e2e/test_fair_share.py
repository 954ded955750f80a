"""What one client gets while another sends what costs most of what it may send; by a clock, so for a quiet machine."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import tunnel

pytestmark = pytest.mark.long
ATTACKER, HONEST = "127.0.0.2", "127.0.0.9"
POLICY = """
version: 1
canaries:
  bait: {file: secrets/bait}
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: asked, action: ask, hosts: [asked.example]}
"""
HEAD = b"GET http://open.example/ HTTP/1.1\r\nHost: open.example\r\nUser-Agent: " + b"%25" * 20_000 + b"\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(POLICY)
    gateway.secret("bait", "AKIAWATCHBAIT0EXAMPLE")
    gateway.render()
    return gateway.start()


async def attack(address: tuple[str, int], connections: int, asks: bool, over: threading.Event) -> None:
    """Keep so many connections busy: with 60 KB of escapes, or with questions that are broken off at once."""

    async def one(number: int) -> None:
        while not over.is_set():
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*address, local_addr=(ATTACKER, 0))
                number += connections
                writer.write(b"GET http://asked.example/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number if asks else HEAD)
                if not asks:
                    await reader.read()
                writer.transport.abort()

    await asyncio.gather(*map(one, range(connections)))


@contextmanager
def attacked(gateway: Gateway, connections: int, asks: bool) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(attack(gateway.address, connections, asks, over)))
    thread.start()
    try:
        time.sleep(2)  # the helpers start
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("connections", "asks"), [(200, False), (1500, False), (100, True)])
def test_another_client_hardly_waits(gateway: Gateway, origins: Origins, connections: int, asks: bool) -> None:
    took = []
    with attacked(gateway, connections, asks):
        for _ in range(100):
            begun = time.monotonic()
            with tunnel(gateway, "open.example:443", client=HONEST) as raw:
                reply = raw.get("/", "open.example")
            assert reply is not None
            assert reply.status == 200
            took.append(time.monotonic() - begun)
            time.sleep(0.02)
    p99 = sorted(took)[98]
    assert p99 < 0.3
