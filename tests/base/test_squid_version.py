"""Which Squid is installed, by a dpkg and a Squid that say what a test wants."""

from __future__ import annotations

import subprocess

import pytest

from squidkeeper.base import squid_version as module
from squidkeeper.base.squid_version import SquidVersion, squid_version


def said(
    monkeypatch: pytest.MonkeyPatch, package: str | None, squid: str = ""
) -> SquidVersion | None:
    def run(command: tuple[str, ...]) -> subprocess.CompletedProcess[str] | None:
        if command[0] == "dpkg":
            return subprocess.run(
                [*command], capture_output=True, text=True, check=False
            )
        if command[0] == "dpkg-query":
            text, status = (
                (package, 0) if package and command[-1] == "squid-openssl" else ("", 1)
            )
            return subprocess.CompletedProcess(command, status, text or "", "")
        return subprocess.CompletedProcess(command, 0 if squid else 1, squid, "")

    monkeypatch.setattr(module, "_run", run)
    squid_version.cache_clear()
    found = squid_version()
    squid_version.cache_clear()
    return found


@pytest.mark.system
@pytest.mark.parametrize(
    ("package", "fixed"),
    [
        ("6.13-2+deb13u3", False),
        ("6.13-2", False),
        ("6.13-2+deb13u4", True),
        ("7.2-1", True),
    ],
)
def test_a_package_of_debian_tells_whether_the_flaw_is_fixed(
    monkeypatch: pytest.MonkeyPatch, package: str, fixed: bool
) -> None:
    found = said(monkeypatch, package)
    assert found == SquidVersion(f"squid-openssl {package}", fixed)
    assert ("CVE-2026-104786" in found.problem) is not fixed
    assert found.remark == (f"{found.problem}: update its package" if not fixed else "")


@pytest.mark.parametrize(
    "package", ["6.6-1ubuntu5", "6.13-2ubuntu1", "6.13-2~bpo12+1", "5.7-2+deb12u3"]
)
def test_the_package_of_another_distribution_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    found = said(monkeypatch, package)
    assert found == SquidVersion(f"squid-openssl {package}", None)
    assert found.problem == ""


def test_without_dpkg_the_version_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = said(monkeypatch, None, "Squid Cache: Version 6.13\nService Name: squid\n")
    assert found == SquidVersion("Squid 6.13", None)
    assert found.problem == ""
    assert found.remark.startswith(
        "Squid 6.13: this version does not tell whether your distribution has fixed CVE-2026"
    )


def test_no_squid_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(monkeypatch, None) is None
