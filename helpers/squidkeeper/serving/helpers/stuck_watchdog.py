"""Ends a helper that is stuck, so that Squid starts another.

Squid waits for an answer forever, and its client waits too. Squid denies the lookups of a helper that ends.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

# Ten thousand path patterns for one host and the most hostile path take three at first: a loop that is at one line for
# longer than this is stuck.
STUCK_SECONDS: Final = 10
_SILENT_SECONDS = 15  # in which no thread of the interpreter runs
_log = logging.getLogger(__name__)


class StuckWatchdog:
    """Checks once a second whether the loop is still at the same line, and ends the process after ten such checks.

    `at` returns the line that the loop is at; None: it waits for one. Checks are counted, not the time: a process that
    was stopped, or that gets no processor, is not stuck. Nothing here waits for a disk. If no thread can run (one is in
    C and does not let others run), this one cannot either: then the interpreter's own timer, which needs no thread of
    the interpreter, writes the stack of each thread and ends the process.
    """

    def __init__(
        self, at: Callable[[], object], every_seconds: float = 1.0, silent_seconds: float = _SILENT_SECONDS
    ) -> None:
        self._at = at
        self._every_seconds = every_seconds
        self._silent_seconds = silent_seconds

    def start(self) -> None:
        """Start checking, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        last, checks = None, 0
        while checks < STUCK_SECONDS:
            with suppress(RuntimeError):  # no memory for its thread
                faulthandler.dump_traceback_later(self._silent_seconds, exit=True)
            time.sleep(self._every_seconds)
            now = self._at()
            checks = checks + 1 if now is not None and now == last else 0
            last = now
        _end()


def _end() -> NoReturn:
    _log.error("stuck for %d s; exiting so that Squid starts another. Stacks:", STUCK_SECONDS)
    faulthandler.dump_traceback()
    os._exit(1)
