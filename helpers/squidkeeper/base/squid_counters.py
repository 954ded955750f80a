"""Squid's own counters, read from its cache manager on loopback."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from socket import SHUT_RDWR, socket
from threading import Timer
from time import monotonic
from typing import Final

PAGE: Final = "/squid-internal-mgr/counters"
TIMEOUT_SECONDS: Final = 1.0
# A PROXY header, version 2, without addresses (LOCAL): those of the connection count.
_PROXY_HEADER: Final = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
_NUMBER = re.compile(r"[0-9]{1,300}(\.[0-9]+)?", re.ASCII)
_PAGE_BYTES = 64 * 1024  # twenty times what Squid writes


@dataclass(frozen=True, slots=True)
class SquidCounters:
    """Squid's counters by its own names. `problem`: why there are none. `answers`: whether Squid answered at all."""

    values: dict[str, float]
    problem: str | None = None
    answers: bool = False


def read_counters(host: str, port: int, *, proxy_header: bool = False) -> SquidCounters:
    """Read the counters of the Squid at this address; never fails, and takes two seconds at most.

    The request comes from loopback, the only source that squid.conf allows, even if Squid listens on another address.
    `proxy_header`: the port requires a PROXY header.
    """
    loopback = "::1" if ":" in host else "127.0.0.1"
    connection = HTTPConnection(host, port, TIMEOUT_SECONDS, source_address=(loopback, 0))
    try:
        connection.connect()
        with _ended_after(TIMEOUT_SECONDS, connection.sock):
            if proxy_header:
                connection.sock.sendall(_PROXY_HEADER)
            connection.request("GET", PAGE)
            response = connection.getresponse()
            page = response.read(_PAGE_BYTES)
    except (OSError, HTTPException) as error:
        return SquidCounters({}, str(error) or type(error).__name__)
    finally:
        connection.close()
    if response.status != 200:
        problem = f"{PAGE} is answered {response.status}: does squid.conf open it for this address?"
        return SquidCounters({}, problem, answers=True)
    values = parse_counters(page)
    return SquidCounters(values, None if values else f"{PAGE} holds no counters", answers=True)


@contextmanager
def _ended_after(seconds: float, connection: socket) -> Iterator[None]:
    """Bound a whole exchange, which single bytes extend otherwise; TimeoutError if it takes longer."""
    deadline = monotonic() + seconds
    end = Timer(seconds, _end, [connection])
    end.start()
    try:
        yield
    finally:
        end.cancel()
        if monotonic() >= deadline:  # what was read may be a part
            raise TimeoutError("timed out")


def _end(connection: socket) -> None:
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)


def parse_counters(page: bytes) -> dict[str, float]:
    """Parse the page: lines of `name = number`; ignore others."""
    pairs = (line.partition(" = ") for line in page.decode("latin-1").splitlines())
    return {name.strip(): float(value) for name, _, value in pairs if _is_number(value)}


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None
