"""How a drained gateway becomes idle: its open connections, counted in the kernel's tables."""

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from squidkeeper.operate.setup.options import port_of

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_OPEN: Final = frozenset({"01", "08"})  # ESTABLISHED; CLOSE_WAIT: the client has sent all, and may still read
# A load balancer asks for /healthz every second, and believes the third answer. Until then clients come.
NOTICE_SECONDS: Final = 5.0
_COUNT_EVERY_SECONDS: Final = 0.5
_TELL_EVERY_SECONDS: Final = 10.0


def open_connections(listen: str) -> int:
    """Count the connections to what listens on PORT, ADDRESS:PORT or [ADDRESS]:PORT of this machine."""
    host, port = listen.rpartition(":")[0].strip("[]"), port_of(listen)
    every = host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
    wanted = "" if every else _kernels_form(host)
    return sum(own_port == port and (every or own.endswith(wanted)) for own, own_port in _local_ends())


def _local_ends() -> Iterator[tuple[str, int]]:
    """Yield the own address, as the kernel writes it, and the own port of each open connection."""
    for table in _TABLES:
        lines = table.read_text().splitlines()[1:] if table.exists() else ()
        for _, own, _, state, *_ in map(str.split, lines):
            if state in _OPEN:
                address, _, port = own.partition(":")
                yield address, int(port, 16)


def _kernels_form(host: str) -> str:
    """Write an address as /proc/net/tcp does: words of 32 bits in the machine's order. A mapped one ends as IPv4's."""
    packed = ip_address(host).packed
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{socket.ntohl(int.from_bytes(word, 'big')):08X}" for word in words)


def wait_until_idle(
    listen: str,
    seconds: float,
    tell: Callable[[int], None],
    *,
    noticed_seconds: float = 0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Wait until no connection is open, and none can come any more; give how many are left after `seconds`.

    Load balancers have had `noticed_seconds` already to notice.
    """
    start = clock()
    told = float("-inf")
    while True:
        left, waited = open_connections(listen), clock() - start
        if waited >= seconds or (not left and noticed_seconds + waited >= NOTICE_SECONDS):
            return left
        if left and waited - told >= _TELL_EVERY_SECONDS:
            tell(left)
            told = waited
        sleep(_COUNT_EVERY_SECONDS)
