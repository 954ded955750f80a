"""Finds the helper processes, and kills those that are stopped as a whole.

A helper that is stuck exits (serving/helpers/helper_counters.py). A helper that is
stopped (SIGSTOP) or frozen cannot, and Squid waits for its replies forever. The
exporter runs as the same account, so it can kill them. It finds them by their command
lines: a helper that cannot write to the state folder is ended too. Helpers of another
gateway can have the same command lines, so state folder and program must also be this
gateway's.
"""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from squidkeeper.base.helper_metrics import HELPERS
from squidkeeper.base.own_processes import is_own
from squidkeeper.serving.counters.reader import CounterFile

STOPPED_CHECKS: Final = 12
_START_SECONDS: Final = 20.0  # longer than a stopped helper is left alone
_COMMANDS: Final = frozenset({b"acl", *(helper.encode() for helper in HELPERS)})
_WATCHED: Final = _COMMANDS | {b"publish"}  # whose threads wake every second too
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_log = logging.getLogger(__name__)

HelperTurns = tuple[int, int]  # a process, and the context switches of all its threads


def helper_processes(
    state: Path, user: int, commands: frozenset[bytes] = _COMMANDS
) -> Iterator[int]:
    """Yield the helper processes of an account that have this state folder, whether
    they can write there or not.
    """
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        program = _program(Path("/proc", str(pid)), os.fsencode(state), user, commands)
        if program and is_own(pid, state, program):
            yield pid


def uncounted_helpers(
    state: Path, user: int, counter_files: Iterable[CounterFile], now: float
) -> tuple[int, ...]:
    """List the helper processes that write no heartbeat, although they have had the
    time to start.
    """
    counted = {
        file.status.pid for file in counter_files if file.running and file.status
    }
    return tuple(
        pid
        for pid in helper_processes(state, user)
        if pid not in counted and _has_started(pid, now)
    )


def _has_started(pid: int, now: float) -> bool:
    try:
        return now - psutil.Process(pid).create_time() > _START_SECONDS
    except psutil.NoSuchProcess:
        return False


def _program(
    process: Path, state: bytes, user: int, commands: frozenset[bytes]
) -> Path | None:
    """Return what a process runs, by its command line; None: no helper with this state
    folder.
    """
    try:
        if process.stat().st_uid != user:
            return None
        pairs = [*pairwise((process / "cmdline").read_bytes().split(b"\0"))]
    except OSError:  # it has ended
        return None
    if (b"--state", state) not in pairs:
        return None
    # The interpreter stands ahead of it. Whatever else starts a helper is none.
    programs = (Path(os.fsdecode(path)) for path, name in pairs[:2] if name in commands)
    return next((path for path in programs if path.name == "squidkeeper"), None)


class StoppedWatchdog:
    """Checks each helper once a second, and kills one whose threads did not run at all
    for twelve checks.

    A helper's threads wake every second. The watchdog counts context switches and
    checks, not time: a changed clock, a full disk or a suspended machine does not make
    a helper look stopped.
    """

    def __init__(self, state: Path, every_seconds: float = 1.0) -> None:
        self._state = state
        self._every_seconds = every_seconds
        self._unchanged: dict[HelperTurns, int] = {}

    def start(self) -> None:
        """Check from now on, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def check(self) -> None:
        """Check once."""
        self._unchanged = {
            seen: self._unchanged.get(seen, 0) + 1 for seen in self._helpers()
        }
        for seen, checks in self._unchanged.items():
            if checks > STOPPED_CHECKS:
                self._kill(seen)

    def _helpers(self) -> Iterator[HelperTurns]:
        for pid in helper_processes(self._state, os.geteuid(), _WATCHED):
            turns = _turns(pid)
            if turns is not None:
                yield pid, turns

    def _kill(self, seen: HelperTurns) -> None:
        """Kill this process.

        Check it again first: another process can have its number by now.
        """
        pid, _ = seen
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                if seen in self._helpers():
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    _log.error(
                        "helper process %d was stopped: killed it, and another starts",
                        pid,
                    )
            finally:
                os.close(process)

    def _watch(self) -> None:
        while True:
            time.sleep(self._every_seconds)
            try:
                self.check()
            except OSError as error:
                _log.error("a stopped helper cannot be killed: %s", error)


def _turns(pid: int) -> int | None:
    try:
        texts = [
            (task / "status").read_text()
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        return None
    return sum(int(count) for text in texts for count in _SWITCHES.findall(text))
