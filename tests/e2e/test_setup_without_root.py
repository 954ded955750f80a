"""`squidkeeper setup` as Squid's own account, as a container runs it: no root, and
nothing outside of its folders.
"""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from .gateway import REPOSITORY


def set_up(prototype: Path, place: Path, *options: str) -> str:
    """Run it as Squid's account; give what it says."""
    account = pwd.getpwnam("proxy")
    [venv] = [file for file in prototype.glob("venv-*") if (file / "complete").exists()]
    work = place / "gateway/work"
    work.mkdir()
    os.chown(work, account.pw_uid, account.pw_gid)
    words: list[str | Path] = [
        "setup",
        "--source",
        place / "source",
        "--venv",
        venv,
        "--work",
        work,
        "--root",
        place / "gateway",
    ]
    command: list[str | Path] = [
        venv / "bin/squidkeeper",
        *words,
        "--ca-dir",
        place / "ca",
        "--no-start",
        *options,
    ]
    done = subprocess.run(
        command,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def place(folder: Path) -> Path:
    """The sources, and two empty folders of Squid's account."""
    place = folder / "without-root"
    for name in ("squid", "policy"):
        shutil.copytree(REPOSITORY / name, place / "source" / name)
    for name in ("gateway", "ca"):
        (place / name).mkdir()
        shutil.chown(place / name, "proxy", "proxy")
    return place


def test_setup_needs_no_root_below_a_folder_of_squids_account(
    prototype: Path, place: Path
) -> None:
    told = set_up(prototype, place)
    assert f"the CA's key is in {place}/ca/ca.key" in told
    assert "squid -k parse accepts squid.conf" in told
    owners = {path.lstat().st_uid for path in (place / "gateway").rglob("*")}
    assert owners == {pwd.getpwnam("proxy").pw_uid}
    assert not list((place / "gateway").rglob("ca.key"))  # the root's stays where it is


def test_a_second_run_without_root_has_nothing_to_do(
    prototype: Path, place: Path
) -> None:
    told = set_up(prototype, place, "--dry-run")
    assert [line for line in told.splitlines() if line.startswith("would")] == []
