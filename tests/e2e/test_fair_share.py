"""What one client gets while another sends what costs most: its requests are answered
while the other goes on.

That a helper takes the lines of clients in turn is shown by
tests/serving/test_client_shares.py.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from tests.waiting import pause, wait_for

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
    head = (
        b"GET http://open.example/ HTTP/1.1\r\nHost: open.example\r\nUser-Agent: %b\r\n\r\n"
        % value
    )
    return lambda _: head


def with_path(path: bytes) -> Request:
    head = b"GET http://open.example/%b HTTP/1.1\r\nHost: open.example\r\n\r\n" % path
    return lambda _: head


def asked(number: int) -> bytes:
    return b"GET http://asked.example/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number


LONG_HEADER = with_header(b"%25" * 20_000)
# with the rest of the head just under what Squid takes
ESCAPES = with_header(b"%25" * 5_300)
PERCENT_SIGNS = with_header(b"%" * 15_900)
BACKSLASHES = with_path(b"\\" * 8_000)
DOTS = with_path(b"%252f.." * 1_100)


@pytest.fixture(scope="module")
def watching(new_gateway: NewGateway) -> Gateway:
    return new_gateway(WATCHES, secrets={"bait": "AKIAWATCHBAIT0EXAMPLE"}).start()


@pytest.fixture(scope="module")
def judging(new_gateway: NewGateway) -> Gateway:
    return new_gateway(JUDGES_PATHS).start()


@dataclass
class Attack:
    address: tuple[str, int]
    connections: int
    request: Request
    aborts: bool = False  # each request is broken off at once
    ended: int = 0  # requests
    over: bool = False

    async def run(self) -> None:
        await asyncio.gather(*map(self._one, range(self.connections)))

    async def _one(self, number: int) -> None:
        while not self.over:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    *self.address, local_addr=(ATTACKER, 0)
                )
                number += self.connections
                writer.write(self.request(number))
                if not self.aborts:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 60)  # it has its answer
                self.ended += 1
                writer.transport.abort()


@contextmanager
def under(attack: Attack) -> Iterator[None]:
    thread = threading.Thread(target=lambda: asyncio.run(attack.run()))
    thread.start()
    try:
        wait_for(lambda: attack.ended > 10, "the helpers to start")
        yield
    finally:
        attack.over = True
        thread.join()


def ask_in_new_tunnel(gateway: Gateway, path: str) -> None:
    with tunnel(gateway, "open.example:443", client=HONEST) as raw:
        reply = raw.get(path, "open.example")
    assert reply is not None
    assert reply.status == 200


def assert_it_is_served(gateway: Gateway, path: str, attack: Attack) -> None:
    """Fail unless each of another client's requests is answered, and the attack goes on
    meanwhile.
    """
    ask_in_new_tunnel(gateway, path)  # starts the helpers
    with under(attack):
        before = attack.ended
        for _ in range(100):
            ask_in_new_tunnel(gateway, path)
            pause(0.02, "the pace of a client")
        assert attack.ended > before


@pytest.mark.parametrize("connections", [200, 1500])
@pytest.mark.parametrize(
    "request_",
    [LONG_HEADER, ESCAPES, PERCENT_SIGNS],
    ids=["long header", "escapes", "percent signs"],
)
def test_another_client_is_served_beside_searches(
    watching: Gateway, origins: Origins, connections: int, request_: Request
) -> None:
    assert_it_is_served(watching, "/", Attack(watching.address, connections, request_))


def test_another_client_is_served_beside_tickets(
    watching: Gateway, origins: Origins
) -> None:
    assert_it_is_served(
        watching, "/", Attack(watching.address, 100, asked, aborts=True)
    )


@pytest.mark.parametrize("request_", [BACKSLASHES, DOTS], ids=["backslashes", "dots"])
def test_another_client_is_served_beside_paths(
    judging: Gateway, origins: Origins, request_: Request
) -> None:
    assert_it_is_served(judging, "/a/49/b.js", Attack(judging.address, 1500, request_))
