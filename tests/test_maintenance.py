"""`squidkeeper maintain`: its loop."""

from __future__ import annotations

import logging

import pytest

from squidkeeper.maintenance.process import Upkeep


class Flaky:
    """A task that fails with each of these errors in turn; None is a success."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = list(errors)

    def check(self) -> None:
        error = self._errors.pop(0)
        if error:
            raise error


class Counter:
    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


def test_a_failing_task_is_logged_once_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counter = Counter()
    upkeep = Upkeep([Flaky(None, OSError("a"), OSError("a"), ValueError("b"), None, None), counter])
    for _ in range(6):
        upkeep.check()
    assert [record.getMessage() for record in caplog.records] == ["Flaky: a", "Flaky: b", "Flaky: works again"]
    assert counter.checks == 6
