"""Packages of programs that run beside Squid: unbound for its names, HAProxy for TLS to the proxy."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from squidkeeper.operate.setup.entries import File, write_entry
from squidkeeper.operate.setup.machine import check, quietly

UNBOUND: Final = Path("/usr/sbin/unbound")
HAPROXY: Final = Path("/usr/sbin/haproxy")
_POLICY_RC = Path("/usr/sbin/policy-rc.d")


def install_unbound(installer: Path) -> None:
    """Install unbound. Its own service would take port 53 of 127.0.0.1, and with resolvconf the host's resolv.conf."""
    _install_disabled(installer, "unbound", "unbound.service", "unbound-resolvconf.service")


def install_haproxy(installer: Path) -> None:
    """Install HAProxy."""
    _install_disabled(installer, "haproxy", "haproxy.service")


def _install_disabled(installer: Path, package: str, *units: str) -> None:
    """Have install.sh install a package, with its own service disabled: Debian starts and enables what it installs."""
    with _no_starts():
        command = (str(installer), "--install-package", package)
        # not `run`, which kills a package manager that is interrupted
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603 - our own
            told, _ = process.communicate()
        check(subprocess.CompletedProcess(command, process.returncode, told))
    if shutil.which("apt-get") and shutil.which("systemctl"):
        quietly("systemctl", "disable", *units)
    if shutil.which("apt-get") and shutil.which("update-rc.d"):
        quietly("update-rc.d", package, "disable")


@contextmanager
def _no_starts() -> Iterator[None]:
    """Let no package start a service meanwhile: policy-rc.d(8)."""
    if _POLICY_RC.exists() or not shutil.which("apt-get"):
        yield
        return
    write_entry(_POLICY_RC, File(b"#!/bin/sh\nexit 101\n", 0o755))
    try:
        yield
    finally:
        _POLICY_RC.unlink()
