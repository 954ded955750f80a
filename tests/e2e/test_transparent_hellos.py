"""ClientHellos of attackers at port 443: Squid is asked for a host, or not at all, and
lives.
"""

import socket
from contextlib import suppress

import pytest

from squidkeeper.services.transparent.connection import UNRECOGNIZED_NAME
from tests.services.test_transparent_hello import FOUND, NO_NAME, REFUSED

from .transparent import Transparent

POLICY = """
version: 1
defaults: {action: allow}
"""


def answer(transparent: Transparent, sent: bytes) -> bytes:
    """Send a hello; return what comes first."""
    with (
        socket.create_connection(transparent.https.address, 20) as client,
        suppress(OSError),
    ):
        client.sendall(sent)
        return client.recv(65536)
    return b""


@pytest.mark.parametrize(("sent", "name"), FOUND.values(), ids=FOUND)
def test_squid_is_asked_for_the_name(
    transparent: Transparent, sent: bytes, name: str
) -> None:
    before = len(transparent.gateway.log())
    answer(transparent, sent)
    line = transparent.gateway.logged(f"{name}:443", before)
    assert (line["method"], line["client"]) == ("CONNECT", transparent.https.address[0])


def test_what_names_no_server_never_reaches_squid(transparent: Transparent) -> None:
    before = len(transparent.gateway.log())
    for about, (sent, result) in REFUSED.items():
        # a reset can overtake an alert
        expected = {UNRECOGNIZED_NAME, b""} if result == NO_NAME else {b""}
        assert answer(transparent, sent) in expected, about
    answer(transparent, FOUND["a plain hello"][0])
    transparent.gateway.logged("api.example.com:443", before)
    assert {line["url"] for line in transparent.gateway.log()[before:]} == {
        "api.example.com:443"
    }


def test_squid_lived_through_it(transparent: Transparent) -> None:
    assert transparent.gateway.fatal() == []
    assert "assertion failed" not in transparent.gateway.cache_log()
