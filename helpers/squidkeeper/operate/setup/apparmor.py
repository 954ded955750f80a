"""Lines of ours in the local additions to AppArmor's profiles, between two marks that name the gateway."""

import re
import shutil
from pathlib import Path
from typing import Final

from squidkeeper.operate.setup.entries import File, text_at
from squidkeeper.operate.setup.machine import quietly

CONFINED: Final = ("squid", "unbound")  # the programs that Debian's AppArmor confines, and that get lines of ours
_PROFILES = Path("/etc/apparmor.d")
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")


def apparmor_confines(program: str) -> bool:
    """Tell whether AppArmor confines a program by its profile of Debian."""
    profile = f"usr.sbin.{program}"
    return (
        _ENABLED.exists()
        and _ENABLED.read_text().strip() == "Y"
        and (_PROFILES / profile).exists()
        and not (_PROFILES / "disable" / profile).exists()
        and shutil.which("apparmor_parser") is not None
    )


def additions_of(program: str) -> Path:
    """Give the file of local additions to the profile of a program."""
    return _PROFILES / "local" / f"usr.sbin.{program}"


def is_additions(path: Path) -> bool:
    """Tell whether a path is a file of local additions."""
    return path == additions_of(path.name.removeprefix("usr.sbin."))


def with_lines(text: str, prefix: Path, lines: str) -> File:
    """Give the local additions with the lines of a gateway."""
    mark = f"# squidkeeper {prefix}"
    return File(f"{without_lines(text, prefix)}{mark} begin\n{lines}{mark} end\n".encode())


def without_lines(text: str, prefix: Path) -> str:
    """Give the local additions without the lines of a gateway."""
    mark = re.escape(f"# squidkeeper {prefix}")
    return re.sub(f"^{mark} begin\n.*?^{mark} end\n", "", text, flags=re.MULTILINE | re.DOTALL)


def reload_apparmor(additions: Path) -> None:
    """Load the profile whose local additions have changed."""
    quietly("apparmor_parser", "-r", _PROFILES / additions.name)


def close_apparmor(program: str, prefix: Path) -> None:
    """Remove the lines of a gateway from the local additions to the profile of a program."""
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
