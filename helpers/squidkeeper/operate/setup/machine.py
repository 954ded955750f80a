"""The machine that a gateway is installed on: what Squid was built with, what confines
programs, packages beside Squid.

Lines of ours stand in the local additions to AppArmor's profiles, between two marks
that name the gateway.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import uses_systemd
from squidkeeper.base.squid_account import Account, account_of, group_name, is_this
from squidkeeper.operate.setup.entries import File, Owner, text_at, write_entry

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

    def run_as_squid(
        self, *command: str | Path, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as Squid's account; its output is captured."""
        account = self.account
        if is_this(account):
            return run(*command, **options)
        groups = os.getgrouplist(account.name, account.group)
        return run(
            *command,
            user=account.user,
            group=account.group,
            extra_groups=groups,
            **options,
        )


def read_machine(root: Path | None) -> Machine:
    """Ask the Squid that is installed, and the system; `SetupFailed` where it is not a
    distribution's.
    """
    options = dict(reversed(_BUILD_OPTION.findall(run("squid", "-v").stdout)))
    name = options.get("with-default-user", "")
    account = account_of(name)
    if account is None:
        raise SetupFailed(
            f"Squid's account '{name}' does not exist",
            "install the distribution's own Squid",
        )
    generators = (
        Path(folder, "security_file_certgen")
        for folder in _folders(options.get("libexecdir"))
    )
    return Machine(
        account,
        _first_of([*generators]),
        systemd=uses_systemd(root),
        selinux=root is None
        and shutil.which("selinuxenabled") is not None
        and not run("selinuxenabled").returncode,
    )


def _folders(built: str | None) -> Iterator[str]:
    yield from (
        folder
        for folder in (
            built,
            *(f"/usr/{name}/squid" for name in ("lib", "lib64", "libexec")),
        )
        if folder
    )


def _first_of(paths: Sequence[Path]) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise SetupFailed(
        f"none of these exists: {' '.join(map(str, paths))}",
        "install the distribution's own Squid",
    )


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its status is for the caller to check.

    Output and errors are captured together.
    """
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if "input" not in options:
        usual["stdin"] = subprocess.DEVNULL
    given = usual | options
    return subprocess.run(  # noqa: S603 - no shell
        command, text=True, errors="replace", check=False, cwd="/", **given
    )


def quietly(*command: str | Path) -> None:
    """Run a command; `SetupFailed` with the end of its output where it fails."""
    check(run(*command))


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Raise `SetupFailed` with the end of its output for a command that has failed."""
    if done.returncode:
        raise SetupFailed(
            f"this failed: {' '.join(map(str, done.args))}",
            details=last_lines(done.stdout),
        )


def last_lines(text: str) -> str:
    """Return the end of an output or a log."""
    return "".join(f"{line}\n" for line in text.splitlines()[-20:])


def revision_of(source: Path) -> str:
    """Name the revision of a clone, of whatever account; empty: git knows none."""
    clone = ("git", "-c", f"safe.directory={source}", "-C", source)
    if not (source / ".git").exists() or not shutil.which("git"):
        return ""
    done = run(*clone, "describe", "--always", "--dirty", "--abbrev=12", stderr=DEVNULL)
    return done.stdout.strip() if done.returncode == 0 else ""


UNBOUND: Final = Path("/usr/sbin/unbound")
HAPROXY: Final = Path("/usr/sbin/haproxy")
_POLICY_RC = Path("/usr/sbin/policy-rc.d")


def install_unbound(installer: Path) -> None:
    """Install unbound.

    Its own service would take port 53 of 127.0.0.1, and with resolvconf the host's
    resolv.conf.
    """
    _install_disabled(
        installer, "unbound", "unbound.service", "unbound-resolvconf.service"
    )


def install_haproxy(installer: Path) -> None:
    """Install HAProxy."""
    _install_disabled(installer, "haproxy", "haproxy.service")


def _install_disabled(installer: Path, package: str, *units: str) -> None:
    """Have install.sh install a package, with its own service disabled: Debian starts
    and enables what it installs.
    """
    with _no_starts():
        command = (str(installer), "--install-package", package)
        # not `run`, which kills a package manager that is interrupted
        with subprocess.Popen(  # noqa: S603 - our own
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
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


# the programs that Debian's AppArmor confines, and that get lines of ours
CONFINED: Final = (
    "squid",
    "unbound",
)
_PROFILES = Path("/etc/apparmor.d")
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")


def apparmor_confines(program: str) -> bool:
    """Whether AppArmor confines a program by its profile of Debian."""
    profile = f"usr.sbin.{program}"
    return (
        _ENABLED.exists()
        and _ENABLED.read_text().strip() == "Y"
        and (_PROFILES / profile).exists()
        and not (_PROFILES / "disable" / profile).exists()
        and shutil.which("apparmor_parser") is not None
    )


def additions_of(program: str) -> Path:
    """Return the file of local additions to the profile of a program."""
    return _PROFILES / "local" / f"usr.sbin.{program}"


def is_additions(path: Path) -> bool:
    """Whether a path is a file of local additions."""
    return path == additions_of(path.name.removeprefix("usr.sbin."))


def with_lines(text: str, prefix: Path, lines: str) -> File:
    """Return the local additions with the lines of a gateway."""
    mark = f"# squidkeeper {prefix}"
    return File(
        f"{without_lines(text, prefix)}{mark} begin\n{lines}{mark} end\n".encode()
    )


def without_lines(text: str, prefix: Path) -> str:
    """Return the local additions without the lines of a gateway."""
    mark = re.escape(f"# squidkeeper {prefix}")
    return re.sub(
        f"^{mark} begin\n.*?^{mark} end\n", "", text, flags=re.MULTILINE | re.DOTALL
    )


def reload_apparmor(additions: Path) -> None:
    """Load the profile whose local additions have changed."""
    quietly("apparmor_parser", "-r", _PROFILES / additions.name)


def close_apparmor(program: str, prefix: Path) -> None:
    """Remove the lines of a gateway from the local additions to the profile of a
    program.
    """
    additions = additions_of(program)
    text = lines_at(additions)
    others = without_lines(text, prefix)
    if others != text:
        additions.write_text(others)
        if apparmor_confines(program):
            reload_apparmor(additions)


def lines_at(additions: Path) -> str:
    """Read local additions; each line ends in a newline."""
    text = text_at(additions)
    return f"{text}\n" if text else ""
