"""Kills helpers that are stopped as a whole (floor 7).

A helper that is stuck exits (helpers/watchdog.py). A helper that is stopped (SIGSTOP) or frozen cannot, and Squid waits
for its replies forever. The exporter finds the helpers by their counter files and runs as the same account, so it
can kill them.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.counters import counter_file_numbers, counter_file_owner

STOPPED_CHECKS: Final = 12
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_log = logging.getLogger(__name__)

HelperTurns = tuple[int, int, int]  # counter file number, its process, context switches of all its threads


class StoppedWatchdog:
    """Checks each helper once a second, and kills one whose threads did not run at all for twelve checks.

    A helper's threads wake every second. The watchdog counts context switches and checks, not time: a changed clock, a
    full disk or a suspended machine does not make a helper look stopped.
    """

    def __init__(self, folder: Path, every_seconds: float = 1.0) -> None:
        self._folder = folder
        self._every_seconds = every_seconds
        self._unchanged: dict[HelperTurns, int] = {}

    def start(self) -> None:
        """Check from now on, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def check(self) -> None:
        """Check once."""
        self._unchanged = {seen: self._unchanged.get(seen, 0) + 1 for seen in self._helpers()}
        for seen, checks in self._unchanged.items():
            if checks > STOPPED_CHECKS:
                self._kill(seen)

    def _helpers(self) -> Iterator[HelperTurns]:
        for number in counter_file_numbers(self._folder):
            pid = counter_file_owner(self._folder, number)
            turns = _turns(pid) if pid else None
            if pid and turns is not None:
                yield number, pid, turns

    def _kill(self, seen: HelperTurns) -> None:
        """Kill this process. Check it again first: another process can have its number by now."""
        number, pid, turns = seen
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                if counter_file_owner(self._folder, number) == pid and _turns(pid) == turns:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    _log.error("helper process %d was stopped: killed it, and Squid starts another", pid)
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
    """Count the context switches of all threads of a process; None if they cannot be read."""
    try:
        texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return None
    return sum(int(count) for text in texts for count in _SWITCHES.findall(text))
