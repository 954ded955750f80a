"""The maintenance process: it checks each task once a second, until SIGTERM.

Its heartbeat is a small file in the state folder, which holds the failure of each task.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import SubprocessError
from typing import Final, NoReturn, Protocol

from squidkeeper.base.errors import SquidkeeperError
from squidkeeper.base.status_file import StatusFile

FILE: Final = "maintenance.json"
PATIENCE_SECONDS: Final = 10.0  # it checks its tasks once a second


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """Whether the maintenance process runs, and the failure of each task; an empty
    text: it works.
    """

    runs: bool
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether it runs, and no task fails."""
        return self.runs and not any(self.failures.values())


NOT_RUNNING: Final = MaintenanceStatus(runs=False)


def read_maintenance_status(state: Path, now: float) -> MaintenanceStatus:
    """Read the file; without one, the process does not run.

    `now` is in seconds since 1970.
    """
    file = _status_file(state)
    failures = file.read()
    if failures is None:
        return NOT_RUNNING
    return MaintenanceStatus(file.is_alive(now), failures)


def _status_file(state: Path) -> StatusFile[dict[str, str]]:
    return StatusFile(state / FILE, dict[str, str], patience_seconds=PATIENCE_SECONDS)


_INTERVAL_SECONDS: Final = 1.0
_FAILURES: Final = (OSError, SquidkeeperError, SubprocessError, ValueError)
_log = logging.getLogger(__name__)


class Task(Protocol):
    """A task. It has its own state between two checks."""

    name: str  # in the log, the metrics and the status page

    def check(self) -> None:
        """Do what is due, without waiting; an error says what failed and what to do."""


def run(tasks: Sequence[Task], state: Path) -> NoReturn:
    """Check the tasks until SIGTERM or SIGINT, which raise `SystemExit`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    runner = TaskRunner(tasks, state)
    while True:
        runner.check()
        time.sleep(_INTERVAL_SECONDS)


class TaskRunner:
    """The tasks, and the failure of each; an empty text: it works.

    The heartbeat is in the folder `state`.
    """

    def __init__(self, tasks: Sequence[Task], state: Path) -> None:
        self._tasks = tasks
        self._heartbeat = _status_file(state)
        self._failures = {task.name: "" for task in tasks}
        self._heartbeat_failure = ""

    def check(self) -> None:
        """Check each task once, then write the heartbeat.

        A task that fails does not stop the others.
        """
        for task in self._tasks:
            self._failures[task.name] = _checked(
                task.name, task.check, self._failures[task.name]
            )
        report = partial(self._heartbeat.write, self._failures)
        self._heartbeat_failure = _checked("heartbeat", report, self._heartbeat_failure)


def _checked(name: str, check: Callable[[], None], before: str) -> str:
    """Run a check and return its failure.

    Log a failure when it begins, changes or ends, not each time.
    """
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
