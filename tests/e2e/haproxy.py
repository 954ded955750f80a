"""HAProxy of a gateway that was installed with --tls, run by Squid's account as its
unit or `supervise` runs it.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import wait_for

from .gateway import Gateway
from .network import run
from .observer import AS_SQUID


class HAProxy:
    """The HAProxy of one gateway; `certificate` is the file of its certificate."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.certificate = gateway.root / "state/tls/server.pem"
        unit = (gateway.root / "etc/squidkeeper-tls.service").read_text()
        self._command = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)[0].split()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_by: tuple[str, ...] = ()

    def start(self) -> "HAProxy":
        """Start it; it listens when this returns."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [*AS_SQUID, *self._started_by, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        wait_for(self._listens, f"HAProxy to listen; see {self._log}")
        return self

    @property
    def _log(self) -> Path:
        return self.gateway.root / "log/haproxy.txt"

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        return f"pid={self._process.pid}," in run(
            "ss", "-Hltnp", f"sport = :{self.gateway.address[1]}"
        )

    def said(self) -> str:
        """What it has written since its start."""
        return self._log.read_text()

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextmanager
    def edited(self, texts: Mapping[str, str], *started_by: str) -> Iterator[None]:
        """Run it with another haproxy.cfg meanwhile: texts of the installed one, and
        what replaces them.
        """
        file = self.gateway.root / "etc/haproxy.cfg"
        installed = file.read_text()
        self._started_by = started_by
        for old, new in texts.items():
            self.gateway.edit("haproxy.cfg", old, new)
        self.restart()
        try:
            yield
        finally:
            file.write_text(installed)
            self._started_by = ()
            self.restart()
