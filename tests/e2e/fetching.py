"""`squidkeeper secrets` of a gateway, run as install.sh runs it without systemd."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squidkeeper.base.layout import Layout

from .canaries import VARIABLE
from .gateway import Gateway


class Fetching:
    """The process of one gateway, and the folder of its values."""

    def __init__(self, gateway: Gateway) -> None:
        self._root = gateway.root
        self._layout = Layout.of(gateway.root)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the folder, and start the process."""
        root, folder, user = (
            self._root,
            self._layout.secrets,
            self._layout.user_without_systemd("secrets"),
        )
        folder.mkdir()
        shutil.chown(folder, user, "proxy")
        folder.chmod(0o2750)
        command = [
            "setpriv",
            "--reuid",
            str(user),
            "--regid",
            "proxy",
            "--clear-groups",
            "--pdeathsig",
            "KILL",
        ]
        command += [
            f"{root}/bin/squidkeeper",
            "secrets",
            "--policy",
            f"{root}/etc/policy",
            "--state",
            f"{root}/state",
        ]
        command += ["--run", f"{root}/run", "--commands", f"{root}/etc/commands"]
        # which Squid alone gets
        environment = {
            name: value for name, value in os.environ.items() if name != VARIABLE
        }
        with self._said.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the process, unless it was stopped, and remove the folder."""
        if self._process is None:
            return
        assert self._process.poll() is None, self._said.read_text()
        self._process.terminate()
        status, self._process = self._process.wait(60), None
        shutil.rmtree(self._layout.secrets)
        assert status == 0, self._said.read_text()

    @property
    def _said(self) -> Path:
        return self._root / "log/secrets.txt"


@contextmanager
def fetching(gateway: Gateway) -> Iterator[Path]:
    """Run it while the block runs; gives the folder of the values."""
    process = Fetching(gateway)
    process.start()
    try:
        yield Layout.of(gateway.root).secrets
    finally:
        process.stop()


def put_command(gateway: Gateway, name: str, script: str) -> None:
    """Put a program into the gateway's folder of commands."""
    program = gateway.root / "etc/commands" / name
    program.parent.mkdir(exist_ok=True)
    new = program.with_name(f".{name}")
    new.write_text(f"#!/bin/sh\n{script}\n")
    new.chmod(0o755)
    os.replace(new, program)
