"""Network namespaces: one in which every address is this machine, and one of a VM
beside it.
"""

import ctypes
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import DemoFailed

_CLONE_NEWNET: Final = 0x40000000
# Debian, Fedora
_TRUST_STORES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
)


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command and return its output; raise `DemoFailed` with the output and the
    errors if it fails.
    """
    done = subprocess.run(  # noqa: S603 - our own commands
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        words = " ".join(map(str, command))
        raise DemoFailed(
            f"{words}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


@contextmanager
def internet() -> Iterator[None]:
    """Move this thread and its children into a network in which every address, v4 and
    v6, is this machine.

    An origin that listens on every address is the public internet, each private network
    and the metadata service at once. Nothing leaves the namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: a network namespace needs root")
    try:
        run("ip", "link", "set", "lo", "up")
        run(
            "ip",
            "route",
            "add",
            "local",
            "default",
            "dev",
            "lo",
            "src",
            "127.0.0.1",
            "table",
            "main",
        )
        # no IPv6 here
        run(
            "ip",
            "-6",
            "route",
            "add",
            "local",
            "default",
            "dev",
            "lo",
            "table",
            "main",
            check=False,
        )
        yield
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(home)


class VirtualMachine:
    """A VM on slicer's isolated network: its own interfaces, resolv.conf and trust
    store; it reaches only the gateway.

    It has a default route, so only the rules of the host keep it from the internet.
    """

    address = "192.168.137.10"
    gateway = "192.168.137.1"

    def __init__(self, folder: Path, name_server: str = "127.0.0.1") -> None:
        store = next(
            (Path(path) for path in _TRUST_STORES if os.path.exists(path)), None
        )
        if store is None:
            raise DemoFailed(
                f"no trust store: none of {', '.join(_TRUST_STORES)} exists"
            )
        self._trust = folder / "ca-certificates.crt"
        self._trust.write_bytes(store.read_bytes())
        resolv = folder / "resolv.conf"
        resolv.write_text(f"nameserver {name_server}\n")
        files = ((self._trust, store), (resolv, "/etc/resolv.conf"))
        binds = " && ".join(
            shlex.join(["mount", "--bind", str(file), str(place)])
            for file, place in files
        )
        script = f"{binds} && ip link set lo up && echo ready && exec sleep infinity"
        self.holder = subprocess.Popen(  # noqa: S603 - as above
            [  # noqa: S607 - as above
                "unshare",
                "--net",
                "--mount",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "sh",
                "-ec",
                script,
            ],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        if self.holder.stdout is None or self.holder.stdout.readline() != b"ready\n":
            raise DemoFailed("the namespaces of the VM cannot be created")
        self._connect()

    def _connect(self) -> None:
        run(
            "ip",
            "link",
            "add",
            "bragents0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self.holder.pid),
        )
        run("ip", "addr", "add", f"{self.gateway}/24", "dev", "bragents0")
        run("ip", "link", "set", "bragents0", "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", self.gateway)
        run(
            "nft",
            "add table inet slicer; add chain inet slicer from_vm { type filter hook input priority 0; }",
        )
        run(
            "nft",
            f"add rule inet slicer from_vm iifname bragents0 ip daddr != {self.gateway} drop",
        )

    def trust(self, ca: Path) -> None:
        """Add a CA to the VM's trust store, as slicer does at the first boot."""
        self._trust.write_bytes(self._trust.read_bytes() + ca.read_bytes())

    def command(self, *command: str | Path) -> list[str | Path]:
        """Return the command that runs a command in the VM."""
        return [
            "nsenter",
            "--target",
            str(self.holder.pid),
            "--net",
            "--mount",
            *command,
        ]

    def run(self, *command: str | Path) -> str:
        """Run a command in the VM and return its output."""
        return run(*self.command(*command))

    def stop(self) -> None:
        """Stop the VM and remove its network."""
        self.holder.kill()
        self.holder.communicate()
        run("ip", "link", "del", "bragents0", check=False)
        run("nft", "delete table inet slicer", check=False)
