"""How long an archive is kept: whole days go, the oldest first, each with a tombstone
in the chain.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from squidkeeper.base.formatting import byte_size, quantity
from squidkeeper.record.archive import KEEP_DAYS
from squidkeeper.record.chain.chain import Chain, append_entry, read_chain
from squidkeeper.record.chain.entries import ArchivedPart, ChainEntry, EntryKind
from squidkeeper.record.chain.keys import ArchiveKey

SHARE: Final = (
    4  # without --keep-bytes the archive may have this part of its file system
)


@dataclass(frozen=True, slots=True)
class ArchiveBounds:
    """How much an archive keeps: days, today left out, and bytes; None: a quarter of
    its file system.
    """

    days: int = KEEP_DAYS
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ArchivedDay:
    """A day of an archive, and its parts."""

    day: str
    parts: tuple[ArchivedPart, ...]

    @property
    def bytes(self) -> int:
        """The size of its parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def lines(self) -> int:
        """How many lines of the log it holds."""
        return sum(part.rows for part in self.parts)

    @property
    def invalid(self) -> int:
        """How many of these are no records."""
        return sum(part.invalid for part in self.parts)

    @property
    def figures(self) -> dict[str, str | int]:
        """The day as JSON has it."""
        counts = {
            "lines": self.lines,
            "invalid": self.invalid,
            "bytes": self.bytes,
            "parts": len(self.parts),
        }
        return {"day": self.day, **counts}


def days_of(chain: Chain) -> list[ArchivedDay]:
    """List the days of an archive, oldest first."""
    found: dict[str, list[ArchivedPart]] = {}
    for part in chain.parts.values():
        found.setdefault(part.day, []).append(part)
    return [ArchivedDay(day, tuple(found[day])) for day in sorted(found)]


def remove_over_bounds(
    folder: Path, bounds: ArchiveBounds, key: ArchiveKey | None, now: datetime
) -> list[str]:
    """Remove the days that are over the bounds, and list them."""
    over = list(_over(folder, days_of(read_chain(folder)), bounds, now))
    for day, reason in over:
        append_entry(
            folder,
            ChainEntry(kind=EntryKind.TOMBSTONE, parts=day.parts, reason=reason),
            key,
        )
        _remove(folder, day.parts)
    return [f"{day.day}: {reason}" for day, reason in over]


def remove_tombstoned(folder: Path, chain: Chain) -> None:
    """Remove the parts whose tombstone was written by a run that was killed before it
    removed them.
    """
    _remove(folder, chain.removed.values())


def _over(
    folder: Path, days: list[ArchivedDay], bounds: ArchiveBounds, now: datetime
) -> Iterator[tuple[ArchivedDay, str]]:
    first = (now - timedelta(days=bounds.days)).strftime("%Y-%m-%d")
    limit = (
        shutil.disk_usage(folder).total // SHARE
        if bounds.bytes is None
        else bounds.bytes
    )
    total = sum(day.bytes for day in days)
    for day in days:
        if day.day < first:
            yield day, f"older than {quantity(bounds.days, 'day')}"
        elif total > limit:
            yield day, f"the archive was over its limit of {byte_size(limit)}"
        else:
            return
        total -= day.bytes


def _remove(folder: Path, parts: Collection[ArchivedPart]) -> None:
    for part in parts:
        (folder / part.path).unlink(missing_ok=True)
    for day in {(folder / part.path).parent for part in parts}:
        with suppress(OSError):  # it holds other parts, or is gone
            day.rmdir()
