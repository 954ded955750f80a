"""A machine that boots: systemd as process 1 of a container, with a network of its own.

It has the kernel of the host. CONTRIBUTING.md lists what cannot be tried so.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.containers.podman import Podman
from tests.waiting import wait_for

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3-venv",
    "curl",
    "iproute2",
    "procps",
    "squid-openssl",
    "unbound",
)
_RIGHTS = (
    "--privileged",
    "--systemd=false",
    "--network",
    "none",
    "--tmpfs",
    "/run",
    "--tmpfs",
    "/tmp",
)
# systemd needs the second version of control groups, and a tree of mounts that is
# shared.
_BOOT = """
mount --make-rshared /
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
container=podman exec /usr/lib/systemd/systemd
"""


@dataclass(frozen=True, slots=True)
class BootedMachine:
    """A machine by the name of its container."""

    podman: Podman
    name: str

    @contextmanager
    def made(self, image: str, folder: Path) -> Iterator[Self]:
        """Make it, with a folder of the host to read; remove it at the end."""
        volume = ("--volume", f"{folder}:{folder}:ro")
        self.podman.run(
            "create",
            "--replace",
            "--name",
            self.name,
            *_RIGHTS,
            *volume,
            image,
            "sh",
            "-ec",
            _BOOT,
        )
        try:
            yield self
        finally:
            self.podman.run("rm", "--force", "--time", "0", self.name)

    def boot(self) -> None:
        """Start it, and wait until systemd takes orders."""
        self.podman.run("start", self.name)
        wait_for(
            lambda: self.run("systemctl", "is-active", "basic.target").returncode == 0,
            "the machine to boot",
        )

    def reboot(self) -> None:
        """Shut it down, and boot it."""
        self.run("systemctl", "reboot")
        state = ("inspect", "--format", "{{.State.Status}}", self.name)
        wait_for(
            lambda: self.podman.run(*state).stdout.strip() == "exited",
            "the machine to shut down",
        )
        self.boot()

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.podman.run("exec", self.name, *words, check=False)

    def succeed(self, *words: str | Path) -> str:
        """Run a command in it that succeeds; give its output."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}"
        return done.stdout

    def property_of(self, unit: str, name: str) -> str:
        """A property of a unit of systemd's."""
        return self.succeed(
            "systemctl", "show", "--value", "--property", name, unit
        ).strip()
