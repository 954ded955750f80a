"""Ends helpers that have stopped as a whole (floor 5).

A helper that is stuck ends itself (helpers/watchdog.py). One that gets no turn at all cannot, and Squid would wait for
its answers without end: it was stopped (SIGSTOP), or frozen. The exporter sees which processes have the slots of a
gateway, and runs as the same account, so it ends them.
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

from squidkeeper.counters import COUNTER_FILES, counter_file_owner

STOPPED_LOOKS: Final = 12
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
_log = logging.getLogger(__name__)

Seen = tuple[int, int, int]  # a slot's number, the process that has it, and how many turns its threads have had


class StoppedWatchdog:
    """Looks at each slot once a second, and ends a process none of whose threads has had a turn for twelve looks.

    A helper's threads wake every second. It is turns and looks that are counted, not the time: a clock that is set, a
    disk that takes no sign of life or a machine that was suspended makes no helper look stopped.
    """

    def __init__(self, folder: Path, every_seconds: float = 1.0) -> None:
        self._folder = folder
        self._every_seconds = every_seconds
        self._looks: dict[Seen, int] = {}

    def start(self) -> None:
        """Look from now on, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def look(self) -> None:
        """Look once."""
        self._looks = {seen: self._looks.get(seen, 0) + 1 for seen in self._see()}
        for seen, looks in self._looks.items():
            if looks > STOPPED_LOOKS:
                self._end(seen)

    def _see(self) -> Iterator[Seen]:
        for number in range(COUNTER_FILES):
            pid = counter_file_owner(self._folder, number)
            turns = _turns(pid) if pid else None
            if pid and turns is not None:
                yield number, pid, turns

    def _end(self, seen: Seen) -> None:
        """End this process, and surely no other: the number may be another's by now."""
        number, pid, turns = seen
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                if counter_file_owner(self._folder, number) == pid and _turns(pid) == turns:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    _log.error("helper process %d had stopped: it was ended, and Squid starts another", pid)
            finally:
                os.close(process)

    def _watch(self) -> None:
        while True:
            time.sleep(self._every_seconds)
            try:
                self.look()
            except OSError as error:
                _log.error("a helper that has stopped cannot be ended: %s", error)


def _turns(pid: int) -> int | None:
    """Count how often the threads of a process have been given the processor; None where that cannot be seen."""
    try:
        texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return None
    return sum(int(count) for text in texts for count in _SWITCHES.findall(text))
