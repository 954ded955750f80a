"""Which Squid is installed, and whether a flaw of it that matters here is known to be
fixed.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

from cachetools import TTLCache, cached

FLAW: Final = (
    "CVE-2026-104786: a helper's user= or password= of more than 128 "
    "bytes overflows on the way to a parent proxy"
)
FIXED: Final = "6.13-2+deb13u4"  # Debian's package
# Versions that Debian 13 and its successors give. Ubuntu and backports count otherwise,
# and cannot be compared with it.
_COMPARABLE = re.compile(r"[0-9.]+-[0-9]+(\+deb13u[0-9]+)?(\+b[0-9]+)?")
_PACKAGES = ("squid-openssl", "squid")
_VERSION = re.compile(r"^Squid Cache: Version (\S+)", re.MULTILINE)
_SECONDS = 10
_KEPT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class SquidVersion:
    """The version of Squid, of its package where dpkg knows it; `fixed` is None where
    the version does not tell.
    """

    text: str
    fixed: bool | None

    @property
    def problem(self) -> str:
        """What is wrong with a version that is known to have the flaw."""
        return (
            f"{self.text} is older than {FIXED}, which fixes {FLAW}"
            if self.fixed is False
            else ""
        )

    @property
    def remark(self) -> str:
        """What an installation says about it."""
        if self.fixed is None:
            return f"{self.text}: this version does not tell whether your distribution has fixed {FLAW}"
        return f"{self.problem}: update its package" if self.problem else ""


@cached(TTLCache(1, _KEPT_SECONDS))
def squid_version() -> SquidVersion | None:
    """Find the version of Squid; None where there is no Squid.

    It is asked for at most once in ten minutes.
    """
    for package in _PACKAGES:
        version = _said("dpkg-query", "--show", "--showformat", "${Version}", package)
        if version:
            return SquidVersion(f"{package} {version}", _is_fixed(version))
    found = _VERSION.search(_said("squid", "-v"))
    return SquidVersion(f"Squid {found[1]}", None) if found else None


def _is_fixed(version: str) -> bool | None:
    if _COMPARABLE.fullmatch(version) is None:
        return None
    done = _run(("dpkg", "--compare-versions", version, "ge", FIXED))
    return done is not None and done.returncode == 0


def _said(*command: str) -> str:
    done = _run(command)
    return done.stdout if done and done.returncode == 0 else ""


def _run(command: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
    program = shutil.which(
        command[0],
        path="/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/sbin:/usr/local/squid/sbin",
    )
    if program is None:
        return None
    try:
        return subprocess.run(  # noqa: S603 - dpkg and Squid themselves
            [program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
