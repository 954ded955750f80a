"""HAProxy in front of several gateways, as `squidkeeper setup --fleet` sets it up,
without systemd.
"""

import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import yaml

from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    issue_server_certificate,
)
from tests.waiting import wait_for

from .gateway import Gateway, kill_tree
from .network import run


class Balancer:
    """One HAProxy.

    `address`: where it listens; `addresses`: those that gateways see. They share the
    first one's CA.
    """

    def __init__(
        self,
        folder: Path,
        address: tuple[str, int],
        addresses: list[str],
        gateways: list[Gateway],
        listen: str = "",
    ) -> None:
        self.address = address
        self._listen = listen or f"{address[0]}:{address[1]}"
        self.gateways = gateways
        self.ca = gateways[0].ca
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        folder.chmod(0o755)
        signing = CertificateAuthority(
            *(
                self.ca.with_name(f"signing.{kind}").read_bytes()
                for kind in ("crt", "key")
            )
        )
        (folder / "server.pem").write_bytes(
            issue_server_certificate(signing, (address[0],), datetime.now(UTC))
        )
        self.write(addresses)

    def write(self, addresses: list[str], **haproxy: object) -> None:
        """Write the file of the fleet."""
        fleet = {
            "version": 1,
            "haproxy": {
                "addresses": addresses,
                "listen": self._listen,
                "certificate": f"{self._folder}/server.pem",
                **haproxy,
            },
            "gateways": [
                {
                    "name": gateway.root.name,
                    "address": host,
                    "port": port,
                    "health_port": port + 7000,
                }
                for gateway in self.gateways
                for host, port in [gateway.address]
            ],
        }
        (self._folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))

    def set_up(self) -> str:
        """Run `squidkeeper setup --fleet`; give what it says."""
        places = {"cfg": "haproxy.cfg", "state": ".", "pid": "haproxy.pid"}
        options = [
            text
            for name, place in places.items()
            for text in (f"--haproxy-{name}", self._folder / place)
        ]
        program = self.gateways[0].root / "bin/squidkeeper"
        return run(program, "setup", "--fleet", self._folder / "fleet.yaml", *options)

    def start(self) -> "Balancer":
        """Set it up and start it; it takes clients, and has asked each gateway, when
        this returns.
        """
        self.set_up()
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "haproxy",
            "-W",
            "-db",
            "-f",
            f"{self._folder}/haproxy.cfg",
        ]
        with (self._folder / "log.txt").open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "-p", f"{self._folder}/haproxy.pid"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        wait_for(self._listens, f"HAProxy to listen; see {self._folder}/log.txt")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        return bool(run("ss", "-Hltn", f"sport = :{self.address[1]}"))

    def up(self) -> set[str]:
        """The names of the gateways that it holds for healthy."""
        with socket.socket(socket.AF_UNIX) as api:
            api.connect(f"{self._folder}/squidkeeper.sock")
            api.sendall(b"show servers state squid\n")
            rows = (
                b"".join(iter(lambda: api.recv(65536), b"")).decode().splitlines()[2:]
            )
        return {
            name
            for _, _, _, name, _, state, *_ in map(str.split, filter(None, rows))
            if state == "2"
        }

    def said(self) -> str:
        """What it has written since its start."""
        return (self._folder / "log.txt").read_text()

    def stop(self) -> None:
        """End it as `systemctl stop` does, without waiting for connections."""
        if self._process:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Kill all its processes; nothing is told to anybody."""
        if self._process:
            kill_tree(self._process)
            self._process = None
