"""The heartbeat of the maintenance process: a small file in the state folder.

It holds the failure of each task. Its modification time is the time of the heartbeat.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "maintenance.json"
PATIENCE_SECONDS: Final = 10.0  # it checks its tasks once a second


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """Whether the maintenance process runs, and the failure of each task; an empty text: it works."""

    runs: bool
    failures: Mapping[str, str] = field(default_factory=dict)


NOT_RUNNING: Final = MaintenanceStatus(runs=False)


class Heartbeat:
    """Writes the file: whole when a failure begins, changes or ends, else only its modification time."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE
        self._written = b""

    def write(self, failures: Mapping[str, str]) -> None:
        """Write the heartbeat and the failures by task; OSError if the file cannot be written."""
        content = msgspec.json.encode(failures)
        if content == self._written and self._file.exists():
            os.utime(self._file)
            return
        new = self._file.with_suffix(".new")
        new.write_bytes(content)
        new.rename(self._file)
        self._written = content


def read_maintenance_status(state: Path, now: float) -> MaintenanceStatus:
    """Read the file; without one, the process does not run. `now` is in seconds since 1970."""
    file = state / FILE
    try:
        beat = file.stat().st_mtime
        failures = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return NOT_RUNNING
    return MaintenanceStatus(abs(now - beat) <= PATIENCE_SECONDS, failures)
