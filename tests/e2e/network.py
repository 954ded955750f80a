"""The network of the tests: a namespace in which every address is this machine, and a stand-in for a VM beside it."""

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
WALKTHROUGH = Path(__file__).parents[2] / "squid/WALKTHROUGH.md"
TRUST_STORE = Path("/etc/ssl/certs/ca-certificates.crt")


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command and return what it printed; its errors are in the exception's text."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@contextmanager
def internet() -> Iterator[None]:
    """Move this thread, and all that it starts, into a network where every address, v4 and v6, is this machine.

    So an origin that listens on every address is the public internet, each private network and the metadata service
    at once: what the gateway fails to deny is seen to arrive. Nothing leaves the namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: a network namespace needs root")
    try:
        run("ip", "link", "set", "lo", "up")
        run("ip", "route", "add", "local", "default", "dev", "lo", "src", "127.0.0.1", "table", "main")
        run("ip", "-6", "route", "add", "local", "default", "dev", "lo", "table", "main")
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


class VirtualMachine:
    """A VM on slicer's isolated network: its own interfaces, resolv.conf and trust store; only the gateway reachable.

    It has a default route, so that what keeps it from the internet is the host's packet filter alone.
    """

    address = "192.168.137.10"
    gateway = "192.168.137.1"

    def __init__(self, folder: Path) -> None:
        self._trust = folder / "ca-certificates.crt"
        self._trust.write_bytes(TRUST_STORE.read_bytes())
        resolv = folder / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.1\n")
        binds = f"mount --bind {self._trust} {TRUST_STORE} && mount --bind {resolv} /etc/resolv.conf"
        script = f"{binds} && ip link set lo up && echo ready && exec sleep infinity"
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-ec", script],
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"
        self._connect()

    def _connect(self) -> None:
        run("ip", "link", "add", "bragents0", "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))
        run("ip", "addr", "add", f"{self.gateway}/24", "dev", "bragents0")
        run("ip", "link", "set", "bragents0", "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", self.gateway)
        run("nft", "add table inet slicer; add chain inet slicer from_vm { type filter hook input priority 0; }")
        run("nft", f"add rule inet slicer from_vm iifname bragents0 ip daddr != {self.gateway} drop")

    def filter(self, port: int) -> None:
        """Load the rules of the walkthrough, for a proxy on this port."""
        [rules] = re.findall(r"^table inet squidkeeper \{\n.*?^\}\n", WALKTHROUGH.read_text(), re.MULTILINE | re.DOTALL)
        self.unfilter()
        run("nft", rules.replace("dport 3129", f"dport {port}"))

    def unfilter(self) -> None:
        """Leave only what slicer filters: the gateway can be sent anything."""
        run("nft", "delete table inet squidkeeper", check=False)

    def trust(self, ca: Path) -> None:
        """Put a CA into the VM's trust store, as slicer does at its first boot."""
        self._trust.write_bytes(self._trust.read_bytes() + ca.read_bytes())

    def command(self, *command: str | Path) -> list[str | Path]:
        """The command, as run inside the VM."""
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", *command]

    def run(self, *command: str | Path) -> str:
        return run(*self.command(*command))

    def stop(self) -> None:
        self.holder.kill()
        self.holder.communicate()
        run("ip", "link", "del", "bragents0", check=False)
        run("nft", "delete table inet slicer")
        self.unfilter()
