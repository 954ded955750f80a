"""Has `squidkeeper doctor --deep` run once a day: it starts helpers, as Squid does."""

import ctypes
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PERIOD_SECONDS: Final = 24 * 3600.0
_START_SECONDS: Final = 600.0  # after the start of a gateway, which has enough to do
_RETRY_SECONDS: Final = 3600.0
_PR_CAP_AMBIENT: Final = 47  # linux/prctl.h
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_LIBC: Final = ctypes.CDLL(None)


class DailyExamination:
    """Runs the command when its last result is a day old."""

    name = "examination"

    def __init__(
        self,
        command: Sequence[str],
        result: Path,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        self._command = command
        self._result = result
        self._due = time.monotonic() + start_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Start the command when it is due, in place of one that hangs."""
        if self._process:
            self._process.poll()
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _RETRY_SECONDS
        self.stop()
        if not self._is_recent():
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                preexec_fn=_lower_rights,
            )

    def stop(self) -> None:
        """End the command."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _is_recent(self) -> bool:
        try:
            return abs(time.time() - self._result.stat().st_mtime) < _PERIOD_SECONDS
        except OSError:
            return False


def _lower_rights() -> None:
    """Let Squid go first, and hand on no capability: the exporter could not see a
    helper that has one, nor end it.
    """
    os.nice(19)
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
