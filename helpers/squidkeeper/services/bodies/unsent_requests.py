"""Metered requests that reached no origin: Squid tells them in datagrams, as lines of a
log (meter.conf).

No answer comes to such a request. One whose datagram is lost counts for its reserve.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from squidkeeper.base.errors import InvalidIcap
from squidkeeper.policy.usage.tokens import NOTHING_USED
from squidkeeper.services.bodies.settlement import Metered

if TYPE_CHECKING:
    from squidkeeper.services.bodies.settlement import Settler

_LONGEST: Final = 65_536  # bytes of a datagram
_log = logging.getLogger(__name__)


def listen_for_unsent(
    loop: asyncio.AbstractEventLoop, address: tuple[str, int], settler: Settler
) -> None:
    """Give back the reserves of requests that Squid has not sent; several processes
    share the address.
    """
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        datagrams.bind(address)
        loop.add_reader(datagrams, _read, datagrams, settler)
    except OSError as error:
        datagrams.close()
        _log.error(
            "reserves of requests that reached no origin stay: %s:%s: %s",
            *address,
            error.strerror,
        )


def _read(datagrams: socket.socket, settler: Settler) -> None:
    with suppress(OSError):
        settle_unsent(datagrams.recv(_LONGEST), settler)


def settle_unsent(datagram: bytes, settler: Settler) -> None:
    """Count nothing for the requests that a datagram names, one a line."""
    for line in datagram.decode("ascii", "replace").splitlines():
        with suppress(InvalidIcap):
            settler.settle(Metered.parse(unquote(line)), NOTHING_USED, whole=True)
