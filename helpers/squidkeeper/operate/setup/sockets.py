"""Processes and the ports that they listen on, and how a drained gateway becomes idle.

Its open connections are counted in the kernel's tables.
"""

import socket
import time
from collections.abc import Callable, Iterator
from errno import EADDRINUSE
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import psutil

from squidkeeper.operate.setup.options import port_of


def wait_until(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; False where it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def has_ended(pid: int) -> bool:
    """Whether a process has ended; its parent may not have noticed yet."""
    try:
        return psutil.Process(pid).status() in (
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
        )
    except psutil.NoSuchProcess:
        return True


def process_listens(pid: int | None, port: int) -> bool:
    """Whether a process or one of its descendants listens on a TCP port."""
    if not pid:
        return False
    try:
        master = psutil.Process(pid)
        return any(
            _listens(process, port)
            for process in (master, *master.children(recursive=True))
        )
    except psutil.NoSuchProcess:
        return False


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        found = process.net_connections("tcp")
    except psutil.Error:
        return False
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port
        for connection in found
    )


def is_open(port: int) -> bool:
    """Whether any process listens on a TCP port.

    No rights are needed, and the port is left alone.
    """
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr[1:2] == (port,)
        for one in psutil.net_connections("tcp")
    )


def is_free(listen: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether nobody listens on PORT, ADDRESS:PORT or [ADDRESS]:PORT; an OSError where
    the address is unknown.
    """
    host, _, port = listen.rpartition(":")
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or "[" in host else socket.AF_INET
    try:
        if kind is socket.SOCK_DGRAM:
            with socket.socket(family, kind) as probe:
                probe.bind((host, int(port)))
        else:
            socket.create_server(
                (host.strip("[]"), int(port)), family=family, dualstack_ipv6=both
            ).close()
    except OSError as error:
        if error.errno == EADDRINUSE:
            return False
        raise
    return True


_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
# ESTABLISHED; CLOSE_WAIT: the client has sent all, and may still read
_OPEN: Final = frozenset({"01", "08"})
_LISTENING: Final = frozenset({"0A"})
# A load balancer asks for /healthz every second, and believes the third answer. Until
# then clients come.
NOTICE_SECONDS: Final = 5.0
_COUNT_EVERY_SECONDS: Final = 0.5
_TELL_EVERY_SECONDS: Final = 10.0


def open_connections(listen: str) -> int:
    """Count the connections to what listens on PORT, ADDRESS:PORT or [ADDRESS]:PORT of
    this machine.
    """
    host, port = listen.rpartition(":")[0].strip("[]"), port_of(listen)
    every = host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
    wanted = "" if every else _kernels_form(host)
    return sum(
        own_port == port and (every or own.endswith(wanted))
        for own, own_port in _local_ends(_OPEN)
    )


def listeners(address: str) -> int:
    """Count the sockets that listen on ADDRESS:PORT. No rights are needed."""
    host, port = address.rpartition(":")[0], port_of(address)
    return [*_local_ends(_LISTENING)].count((_kernels_form(host), port))


def _local_ends(states: frozenset[str]) -> Iterator[tuple[str, int]]:
    for table in _TABLES:
        lines = table.read_text().splitlines()[1:] if table.exists() else ()
        for _, own, _, state, *_ in map(str.split, lines):
            if state in states:
                address, _, port = own.partition(":")
                yield address, int(port, 16)


def _kernels_form(host: str) -> str:
    """Write an address as /proc/net/tcp does: words of 32 bits in the machine's order.

    A mapped one ends as IPv4's.
    """
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
    """Wait until no connection is open, and none can come any more; give how many are
    left after `seconds`.

    Load balancers have had `noticed_seconds` already to notice.
    """
    start = clock()
    told = float("-inf")
    while True:
        left, waited = open_connections(listen), clock() - start
        if waited >= seconds or (
            not left and noticed_seconds + waited >= NOTICE_SECONDS
        ):
            return left
        if left and waited - told >= _TELL_EVERY_SECONDS:
            tell(left)
            told = waited
        sleep(_COUNT_EVERY_SECONDS)
