"""Runs of the archive without systemd's timer (floor 7): each is a process of its own, so that its memory is freed."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NoReturn


def repeat(arguments: Sequence[str], seconds: float) -> NoReturn:
    """Run `squidkeeper archive run` with these arguments every so many seconds, until SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    while True:
        program = ("nice", "-n", "19", sys.executable, "-I", "-m", "squidkeeper")  # Squid and its helpers go first
        command = (*program, "archive", "run", *arguments)
        with subprocess.Popen(command) as child:  # noqa: S603 - our own arguments
            try:
                child.wait()
            finally:
                child.terminate()
        time.sleep(seconds)


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
