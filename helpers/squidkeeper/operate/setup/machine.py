"""The machine that a gateway is installed on: what Squid was built with, and what confines programs."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.squid_account import Account, account_of, group_name, is_this
from squidkeeper.operate.setup.entries import Owner

_BUILD_OPTION = re.compile(r"--([\w-]+)=([^'\s]+)")


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between distributions."""

    account: Account  # Squid's
    certgen: Path
    systemd: bool
    selinux: bool

    @property
    def owner(self) -> Owner:
        """Squid's account, as the owner of a file."""
        return self.account.user, self.account.group

    @property
    def group(self) -> str:
        """The name of the group of Squid's account."""
        return group_name(self.account)

    def run_as_squid(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as Squid's account; its output is captured."""
        account = self.account
        if is_this(account):
            return run(*command, **options)
        groups = os.getgrouplist(account.name, account.group)
        return run(*command, user=account.user, group=account.group, extra_groups=groups, **options)


def read_machine(root: Path | None) -> Machine:
    """Ask the Squid that is installed, and the system; `SetupFailed` where it is not a distribution's."""
    options = dict(reversed(_BUILD_OPTION.findall(run("squid", "-v").stdout)))
    name = options.get("with-default-user", "")
    account = account_of(name)
    if account is None:
        raise SetupFailed(f"Squid's account '{name}' does not exist", "install the distribution's own Squid")
    generators = (Path(folder, "security_file_certgen") for folder in _folders(options.get("libexecdir")))
    return Machine(
        account,
        _first_of([*generators]),
        systemd=uses_systemd(root),
        selinux=root is None and shutil.which("selinuxenabled") is not None and not run("selinuxenabled").returncode,
    )


def _folders(built: str | None) -> Iterator[str]:
    yield from (folder for folder in (built, *(f"/usr/{name}/squid" for name in ("lib", "lib64", "libexec"))) if folder)


def _first_of(paths: Sequence[Path]) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise SetupFailed(f"none of these exists: {' '.join(map(str, paths))}", "install the distribution's own Squid")


def uses_systemd(root: Path | None) -> bool:
    """Tell whether systemd runs the gateway; never one under a root."""
    return root is None and Path("/run/systemd/system").is_dir()


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its status is for the caller to check. Output and errors are captured together."""
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if "input" not in options:
        usual["stdin"] = subprocess.DEVNULL
    given = usual | options
    return subprocess.run(command, text=True, errors="replace", check=False, cwd="/", **given)  # noqa: S603 - no shell


def quietly(*command: str | Path) -> None:
    """Run a command; `SetupFailed` with the end of its output where it fails."""
    check(run(*command))


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Raise `SetupFailed` with the end of its output for a command that has failed."""
    if done.returncode:
        raise SetupFailed(f"this failed: {' '.join(map(str, done.args))}", details=last_lines(done.stdout))


def last_lines(text: str) -> str:
    """Give the end of an output or a log."""
    return "".join(f"{line}\n" for line in text.splitlines()[-20:])
