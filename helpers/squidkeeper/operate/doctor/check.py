"""One check of `squidkeeper doctor`: its row in the table, and what it finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from squidkeeper.operate.doctor.inspection import Inspection
from squidkeeper.services.exporter.conditions import Severity


@dataclass(frozen=True, slots=True)
class Found:
    """One case of what a check is for. `place`: FILE:LINE, or a file; empty where it is nowhere."""

    detail: str
    place: str = ""


FindFaults = Callable[[Inspection], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table. `summary` says what is wrong, `remedy` what to do.

    `as_root`: only root can tell. `running`: only where the gateway is meant to run. `in_setup`: not at the end of an
    installation, which has just tried it itself, or which would wait for it.
    """

    code: str
    severity: Severity
    summary: str
    remedy: str
    find: FindFaults
    as_root: bool = False
    running: bool = False
    in_setup: bool = False


CHECKS: Final[list[Check]] = []  # in the order of their finders


def _check(
    severity: Severity, code: str, summary: str, remedy: str, **when: bool
) -> Callable[[FindFaults], FindFaults]:
    def add(find: FindFaults) -> FindFaults:
        CHECKS.append(Check(code, severity, summary, remedy, find, **when))
        return find

    return add


# Each adds the finder below it to the table.
critical, warning, info = (partial(_check, severity) for severity in Severity)
