"""What `squidkeeper log` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from squidkeeper.record.log.filters import Selecting


@dataclass(frozen=True, slots=True)
class WantedRequests:
    """What to show, and how. `newest`: no more than the newest so many."""

    filters: tuple[Selecting, ...]
    since: datetime | None
    until: datetime | None
    newest: int | None
    by: str | None
    as_json: bool
    connects: bool
    drift: bool
    coloured: bool
    terminal: int | None  # its columns
    rules: tuple[str, ...]  # that --rule names
