"""The gateway of the demonstration (floor 8): installed by the installer, in a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from squidkeeper.demo.servers import ORIGIN_ADDRESS
from squidkeeper.errors import DemoFailed

_LOG_SECONDS: Final = 10


class DemoGateway:
    """A running gateway under `root`."""

    def __init__(self, root: Path, address: str) -> None:
        self.root = root
        self.address = address
        self.program = root / "bin/squidkeeper"
        self.policy = root / "etc/policy"
        self.state = root / "state"
        self.access_log = root / "log/access.log"
        self.ca = root / "etc/ca/ca.crt"

    def wait_for_record(self, url: str) -> None:
        """Wait until the access log has a record of a URL: Squid writes it after the response."""
        end = time.monotonic() + _LOG_SECONDS
        while f'"{url}"' not in self.access_log.read_text():
            if time.monotonic() > end:
                raise DemoFailed(f"no record of {url} in {self.access_log} after {_LOG_SECONDS} s")
            time.sleep(0.05)


@contextmanager
def installed(
    source: Path,
    root: Path,
    address: str,
    policy: Path,
    names: Iterable[str],
    ca: Path,
    environment: Path = Path(sys.prefix),
) -> Iterator[DemoGateway]:
    """Install and start a gateway with a policy; uninstall it at the end.

    It resolves `names` to the origin, trusts its CA, and runs the program of `environment`.
    """
    gateway = DemoGateway(root, address)
    _prepare(root, names, ca, environment)
    _installer(source, root, "--listen", gateway.address, "--policy", str(policy))
    try:
        yield gateway
    finally:
        _installer(source, root, "--uninstall")


def _installer(source: Path, root: Path, *options: str) -> None:
    """Run the installer; if this process is interrupted, let the installer roll back."""
    process = subprocess.Popen(  # noqa: S603 - our own installer
        [source / "install.sh", "--root", root, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode:
        raise DemoFailed(f"install.sh {' '.join(options)}: exit status {process.returncode}\n{output}")


def _prepare(root: Path, names: Iterable[str], ca: Path, environment: Path) -> None:
    (root / "etc").mkdir(parents=True)
    (root / "etc/local.conf").write_text(
        "dns_nameservers 127.0.0.1\n"  # asked for nothing: with it, the gateway needs no resolver
        f"hosts_file {root}/etc/hosts\n"
        f"tls_outgoing_options cafile={root}/etc/origins.crt\n"
        "shutdown_lifetime 1 second\n"
    )
    shutil.copy(ca, root / "etc/origins.crt")
    (root / "etc/hosts").write_text("".join(f"{ORIGIN_ADDRESS} {name}\n" for name in names))
    shutil.copytree(environment, root / environment.name, symlinks=True)  # AppArmor lets Squid run nothing outside
