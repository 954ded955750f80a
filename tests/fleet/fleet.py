"""Three gateways behind HAProxy, each on a machine of its own, and clients with
addresses of their own.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.balancer import Balancer
from tests.e2e.gateway import Gateway
from tests.e2e.observer import Exporter
from tests.e2e.raw import Raw, tunnel
from tests.e2e.reply import NO_ANSWER, Reply
from tests.waiting import wait_for

from .network import Machine

FRONT = ("10.99.0.5", 3129)
FRONT_IPV6 = ("fd99::5", 3129)
CLIENTS = tuple(f"10.99.2.{number}" for number in range(1, 25))
POLICY = """
version: 1
clients:
  agents: {networks: [10.99.2.0/24, "fd99::/48"]}
rules:
  - {name: open, action: allow, clients: [agents], hosts: [open.example]}
"""


@dataclass(frozen=True, slots=True)
class Member:
    """One gateway of the fleet, on its machine, with its exporter."""

    machine: Machine
    gateway: Gateway
    exporter: Exporter

    @property
    def name(self) -> str:
        return self.machine.name

    def start(self) -> None:
        """Start its Squid and its exporter."""
        with self.machine.entered():
            self.gateway.start()
            self.exporter.start()

    def restart_squid(self) -> None:
        with self.machine.entered():
            self.gateway.stop()
            self.gateway.start()

    def command(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of the program on its machine, for this gateway:
        `command("drain", "--for", "10s")`.
        """
        program = (
            f"{self.gateway.root}/bin/squidkeeper",
            *words,
            "--root",
            f"{self.gateway.root}",
        )
        with self.machine.entered():
            return subprocess.Popen(
                program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

    def run(self, *words: str) -> str:
        """Run such a command to its end; give what it says."""
        process = self.command(*words)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        return said


@dataclass(frozen=True, slots=True)
class Front:
    """Where clients reach HAProxy."""

    address: tuple[str, int]
    ca: Path


@dataclass
class Fleet:
    """The whole.

    Its addresses: HAProxy 10.99.0.5, gateways 10.99.1.N, clients 10.99.2.N.
    """

    members: tuple[Member, ...]
    balancer: Balancer
    front: Machine  # HAProxy's
    clients: Machine  # of all clients
    _seen: dict[str, int] = field(default_factory=dict)

    def client(self, address: str = CLIENTS[0]) -> Raw:
        """A connection of a client to HAProxy."""
        front = Front(FRONT_IPV6 if ":" in address else FRONT, self.balancer.ca)
        with self.clients.entered():
            return Raw(front, address)

    def tunnel(self, address: str, host: str) -> Raw:
        """A tunnel of a client to a host, with TLS in it; OSError where it is not
        opened.
        """
        with self.clients.entered():
            return tunnel(Front(FRONT, self.balancer.ca), f"{host}:443", client=address)

    def ask(self, address: str, path: str, host: str, scheme: str = "http") -> Reply:
        """One request on a connection of its own."""
        try:
            if scheme == "https":
                with self.tunnel(address, host) as inside:
                    return inside.get(path, host)
            with self.client(address) as client:
                return client.get(f"http://{host}{path}", host, "Connection: close")
        except OSError:
            return NO_ANSWER

    def get(self, address: str, path: str, host: str = "open.example") -> int:
        """One request on a connection of its own; return the status, 0 without an
        answer.
        """
        return self.ask(address, path, host).status

    def server_of(self, address: str) -> str:
        """Which gateway serves a client now: the one in whose log a request
        of it is.
        """
        path = f"/where/{address}/{len(self._seen)}"
        self._seen[path] = 1
        assert self.get(address, path) == 200
        url = f"http://open.example{path}"

        def found() -> str | None:
            logs = ((member.name, member.gateway.log()) for member in self.members)
            return next(
                (name for name, log in logs if any(line["url"] == url for line in log)),
                None,
            )

        return wait_for(found, f"{url} in a log")

    def served(self, addresses: tuple[str, ...] = CLIENTS) -> dict[str, str]:
        """Which gateway serves each of these clients now."""
        paths = {
            address: f"/served/{address}/{len(self._seen)}" for address in addresses
        }
        self._seen |= dict.fromkeys(paths.values(), 1)
        for address, path in paths.items():
            assert self.get(address, path) == 200, address

        def found() -> dict[str, str] | None:
            by_url = {
                line["url"]: member.name
                for member in self.members
                for line in member.gateway.log()
            }
            names = {
                address: by_url.get(f"http://open.example{path}", "")
                for address, path in paths.items()
            }
            return names if all(names.values()) else None

        return wait_for(found, "the requests in the logs")

    def wait_until_up(self, *names: str) -> None:
        """Wait until HAProxy holds these gateways for healthy, and no others."""
        wait_for(
            lambda: self.balancer.up() == set(names),
            f"{names} to be healthy, and no others",
        )
