"""Debian's Valkey on loopback: with TLS, with the user of the documentation, and nothing on disk unless asked for."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from squidkeeper.certificates.authority import make_ca
from squidkeeper.certificates.server import issue_server_certificate
from squidkeeper.quotas.store_settings import OnUnavailable, QuotaStoreSettings
from tests.ports import free_port
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parents[1]
PASSWORD = "a-password-of-the-tests"
ADDRESS = "127.0.0.1"


class ValkeyServer:
    """One server in a folder."""

    def __init__(self, folder: Path, *, tls: bool = True, saves: bool = False, address: str = ADDRESS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = address
        self.folder = folder
        self.port = free_port()
        self.ca = folder / "ca.crt" if tls else None
        self._saves = saves
        self._also = ["127.0.0.2"] if address == ADDRESS else []  # an address that its certificate does not name
        self._process: subprocess.Popen[bytes] | None = None
        if tls:
            make_certificates(folder, address)

    def settings(self, on_unavailable: OnUnavailable = OnUnavailable.DENY, gateways: int = 2) -> QuotaStoreSettings:
        return QuotaStoreSettings(
            ip_address(self.address), self.port, "squidkeeper", PASSWORD, self.ca, on_unavailable, gateways
        )

    def start(self, *options: str) -> ValkeyServer:
        """Start it; it answers when this returns."""
        plain, tls = ("0", str(self.port)) if self.ca else (str(self.port), "0")
        files = ["--tls-cert-file", "server.pem", "--tls-key-file", "server.pem", "--tls-ca-cert-file", "ca.crt"]
        command = ["setpriv", "--pdeathsig", "KILL", "valkey-server", "--bind", self.address, *self._also]
        command += ["--port", plain]
        command += ["--tls-port", tls, *(files if self.ca else []), "--tls-auth-clients", "no", "--dir", "."]
        command += ["--save", "", "--appendonly", "yes" if self._saves else "no", "--appendfsync", "always"]
        command += ["--maxmemory-policy", "noeviction", "--user", *acl_line().split(), *options]
        with (self.folder / "log.txt").open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        wait_for(self._listens, f"Valkey; see {self.folder}/log.txt")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log.txt").read_text()
        with socket.socket() as tried:
            return tried.connect_ex((self.address, self.port)) == 0

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def forget(self) -> None:
        """Remove what it has saved, while it is killed."""
        shutil.rmtree(self.folder / "appendonlydir")

    def command(self, *words: str) -> str:
        """Ask it as its administrator."""
        tls = ["--tls", "--cacert", str(self.ca)] if self.ca else []
        done = subprocess.run(
            ["valkey-cli", "-h", self.address, "-p", str(self.port), *tls, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


def acl_line() -> str:
    """The user of a gateway, as squid/FLEET.md has it."""
    text = (REPOSITORY / "squid/FLEET.md").read_text()
    [line] = [line.strip() for line in text.splitlines() if line.strip().startswith("user squidkeeper ")]
    return line.removeprefix("user ").replace(">PASSWORD", f">{PASSWORD}")


def make_certificates(folder: Path, address: str = ADDRESS) -> None:
    """Make a CA, and a certificate of it for the address."""
    now = datetime.now(UTC)
    ca = make_ca(now)
    (folder / "ca.crt").write_bytes(ca.certificate)
    (folder / "server.pem").write_bytes(issue_server_certificate(ca, (address,), now))
