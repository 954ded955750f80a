"""A connection of a client, and the one to Squid for it."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

# a fatal one (RFC 8446, 6); its description follows
_ALERT: Final = bytes((21, 3, 3, 0, 2, 2))
UNRECOGNIZED_NAME: Final = _ALERT + bytes((112,))
ACCESS_DENIED: Final = _ALERT + bytes((49,))
INTERNAL_ERROR: Final = _ALERT + bytes((80,))
UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: "
    b"close\r\n\r\nThe gateway's Squid does not answer.\n"
)
# By the kernel, in each of its four queues, twice with what it adds (socket(7)):
# without a bound, some MB. With half of it, loopback's packets of 64 KB pass at a
# hundredth of the speed.
KEPT_BYTES: Final = 64 << 10
_TCP: Final = socket.IPPROTO_TCP
_OPTIONS: Final = (
    (_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, KEPT_BYTES),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, KEPT_BYTES),
    (_TCP, socket.TCP_NOTSENT_LOWAT, KEPT_BYTES),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (_TCP, socket.TCP_KEEPIDLE, 60),
    (_TCP, socket.TCP_KEEPINTVL, 10),
    (_TCP, socket.TCP_KEEPCNT, 6),
)


class Step(Enum):
    """How far a connection has come."""

    # the client has not sent its ClientHello, or its first byte of HTTP
    FIRST_BYTES = auto()
    QUEUED = auto()  # as many of the client's connections as may wait for Squid do
    CONNECTING = auto()  # to Squid
    ASKING = auto()  # Squid has not answered the CONNECT
    OPEN = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Port:
    """A port of clients, and where Squid takes what comes there."""

    name: str
    to: tuple[str, int]

    @property
    def is_tls(self) -> bool:
        """Whether clients speak TLS here."""
        return self.name == "https"


class End:
    """One of the two ends of a connection.

    `is_full`: it takes no more bytes now. `is_ending`: its last bytes have come.
    `ended`: they have been passed on.
    """

    __slots__ = ("connection", "ended", "is_ending", "is_full", "other", "socket")

    def __init__(self, connection: ClientConnection, of: socket.socket) -> None:
        self.connection = connection
        self.socket = of
        self.other = self
        self.is_full = self.is_ending = self.ended = False


@dataclass(eq=False, slots=True)
class Caller:
    """How many connections one client has, how many of them wait for Squid, and which
    wait for their turn.
    """

    network: str
    connections: int = 0
    asking: int = 0
    queue: dict[ClientConnection, None] = field(default_factory=dict)


class ClientConnection:
    """A client's connection.

    `until` is its deadline by the monotonic clock; 0: none.
    """

    __slots__ = (
        "client",
        "connect_until",
        "head",
        "owner",
        "port",
        "squid",
        "step",
        "until",
    )

    def __init__(
        self, accepted: socket.socket, owner: Caller, port: Port, until: float
    ) -> None:
        self.client = End(self, accepted)
        self.squid: End | None = None
        self.owner = owner
        self.port = port
        self.head = b""  # what Squid is told first
        self.step = Step.FIRST_BYTES
        self.until = until
        self.connect_until = 0.0

    def name_client(self) -> bytes:
        """Return the header of the PROXY protocol, which tells Squid who calls."""
        source, target = (
            self.client.socket.getpeername(),
            self.client.socket.getsockname(),
        )
        family = "TCP6" if self.client.socket.family == socket.AF_INET6 else "TCP4"
        hosts = " ".join(host.partition("%")[0] for host in (source[0], target[0]))
        return f"PROXY {family} {hosts} {source[1]} {target[1]}\r\n".encode()


def tune(tuned: socket.socket) -> None:
    """Have each write sent at once, bound what the kernel keeps, and find a client that
    has vanished in two minutes.
    """
    tuned.setblocking(False)
    for level, option, value in _OPTIONS:
        tuned.setsockopt(level, option, value)
