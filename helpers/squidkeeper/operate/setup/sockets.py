"""Processes and the ports that they listen on."""

import socket
import time
from collections.abc import Callable
from errno import EADDRINUSE

import psutil


def wait_until(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; False where it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended; its parent may not have noticed yet."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def process_listens(pid: int | None, port: int) -> bool:
    """Tell whether a process or one of its descendants listens on a TCP port."""
    if not pid:
        return False
    try:
        master = psutil.Process(pid)
        return any(_listens(process, port) for process in (master, *master.children(recursive=True)))
    except psutil.NoSuchProcess:
        return False


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        found = process.net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr[1] == port for one in found)


def is_open(port: int) -> bool:
    """Tell whether any process listens on a TCP port. No rights are needed, and the port is left alone."""
    return any(one.status == psutil.CONN_LISTEN and one.laddr[1:2] == (port,) for one in psutil.net_connections("tcp"))


def is_free(listen: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Tell whether nobody listens on PORT, ADDRESS:PORT or [ADDRESS]:PORT; an OSError where the address is unknown."""
    host, _, port = listen.rpartition(":")
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or "[" in host else socket.AF_INET
    try:
        if kind is socket.SOCK_DGRAM:
            with socket.socket(family, kind) as probe:
                probe.bind((host, int(port)))
        else:
            socket.create_server((host.strip("[]"), int(port)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        if error.errno == EADDRINUSE:
            return False
        raise
    return True
