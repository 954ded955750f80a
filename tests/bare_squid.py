"""A Squid with next to no configuration, on a loopback port: for tests of its processes
and logs.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from squidkeeper.base.layout import SOCKETS_OF_WORKERS
from tests.ports import free_port
from tests.waiting import wait_for

CONFIGURATION = """
http_port 127.0.0.1:{port}
pid_filename {folder}/squid.pid
cache_log {folder}/cache.log
access_log stdio:{folder}/access.log
coredump_dir none
logfile_rotate 0
pinger_enable off
shutdown_lifetime 1 seconds
http_access deny all
workers {workers}
"""


class BareSquid:
    """A running Squid, and the folder of its logs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.access_log = folder / "access.log"
        self.cache_log = folder / "cache.log"
        self.pid_file = folder / "squid.pid"
        self._port = port

    def ask(self, name: str) -> None:
        """Send a request; it is denied, and logged when this returns."""
        with wait_for(self._connect, "Squid to take a connection") as client:
            client.sendall(
                f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
            )
            while client.recv(65536):
                pass
        wait_for(lambda: name in self.logged(), f"{name} to be logged")

    def _connect(self) -> socket.socket | None:
        with suppress(
            ConnectionRefusedError
        ):  # Squid closes its port while it reconfigures, or starts again
            return socket.create_connection(("127.0.0.1", self._port), 60)
        return None

    def listens_again(self, times: int) -> bool:
        """Whether it has opened its port so often: it closes it while it
        reconfigures.
        """
        return self.said().count("Accepting HTTP Socket connections") == times

    def logged(self) -> list[str]:
        """The hosts in the access log and its rotated files."""
        texts = [file.read_text() for file in sorted(self.folder.glob("access.log*"))]
        return [
            host for text in texts for host in re.findall(r"http://([\w.-]+)/", text)
        ]

    def said(self) -> str:
        """All that is in cache.log, and what it was rotated to."""
        return "".join(
            file.read_text() for file in sorted(self.folder.glob("cache.log*"))
        )

    def reconfigured(self, times: int, workers: int = 1) -> bool:
        return self.said().count("Reconfiguring Squid Cache") == times * workers


def remove_leftovers(service: str) -> None:
    """Remove what a killed Squid leaves.

    It removes its shared memory and sockets only when it ends in order.
    """
    for left in (
        *Path("/dev/shm").glob(f"{service}-*.shm"),
        *SOCKETS_OF_WORKERS.glob(f"{service}-*.ipc"),
    ):
        left.unlink()


@contextmanager
def folder_of_sockets() -> Iterator[None]:
    """The folder of the workers' sockets, which Squid's unit makes: a machine without
    systemd has none.
    """
    made = not SOCKETS_OF_WORKERS.exists()
    SOCKETS_OF_WORKERS.mkdir(exist_ok=True)
    if made:
        shutil.chown(SOCKETS_OF_WORKERS, "proxy", "proxy")
    yield
    if made:
        with suppress(OSError):  # another test has sockets in it
            SOCKETS_OF_WORKERS.rmdir()


@contextmanager
def bare_squid(workers: int = 1) -> Iterator[BareSquid]:
    """Start it as a service does; it takes connections in the block."""
    with folder_of_sockets():
        yield from _run_squid(workers)


def _run_squid(workers: int) -> Iterator[BareSquid]:
    folder = Path(tempfile.mkdtemp(prefix="squidkeeper-squid-"))
    shutil.chown(folder, "proxy", "proxy")
    port = free_port()
    squid = BareSquid(folder, port)
    configuration = folder / "squid.conf"
    configuration.write_text(
        CONFIGURATION.format(port=port, folder=folder, workers=workers)
    )
    service = f"bare{port}"
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "squid",
        "--foreground",
        "-YC",
        "-n",
        service,
        "-f",
    ]
    process = subprocess.Popen(
        [*command, configuration], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        listening = "Accepting HTTP Socket connections"
        wait_for(
            lambda: squid.said().count(listening) == workers,
            f"Squid to listen; see {folder}",
        )
        yield squid
    finally:
        kids = (
            Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        )
        process.kill()
        process.wait()
        for kid in kids:
            with suppress(ProcessLookupError):  # a test has ended it
                os.kill(int(kid), signal.SIGKILL)
        remove_leftovers(service)
        shutil.rmtree(folder)
