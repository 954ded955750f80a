"""The maintenance process (floor 5): checks each of its tasks once a second, until it is told to end."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from subprocess import SubprocessError
from typing import Final, NoReturn, Protocol

from squidkeeper.errors import SquidkeeperError

_INTERVAL_SECONDS: Final = 1.0
_FAILURES: Final = (OSError, SquidkeeperError, SubprocessError, ValueError)
_log = logging.getLogger(__name__)


class Task(Protocol):
    """One thing to look after. It keeps its own state between two checks."""

    def check(self) -> None:
        """Do what is due, without waiting; an error says what could not be done and what to do."""


def run(tasks: Sequence[Task]) -> NoReturn:
    """Check the tasks until SIGTERM or SIGINT, which raise `SystemExit`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    upkeep = Upkeep(tasks)
    while True:
        upkeep.check()
        time.sleep(_INTERVAL_SECONDS)


class Upkeep:
    """The tasks, and what is known to be wrong with each."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._failures = [""] * len(tasks)

    def check(self) -> None:
        """Check each task once. One that fails does not stop the others."""
        for number, task in enumerate(self._tasks):
            failure = _failure_of(task)
            if failure != self._failures[number]:
                _report(task, failure)
            self._failures[number] = failure


def _failure_of(task: Task) -> str:
    try:
        task.check()
    except _FAILURES as error:
        return str(error) or type(error).__name__
    return ""


def _report(task: Task, failure: str) -> None:
    """Log a failure when it begins or changes, and its end; the same failure is logged once."""
    if failure:
        _log.error("%s: %s", type(task).__name__, failure)
    else:
        _log.info("%s: works again", type(task).__name__)


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
