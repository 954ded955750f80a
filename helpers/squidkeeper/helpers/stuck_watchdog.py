"""Ends a helper that does not get on, so that Squid starts another (floor 5).

Squid waits for an answer without end, and whoever asked waits with it. What a helper was asked when it ends is denied.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

# Ten thousand path patterns for one host and the most hostile path take three at first: who is at a line for longer
# than this is stuck.
STUCK_SECONDS: Final = 10
_SILENT_SECONDS = 15  # without a turn for any thread of ours
_log = logging.getLogger(__name__)


class StuckWatchdog:
    """Looks once a second whether the loop is still at the same line, and ends the process when it always is.

    `at` tells which line the loop is at, None: it waits for one. It is looks that are counted, not the time: a process
    that was stopped, or that gets no processor, has not been stuck. Nothing here waits for a disk. Where no thread
    gets a turn (one runs in C and does not let others), this one does not either: then the interpreter's own timer,
    which needs none, shows where each thread is and ends the process.
    """

    def __init__(
        self,
        at: Callable[[], object],
        every_seconds: float = 1.0,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        self._at = at
        self._every_seconds = every_seconds
        self._silent_seconds = silent_seconds

    def start(self) -> None:
        """Look from now on, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        last, looks = None, 0
        while looks < STUCK_SECONDS:
            with suppress(RuntimeError):  # no memory for its thread
                faulthandler.dump_traceback_later(self._silent_seconds, exit=True)
            time.sleep(self._every_seconds)
            now = self._at()
            looks = looks + 1 if now is not None and now == last else 0
            last = now
        _end()


def _end() -> NoReturn:
    _log.error("this helper does not get on with what it was asked: it ends, and Squid starts another. It is here:")
    faulthandler.dump_traceback()
    os._exit(1)
