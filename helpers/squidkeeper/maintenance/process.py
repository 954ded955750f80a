"""The maintenance process (floor 5): checks each of its tasks once a second, until it is told to end."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from subprocess import SubprocessError
from typing import Final, NoReturn, Protocol

from squidkeeper.errors import SquidkeeperError
from squidkeeper.maintenance_status import Heartbeat

_INTERVAL_SECONDS: Final = 1.0
_FAILURES: Final = (OSError, SquidkeeperError, SubprocessError, ValueError)
_log = logging.getLogger(__name__)


class Task(Protocol):
    """One thing to look after. It keeps its own state between two checks."""

    name: str  # in the log, the metrics and the status page

    def check(self) -> None:
        """Do what is due, without waiting; an error says what could not be done and what to do."""


def run(tasks: Sequence[Task], sign: Heartbeat) -> NoReturn:
    """Check the tasks until SIGTERM or SIGINT, which raise `SystemExit`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    rounds = TaskRunner(tasks, sign)
    while True:
        rounds.check()
        time.sleep(_INTERVAL_SECONDS)


class TaskRunner:
    """The tasks, and what is known to be wrong with each."""

    def __init__(self, tasks: Sequence[Task], sign: Heartbeat) -> None:
        self._tasks = tasks
        self._sign = sign
        self._failures = {task.name: "" for task in tasks}
        self._sign_failure = ""

    def check(self) -> None:
        """Check each task once, then report. One that fails does not stop the others."""
        for task in self._tasks:
            self._failures[task.name] = _checked(task.name, task.check, self._failures[task.name])
        report = partial(self._sign.give, self._failures)
        self._sign_failure = _checked("sign of life", report, self._sign_failure)


def _checked(name: str, check: Callable[[], None], before: str) -> str:
    """Do a check and give its failure, logged when it begins, changes or ends; the same failure is logged once."""
    failure = _failure_of(check)
    if failure and failure != before:
        _log.error("%s: %s", name, failure)
    elif before and not failure:
        _log.info("%s: works again", name)
    return failure


def _failure_of(check: Callable[[], None]) -> str:
    try:
        check()
    except _FAILURES as error:
        return str(error) or type(error).__name__
    return ""


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
