"""The maintenance process: it checks each task once a second, until SIGTERM."""

import logging
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from subprocess import SubprocessError
from typing import Final, NoReturn, Protocol

from squidkeeper.base.errors import SquidkeeperError
from squidkeeper.services.maintenance_status import Heartbeat

_INTERVAL_SECONDS: Final = 1.0
_FAILURES: Final = (OSError, SquidkeeperError, SubprocessError, ValueError)
_log = logging.getLogger(__name__)


class Task(Protocol):
    """A task. It has its own state between two checks."""

    name: str  # in the log, the metrics and the status page

    def check(self) -> None:
        """Do what is due, without waiting; an error says what failed and what to do."""


def run(tasks: Sequence[Task], heartbeat: Heartbeat) -> NoReturn:
    """Check the tasks until SIGTERM or SIGINT, which raise `SystemExit`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    runner = TaskRunner(tasks, heartbeat)
    while True:
        runner.check()
        time.sleep(_INTERVAL_SECONDS)


class TaskRunner:
    """The tasks, and the failure of each; an empty text: it works."""

    def __init__(self, tasks: Sequence[Task], heartbeat: Heartbeat) -> None:
        self._tasks = tasks
        self._heartbeat = heartbeat
        self._failures = {task.name: "" for task in tasks}
        self._heartbeat_failure = ""

    def check(self) -> None:
        """Check each task once, then write the heartbeat. A task that fails does not stop the others."""
        for task in self._tasks:
            self._failures[task.name] = _checked(task.name, task.check, self._failures[task.name])
        report = partial(self._heartbeat.write, self._failures)
        self._heartbeat_failure = _checked("heartbeat", report, self._heartbeat_failure)


def _checked(name: str, check: Callable[[], None], before: str) -> str:
    """Run a check and return its failure. Log a failure when it begins, changes or ends, not each time."""
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
