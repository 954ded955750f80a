"""Where each export stands: a small file in the state folder, which is its position and its report at once.

Its modification time is the time of the heartbeat.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.record.log.follower import Position

FOLDER: Final = "export"  # in the state folder
SUFFIX: Final = ".json"
PATIENCE_SECONDS: Final = 120.0  # for a heartbeat: a slow receiver may take that long to answer


class ExportState(msgspec.Struct, frozen=True):
    """How far the receiver has taken the access log, and what was counted so far. Times are in seconds since 1970.

    Up to `position` the receiver has everything. After it, `unconfirmed` messages may have left: they are sent again
    if the process ends now. `until` is the time of the newest record that the receiver has.
    """

    position: Position = Position()
    unconfirmed: int = 0
    sent: int = 0
    doubled: int = 0
    gaps: int = 0
    lost: int = 0  # records in gaps, as far as their number is known
    until: str = ""
    archive_head: int = 0  # the number of the newest head of the archive that the receiver has
    last_success: float = 0.0
    waiting_since: float | None = None  # since when the receiver has not taken what there is; None: it has all
    backlog_bytes: int = 0
    failure: str = ""  # of the last attempt, without a secret; empty: it succeeded


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """One export: whether its process runs, and where it stands."""

    runs: bool
    state: ExportState

    def waiting_seconds(self, now: float) -> float:
        """Tell for how long the receiver has not taken what there is; `now` is in seconds since 1970."""
        since = self.state.waiting_since
        return 0.0 if since is None else max(0.0, now - since)


def parse_export_state(content: bytes) -> ExportState:
    """Parse the content of a file; raise ValueError if it is not one of ours."""
    try:
        return msgspec.json.decode(content, type=ExportState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def read_exports(state: Path, now: float) -> Mapping[str, ExportStatus]:
    """Read the file of each export, by its name; none if there is no folder. `now` is in seconds since 1970."""
    folder = state / FOLDER
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except OSError:
        return {}
    found = {name.removesuffix(SUFFIX): _read(folder / name, now) for name in names}
    return {name: status for name, status in found.items() if status}


def _read(file: Path, now: float) -> ExportStatus | None:
    try:
        beat = file.stat().st_mtime
        return ExportStatus(abs(now - beat) <= PATIENCE_SECONDS, parse_export_state(file.read_bytes()))
    except (OSError, ValueError):
        return None
