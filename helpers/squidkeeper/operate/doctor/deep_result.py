"""What the last `squidkeeper doctor --deep` found, in a file of the state folder."""

from dataclasses import dataclass

from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import call_as_owner
from squidkeeper.base.status_file import StatusFile


@dataclass(frozen=True, slots=True)
class DeepFinding:
    """One case of a deep check, by the code of the check."""

    code: str
    detail: str
    place: str


@dataclass(frozen=True, slots=True)
class DeepResult:
    """When the deep checks ended, in seconds since 1970, and what they found."""

    at: float
    findings: tuple[DeepFinding, ...]


def read_deep_result(layout: Layout) -> DeepResult | None:
    """Read the last result; None where there is none, or one of another version."""
    return _status_file(layout).read()


def keep_deep_result(layout: Layout, result: DeepResult) -> None:
    """Write the result, as the account that owns the state folder; OSError where it
    cannot be written.
    """
    call_as_owner(layout.state, lambda: _status_file(layout).write(result))


def _status_file(layout: Layout) -> StatusFile[DeepResult]:
    return StatusFile(layout.deep_result, DeepResult)
