"""The gateway of the demonstration: installed by the installer, in a folder
of its own.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import DemoFailed
from squidkeeper.operate.demo.servers import ORIGIN_ADDRESS
from squidkeeper.services.maintenance.own_addresses import FILE as OWN_ADDRESSES

_WAIT_SECONDS: Final = 60
_SQUID_REACTS_SECONDS: Final = 0.5
_ACCEPTING: Final = re.compile(r"(Reconfiguring Squid Cache)|Accepting SSL bumped")


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
        """Wait until the access log has a record of a URL: Squid writes it after the
        response.
        """
        _wait_for(
            lambda: f'"{url}"' in self.access_log.read_text(),
            f"a record of {url} in {self.access_log}",
        )

    def wait_until_ready(self) -> None:
        """Wait for the end of the first start.

        A reconfigure, during which requests are denied, can be part of it.

        The maintenance process signals Squid once; a Squid that it found before it
        served needs no signal.
        """
        log, signalled = (
            self.root / "log/cache.log",
            self.state / f"{OWN_ADDRESSES}.told",
        )
        _wait_for(signalled.exists, f"the maintenance process to write {signalled}")
        time.sleep(_SQUID_REACTS_SECONDS)
        _wait_for(
            lambda: _accepts(log.read_text(errors="replace")),
            f"Squid to accept connections again in {log}",
        )


@contextmanager
def installed(
    source: Path, root: Path, address: str, policy: Path, names: Iterable[str], ca: Path
) -> Iterator[DemoGateway]:
    """Install and start a gateway with a policy; uninstall it at the end.

    It runs this program, resolves `names` to the origin, and trusts its CA. `source`
    has squid/ and policy/.
    """
    gateway = DemoGateway(root, address)
    _prepare(root, names, ca)
    _setup(source, root, "--listen", gateway.address, "--policy", str(policy))
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        _setup(source, root, "--uninstall")


def _prepare(root: Path, names: Iterable[str], ca: Path) -> None:
    (root / "etc").mkdir(parents=True)
    (root / "etc/local.conf").write_text(
        # asked for nothing: with it, the gateway needs no resolver
        "dns_nameservers 127.0.0.1\n"
        f"hosts_file {root}/etc/hosts\n"
        f"tls_outgoing_options cafile={root}/etc/origins.crt\n"
        "shutdown_lifetime 1 second\n"
    )
    shutil.copy(ca, root / "etc/origins.crt")
    (root / "etc/hosts").write_text(
        "".join(f"{ORIGIN_ADDRESS} {name}\n" for name in names)
    )
    # AppArmor lets Squid run nothing outside
    shutil.copytree(sys.prefix, _environment(root), symlinks=True)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise DemoFailed(f"waited {_WAIT_SECONDS} s for {what}")
        time.sleep(0.05)


def _accepts(log: str) -> bool:
    """Whether the last event of a cache.log is that Squid accepts connections."""
    *_, last = (None, *_ACCEPTING.finditer(log))
    return last is not None and not last[1]


def _environment(root: Path) -> Path:
    return root / "venv-demo"


def _setup(source: Path, root: Path, *options: str) -> None:
    """Run the part of install.sh that needs no network; if this process is interrupted,
    let it roll back.
    """
    environment = _environment(root)
    # setup removes it
    work = Path(tempfile.mkdtemp(prefix="squidkeeper-install.", dir="/run"))
    work.chmod(0o755)
    fixed = ("--source", source, "--work", work, "--venv", environment, "--root", root)
    process = subprocess.Popen(  # noqa: S603 - our own installer
        [
            environment / "bin/python",
            "-I",
            "-m",
            "squidkeeper",
            "setup",
            *fixed,
            *options,
        ],
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
        raise DemoFailed(
            f"squidkeeper setup {' '.join(options)}: exit status {process.returncode}\n{output}"
        )
