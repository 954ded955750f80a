"""Programs that listen where only services of the gateway may."""

from collections.abc import Iterable, Iterator

import psutil

from squidkeeper.operate.setup.options import port_of
from squidkeeper.operate.setup.processes import InstalledService


def foreign_listeners(
    address: str, services: Iterable[InstalledService], protocol: str = "tcp"
) -> Iterator[psutil.Process]:
    """Yield the processes that take what is sent to ADDRESS:PORT, and are none of these
    services.
    """
    own = {pid for service in services for pid in _with_children(service.pid())}
    for pid in sorted(_listeners(address, protocol) - own):
        yield psutil.Process(pid)


def _with_children(pid: int | None) -> Iterator[int]:
    if pid:
        first = psutil.Process(pid)
        yield from (process.pid for process in (first, *first.children(recursive=True)))


def _listeners(address: str, protocol: str) -> set[int]:
    host, port = address.rpartition(":")[0].strip("[]"), port_of(address)
    places = {(host, port), ("0.0.0.0", port), ("::", port)}  # noqa: S104 - compared, not bound
    found = (one for one in psutil.net_connections(protocol) if one.laddr[:2] in places)
    listening = psutil.CONN_NONE if protocol == "udp" else psutil.CONN_LISTEN
    return {
        one.pid
        for one in found
        if one.pid and one.status == listening and not one.raddr
    }
