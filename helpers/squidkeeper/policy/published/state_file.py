"""How the files of the policy are, as the process that publishes it says."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from squidkeeper.base.status_file import StatusFile
from squidkeeper.policy.published.places import state_file
from squidkeeper.policy.published.policy_state import PolicyState

_LARGEST_BYTES: Final = 4 << 20
_FAULTS_AT_MOST: Final = 1_000


class StateWriter:
    """Writes the state where it differs, and else the time, as a sign of life."""

    def __init__(self, folder: Path) -> None:
        self._file = _file(folder)

    def write(self, state: PolicyState) -> None:
        """Write a state; OSError if that is not possible."""
        shown = replace(
            state,
            faults=state.faults[:_FAULTS_AT_MOST],
            warnings=state.warnings[:_FAULTS_AT_MOST],
        )
        self._file.write(shown)


def read_state(folder: Path) -> PolicyState | None:
    """Read the state; None where there is none that can be read."""
    return _file(folder).read()


def _file(folder: Path) -> StatusFile[PolicyState]:
    return StatusFile(state_file(folder), PolicyState, longest=_LARGEST_BYTES)


def silent_seconds(folder: Path, now: float) -> float:
    """Return for how long the publisher has not written its state; infinite where it
    never has.
    """
    try:
        return now - os.stat(state_file(folder)).st_mtime
    except OSError:
        return float("inf")


def written_at(folder: Path) -> tuple[int, int] | None:
    """Tell which file of a state there is, by its number and its length."""
    try:
        found = os.stat(state_file(folder))
        return found.st_ino, found.st_size
    except OSError:
        return None
