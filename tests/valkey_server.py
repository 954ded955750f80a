"""Debian's Valkey on loopback, as squid/FLEET.md has it: its valkey.conf, certificates
and function.

A user of the tests' own is added. It is on disk only if asked for.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Self

from squidkeeper.serving.quotas.store_settings import (
    FILE,
    OnUnavailable,
    QuotaStoreSettings,
)
from tests.ports import free_port
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parents[1]
PASSWORD = "a-password-of-the-tests"
ADDRESS = "127.0.0.1"
DOCUMENTED = "10.0.0.5"  # its address in squid/FLEET.md
GATEWAYS = ("gw-1", "gw-2", "gw-3")
OPERATOR = "operator"
ADMINISTRATOR = "tests"  # who may everything


class ValkeyServer:
    """One server in a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        tls: bool = True,
        saves: bool = False,
        address: str = ADDRESS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = address
        self.folder = folder
        self.port = free_port()
        self.ca = folder / "ca.crt" if tls else None
        self._saves = saves
        # an address that its certificate does not name
        self._also = ["127.0.0.2"] if address == ADDRESS else []
        self._process: subprocess.Popen[bytes] | None = None
        self._has_function = False
        if tls:
            make_certificates(folder, address)

    def settings(
        self,
        on_unavailable: OnUnavailable = OnUnavailable.DENY,
        gateways: int = 2,
        user: str = GATEWAYS[0],
    ) -> QuotaStoreSettings:
        return QuotaStoreSettings(
            ip_address(self.address),
            self.port,
            user,
            PASSWORD,
            self.ca,
            on_unavailable,
            gateways,
        )

    def write_settings(
        self, folder: Path, on_unavailable: str, gateways: int, user: str
    ) -> Path:
        """Write the quota-store.yaml of a gateway, and the password of its user beside
        it.
        """
        password = folder / "quota-store.password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o640)
        told = f"address: {self.address}:{self.port}\nuser: {user}\npassword_file: {password}\n"
        told += f"tls_ca: {self.ca}\n" if self.ca else ""
        file = folder / FILE
        file.write_text(
            f"{told}on_unavailable: {on_unavailable}\ngateways: {gateways}\n"
        )
        return file

    def start(self) -> ValkeyServer:
        """Start it; it answers when this returns."""
        (self.folder / "valkey.conf").write_text(self._conf())
        command = ["setpriv", "--pdeathsig", "KILL", "valkey-server", "valkey.conf"]
        command += ["--dir", ".", "--appendfsync", "always"]
        command += [] if self._saves else ["--save", "", "--appendonly", "no"]
        with (self.folder / "log.txt").open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        wait_for(self._listens, f"Valkey; see {self.folder}/log.txt")
        if not self._has_function:
            self.load_function()
        return self

    def _conf(self) -> str:
        """The valkey.conf of squid/FLEET.md as it stands, in this folder, with each
        gateway and the administrator.
        """
        conf = documented(f"bind {DOCUMENTED}\n.*?user gw-1 [^\n]*").replace(
            "\n   ", "\n"
        )
        conf = conf.replace(DOCUMENTED, " ".join([self.address, *self._also])).replace(
            "6379", str(self.port)
        )
        conf = conf.replace(">PASSWORD", f">{PASSWORD}").replace("/etc/valkey/", "")
        *others, gateway = conf.splitlines()
        administrator = f"user {ADMINISTRATOR} on >{PASSWORD} ~* &* +@all"
        return "\n".join(
            [
                *others,
                *(gateway.replace(GATEWAYS[0], name) for name in GATEWAYS),
                administrator,
                "",
            ]
        )

    def load_function(self) -> None:
        """Load the function, by the command of squid/FLEET.md."""
        command = documented("sed .*function load replace").replace(
            "ca.crt", str(self.ca)
        )
        command = command.replace(
            f"-h {DOCUMENTED} -p 6379", f"-h {self.address} -p {self.port}"
        )
        environment = os.environ | {"REDISCLI_AUTH": PASSWORD}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done
        self._has_function = True

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log.txt").read_text()
        with socket.socket() as tried:
            return tried.connect_ex((self.address, self.port)) == 0

    def signal(self, number: Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self, number: Signals = SIGKILL) -> None:
        """End it."""
        if self._process:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None
            self._has_function = self._has_function and self._saves

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def forget(self) -> None:
        """Remove what it has saved, while it is killed."""
        shutil.rmtree(self.folder / "appendonlydir")
        self._has_function = False

    def command(self, *words: str) -> str:
        """Ask it as its administrator."""
        return self.command_as(ADMINISTRATOR, *words)

    def command_as(self, user: str | None, *words: str) -> str:
        """Ask it as a user of `PASSWORD`, or without a login."""
        login = ["--user", user] if user else []
        done = subprocess.run(
            [
                "valkey-cli",
                "-h",
                self.address,
                "-p",
                str(self.port),
                "--tls",
                "--cacert",
                str(self.ca),
                *login,
                *words,
            ],
            env=os.environ | ({"REDISCLI_AUTH": PASSWORD} if user else {}),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


class LossyRelay:
    """Stands between a gateway and a server, and can lose an answer: the server has
    done what was asked.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._loses = threading.Event()
        self._listener = socket.create_server((ADDRESS, 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def lose_next_answer(self) -> None:
        """End the connection where the next answer would be."""
        self._loses.set()

    def _serve(self) -> None:
        with suppress(OSError):  # the end
            while True:
                with (
                    self._listener.accept()[0] as client,
                    socket.create_connection(self._server) as server,
                ):
                    self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what comes, until one of them ends or an answer is to be lost."""
        while True:
            for ready in select.select([client, server], [], [])[0]:
                passed = ready.recv(65536)
                if ready is server and self._loses.is_set():
                    self._loses.clear()
                    return
                if not passed:
                    return
                (client if ready is server else server).sendall(passed)


def rights() -> list[str]:
    """List the commands that squid/FLEET.md lets the user of a gateway send."""
    return re.findall(r"\+(\S+)", documented(f"user {GATEWAYS[0]} [^\n]*"))


def documented(pattern: str) -> str:
    """Find the one text of squid/FLEET.md."""
    [found] = re.findall(
        f"^ *({pattern})$",
        (REPOSITORY / "squid/FLEET.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return str(found)


def make_certificates(folder: Path, address: str = ADDRESS) -> None:
    """Make a CA, and a certificate of it for the address, by the commands of
    squid/FLEET.md.
    """
    commands = documented(
        f"openssl req -x509 .*IP:{DOCUMENTED}.*-out server.crt"
    ).replace(DOCUMENTED, address)
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
