"""Signals to Squid's processes without root: to reconfigure, and to reopen the logs.

`squid -k` signals Squid's master, which runs as root and signals each of its kids. A
kid has Squid's account as its real user (`leave_suid` in Squid's tools.cc), so a
process of that account can signal it directly.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from signal import Signals
from typing import Final

import psutil

from squidkeeper.base.own_processes import is_own

_NAME: Final = "squid"
_CHECKS_ALONE: Final = 3
_TOGETHER_SECONDS: Final = 5.0  # the master starts its kids one after the other
_CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SquidRun:
    """The processes that serve now.

    `started`, in seconds since 1970; 0 where one of them was started again.
    """

    kids: frozenset[str]
    started: float

    @property
    def id(self) -> str:
        """A short name."""
        return sha256(" ".join(sorted(self.kids)).encode()).hexdigest()[:16]

    def ended(self) -> int:
        """Find a process that has ended; 0: none has."""
        return next(
            (int(kid.partition("@")[0]) for kid in self.kids if not _is_there(kid)), 0
        )


class GivenUpWorkers:
    """Ends a Squid whose workers have all given up: its master stays with their
    coordinator, which serves nobody.

    The master ends with its last kid. Then systemd or `supervise` starts Squid again.
    """

    name = "given-up-workers"

    def __init__(self, squid: SquidProcess) -> None:
        self._squid = squid
        self._checks = 0

    def check(self) -> None:
        """End the coordinator once it has been alone for a while: a worker that ends is
        usually started again.
        """
        master = self._squid.master()
        coordinator = coordinator_alone(master.pid) if master else None
        self._checks = self._checks + 1 if coordinator else 0
        if coordinator and self._checks >= _CHECKS_ALONE:
            coordinator.terminate()


class SquidProcess:
    """The Squid whose master wrote this pid file."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file

    def runs(self) -> bool:
        """Whether Squid serves.

        A master outlives its kids for a moment, and serves nobody.
        """
        return bool(self._kids())

    def run(self) -> SquidRun | None:
        """Identify this run of Squid; None if none runs, or it is just starting or
        ending.
        """
        try:
            kids = {
                f"{kid.pid}@{_start_ticks(kid.pid)}": kid.create_time()
                for kid in self._kids()
            }
        except (psutil.Error, OSError):
            return None
        if not kids:
            return None
        first, last = min(kids.values()), max(kids.values())
        return SquidRun(
            frozenset(kids), last if last - first < _TOGETHER_SECONDS else 0.0
        )

    def signal(self, signal: Signals) -> bool:
        """Signal every kid, or none; False if one of them does not handle the signal
        yet.

        The signal would end a kid that is just starting. Without a kid this is True: a
        Squid that starts later reads its configuration and opens its logs then.
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
        master = self.master()
        try:
            return (
                [kid for kid in master.children() if kid.name() == _NAME]
                if master
                else []
            )
        except psutil.Error:
            return []

    def master(self) -> psutil.Process | None:
        """Find the master; None where Squid has ended, also where another process has
        its number.

        The master is root, so Squid's account sees its PID namespace alone.
        """
        try:
            master = psutil.Process(int(self._pid_file.read_text()))
            serves = (
                master.name() == _NAME and master.status() != psutil.STATUS_ZOMBIE
            ) and is_own(master.pid, self._pid_file, if_hidden=True)
            return master if serves else None
        except (OSError, ValueError, psutil.Error):
            return None


def coordinator_alone(master: int) -> psutil.Process | None:
    """Find the coordinator of several workers where these have all given up; None where
    one of them is there.
    """
    try:
        kids = {
            kid: kid.cmdline()[:1]
            for kid in psutil.Process(master).children()
            if kid.name() == _NAME
        }
    except psutil.Error:
        return None  # one of them has just ended
    is_alone = all(
        first and first[0].startswith("(squid-coord-") for first in kids.values()
    )
    return next(iter(kids), None) if is_alone else None


def _is_there(kid: str) -> bool:
    pid, _, ticks = kid.partition("@")
    try:
        return _start_ticks(int(pid)) == ticks
    except OSError:
        return False


def _start_ticks(pid: int) -> str:
    """Tell when a process started, by a clock that nobody sets: with its number this
    names it once and for all.

    `ProcessLookupError` where it has ended, also where its parent has not noticed.
    """
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError
    return fields[18]


def _catches(process: psutil.Process, signal: Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = _CAUGHT.search(status)
    return caught is not None and bool(int(caught[1], 16) >> (signal - 1) & 1)


class RateLimit:
    """Allows at most `events` within `seconds`, for each pair (seconds, events)."""

    def __init__(
        self, *bounds: tuple[float, int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bounds = bounds
        self._clock = clock
        self._events: deque[float] = deque(maxlen=max(events for _, events in bounds))

    def allows(self) -> bool:
        """Whether another event is allowed now."""
        now = self._clock()
        return all(
            sum(now - event < seconds for event in self._events) < events
            for seconds, events in self._bounds
        )

    def count(self) -> None:
        """Count an event."""
        self._events.append(self._clock())
