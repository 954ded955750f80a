"""Machines of a fleet: network namespaces on one bridge, which the internet of
tests/e2e is the way out of.

A socket or process belongs to the namespace of the thread that makes it. So a block
with `machine.entered()` runs on that machine: what it starts stays there.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.network import run

BRIDGE = "brfleet"
ROUTER = "10.99.0.1"  # the internet's own address on the bridge
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def bridge() -> Iterator[None]:
    """Make the bridge, in the namespace that stands for the internet."""
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{ROUTER}/16", "dev", BRIDGE)
    run("ip", "addr", "add", "fd99::1/48", "dev", BRIDGE, "nodad", check=False)
    run("ip", "link", "set", BRIDGE, "up")
    try:
        yield
    finally:
        run("ip", "link", "del", BRIDGE)


class Machine:
    """A machine with addresses of its own, IPv4 in 10.99.0.0/16 and IPv6 in
    fd99::/48.
    """

    def __init__(self, name: str, *addresses: str) -> None:
        self.name = name
        self.address = addresses[0]
        script = "ip link set lo up && echo ready && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "setpriv", "--pdeathsig", "KILL", "sh", "-ec", script],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self._namespace = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)
        peer = ("peer", "name", "eth0", "netns", str(self._holder.pid))
        run("ip", "link", "add", self._port, "type", "veth", *peer)
        run("ip", "link", "set", self._port, "master", BRIDGE, "up")
        with self.entered():
            run("ip", "link", "set", "eth0", "up")
            for address in addresses:
                network = (
                    (f"{address}/48", "nodad") if ":" in address else (f"{address}/16",)
                )
                run("ip", "addr", "add", network[0], "dev", "eth0", *network[1:])
            run("ip", "route", "add", "default", "via", ROUTER)

    @property
    def _port(self) -> str:
        return f"f-{self.name}"[:15]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this machine: the thread, and what it starts."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert _LIBC.setns(self._namespace, _CLONE_NEWNET) == 0
        try:
            yield
        finally:
            _LIBC.setns(home, _CLONE_NEWNET)
            os.close(home)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Let its packets be lost meanwhile, both ways: nobody is told."""
        run("ip", "link", "set", self._port, "nomaster")
        try:
            yield
        finally:
            run("ip", "link", "set", self._port, "master", BRIDGE)

    def stop(self) -> None:
        """Remove it, with its network."""
        self._holder.kill()
        self._holder.communicate()
        os.close(self._namespace)
        run("ip", "link", "del", self._port, check=False)
