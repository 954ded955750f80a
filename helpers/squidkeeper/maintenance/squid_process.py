"""Signals to Squid's processes without root (floor 5): to reconfigure, and to reopen the logs.

`squid -k` signals Squid's master, which runs as root and signals each of its kids. A kid has Squid's account as its
real user (`leave_suid` in Squid's tools.cc), so a process of that account can signal it directly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from signal import Signals
from typing import Final

import psutil

_NAME: Final = "squid"
_TOGETHER_SECONDS: Final = 5.0  # the master starts its kids one after the other
_CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SquidRun:
    """The processes that serve now. `started`, in seconds since 1970; 0 where one of them was started again."""

    kids: frozenset[str]
    started: float

    @property
    def id(self) -> str:
        """A short name."""
        return sha256(" ".join(sorted(self.kids)).encode()).hexdigest()[:16]


class SquidProcess:
    """The Squid whose master wrote this pid file."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file

    def runs(self) -> bool:
        """Tell whether Squid runs."""
        return bool(self._kids())

    def run(self) -> SquidRun | None:
        """Identify this run of Squid; None if none runs, or it is just starting or ending."""
        try:
            kids = {f"{kid.pid}@{_start_ticks(kid.pid)}": kid.create_time() for kid in self._kids()}
        except (psutil.Error, OSError):
            return None
        if not kids:
            return None
        first, last = min(kids.values()), max(kids.values())
        return SquidRun(frozenset(kids), last if last - first < _TOGETHER_SECONDS else 0.0)

    def signal(self, signal: Signals) -> bool:
        """Signal every kid, or none; False if one of them does not handle the signal yet.

        The signal would end a kid that is just starting. Without a kid this is True: a Squid that starts later reads
        its configuration and opens its logs then.
        """
        kids = self._kids()
        try:
            if not all(_catches(kid, signal) for kid in kids):
                return False
            for kid in kids:
                kid.send_signal(signal)
        except (psutil.Error, OSError):
            return False  # it has just ended, or is still root
        return True

    def _kids(self) -> list[psutil.Process]:
        """Find the processes that serve: the master's children, or with `squid -N` the master."""
        try:
            master = psutil.Process(int(self._pid_file.read_text()))
            if master.name() != _NAME:
                return []  # Squid has ended, and another process has its number
            return [kid for kid in master.children() if kid.name() == _NAME] or [master]
        except (OSError, ValueError, psutil.Error):
            return []


def _start_ticks(pid: int) -> str:
    """Tell when a process started, by a clock that nobody sets: with its number this names it once and for all."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _catches(process: psutil.Process, signal: Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = _CAUGHT.search(status)
    return caught is not None and bool(int(caught[1], 16) >> (signal - 1) & 1)
