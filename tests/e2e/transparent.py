"""The ports 53, 80 and 443 of a gateway that was installed with --transparent, run as
`supervise` runs their units.

The origins listen on 443 and 80 of every address. So what comes from the VM for
this machine is redirected to two other ports.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from tests.waiting import wait_for

from .gateway import Gateway
from .network import VirtualMachine, run
from .reply import Reply

RIGHTS = tuple(
    f"--{kind}=-all,+net_bind_service"
    for kind in ("bounding-set", "inh-caps", "ambient-caps")
)
PORTS: Mapping[str, tuple[int, ...]] = {"transparent": (10443, 10080), "dns": (53,)}
OPTIONS = {"transparent": ("--tls-port", "10443", "--http-port", "10080"), "dns": ()}
REDIRECTED = """
table inet transparent {
    chain from_vm {
        type nat hook prerouting priority dstnat;
        iifname bragents0 fib daddr . iif type local tcp dport 443 redirect to :10443
        iifname bragents0 fib daddr . iif type local tcp dport 80 redirect to :10080
    }
}
"""


@dataclass(frozen=True, slots=True)
class Port:
    """One port, for `Raw`: past the redirection, from this machine."""

    address: tuple[str, int]
    ca: Path


class Transparent:
    """The two services of one gateway, by their names: `transparent` and `dns`."""

    def __init__(self, gateway: Gateway, vm: VirtualMachine) -> None:
        self.gateway = gateway
        self.vm = vm
        self.https, self.http = (
            Port((vm.gateway, port), gateway.ca) for port in PORTS["transparent"]
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        run("nft", REDIRECTED)

    def start(self, *names: str) -> Self:
        """Start one or both; they listen when this returns."""
        for name in names or PORTS:
            unit = self.gateway.layout.service(name).unit.read_text()
            [command] = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)
            account = (
                f"--reuid={self.gateway.layout.user_without_systemd(name)}",
                "--regid=proxy",
                "--clear-groups",
            )
            by = ("setpriv", "--pdeathsig", "KILL", *account, *RIGHTS)
            with (self.gateway.root / f"log/{name}.txt").open("ab") as out:
                self.processes[name] = subprocess.Popen(
                    [*by, *command.split(), *OPTIONS[name]],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            wait_for(
                partial(self._listens, name),
                f"{name} to listen; see {self.gateway.root}/log",
            )
        return self

    def _listens(self, name: str) -> bool:
        process = self.processes[name]
        assert process.poll() is None, (
            self.gateway.root / f"log/{name}.txt"
        ).read_text()
        listening = run("ss", "-Hltnp")
        return all(
            re.search(rf":{port} .*pid={process.pid},", listening)
            for port in PORTS[name]
        )

    def stop(self, *names: str) -> None:
        """Kill one or both."""
        for name in names or [*self.processes]:
            process = self.processes.pop(name)
            process.kill()
            process.wait()
        if not names:
            run("nft", "delete table inet transparent")

    def inside(self, *command: str | Path, **environment: str) -> Reply:
        """Run a command in the VM, with no variable that names a proxy; its exit status
        and what it printed.
        """
        done = subprocess.run(
            self.vm.command(*command),
            env={"PATH": os.environ["PATH"], "HOME": "/", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
        )
        return Reply(done.returncode, (), done.stdout)
