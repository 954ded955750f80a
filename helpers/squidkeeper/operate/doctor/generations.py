"""Which generation runs: in Squid, and in the services beside it."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from squidkeeper.base.layout import SERVICES
from squidkeeper.operate.doctor.inspection import Found, Inspection, info, warning
from squidkeeper.operate.setup.configuration import is_ours
from squidkeeper.operate.setup.entries import read_entry, text_at
from squidkeeper.operate.setup.generations import (
    contents,
    folder_of,
    number_in_force,
    numbers,
)
from squidkeeper.operate.setup.processes import InstalledService

_EXEC_START: Final = re.compile(r"^ExecStart=(.*)$", re.MULTILINE)
_TIMED: Final = ("archive", "render")  # they run for a moment


@warning(
    "generation-not-read",
    "Squid runs with an older generation than the one in force",
    "Run `squid -k reconfigure`.",
    as_root=True,
    running=True,
)
def _not_read(seen: Inspection) -> Iterator[Found]:
    """Find a Squid that was told to read another generation, and has not started since.

    Of an operator's squid.conf nobody else tells Squid.
    """
    layout, current = seen.layout, number_in_force(seen.layout)
    told = text_at(layout.generation_told)
    if current is None or not told.isdecimal() or int(told) == current:
        return
    if not is_ours(text_at(layout.conf.resolve())) or _started_since(seen):
        return
    if _read_by_squid(seen, int(told)) != _read_by_squid(seen, current):
        yield Found(f"it runs with {told}, and {current} is in force")


def _started_since(seen: Inspection) -> bool:
    pid = seen.squid.pid()
    try:
        started = psutil.Process(pid).create_time() if pid else float("inf")
    except psutil.Error:
        return True
    return started > seen.layout.generation.lstat().st_mtime


def _read_by_squid(seen: Inspection, number: int) -> dict[str, bytes]:
    folder = folder_of(seen.layout, number)
    entry = read_entry(folder)
    return contents(seen.layout, folder, entry) if entry else {}


@info(
    "generation-rolled-back",
    "An older generation than the newest is in force",
    "Edit the policy, or run `./install.sh`: that makes a new one.",
)
def _rolled_back(seen: Inspection) -> Iterator[Found]:
    current, kept = number_in_force(seen.layout), numbers(seen.layout)
    held = seen.layout.generation_held.exists()
    if held and current is not None and kept[-1] > current:
        yield Found(f"{current} is in force, and {kept[-1]} is the newest")


@warning(
    "service-outdated",
    "A service beside Squid runs with other options than it is installed with",
    "Run `./install.sh`, which starts it again.",
    as_root=True,
    running=True,
)
def _service_outdated(seen: Inspection) -> Iterator[Found]:
    for name in (name for name in SERVICES if name not in _TIMED):
        service = InstalledService(name, seen.layout, seen.squid.systemd)
        unit = service.paths.unit
        wanted = _EXEC_START.search(text_at(unit))
        pid = service.pid() if wanted else None
        if wanted and pid and not _own_lines(unit) and not _runs(pid, wanted[1]):
            yield Found(f"squidkeeper-{name}", str(unit))


def _own_lines(unit: Path) -> bool:
    return unit.with_name(f"{unit.name}.d").exists()


def _runs(pid: int, command: str) -> bool:
    """Tell whether a process, or one that it supervises, has the words of a command.

    One that has just ended is started again.
    """
    words = command.split()[1:]
    with suppress(psutil.Error):
        first = psutil.Process(pid)
        below = first.children(recursive=True)
        return any(one.cmdline()[-len(words) :] == words for one in (first, *below))
    return True
