"""Those who judge by the revisions that were in force (floor 5), a few of them in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

from cachetools import LRUCache, TTLCache

from squidkeeper.engine import Judge
from squidkeeper.errors import PolicyError
from squidkeeper.policy.revisions import StoredRevision, kept
from squidkeeper.policy_store.policy_watcher import load_kept
from squidkeeper.record.record import Record, format_time, parse_time

OUTDATED_AFTER: Final = timedelta(seconds=60)  # by when every helper has taken up an edit, long lists compiled
_JUDGES_AT_MOST: Final = 4  # a log names its revisions in turn; one of 10,000 rules takes 35 MB
_MISSING_AT_MOST: Final = 1000
_LOOK_AGAIN_SECONDS: Final = 2.0


class PastPolicies:
    """The judges of the revisions that are kept in a folder, and of the one in force; None for others.

    One that is unavailable is looked for again later: a helper keeps a revision only after it has come in force.
    """

    def __init__(self, folder: Path, current: Callable[[], Judge | None] = lambda: None) -> None:
        self._folder = folder
        self._current = current
        self._known: LRUCache[str, Judge] = LRUCache(_JUDGES_AT_MOST)
        self._missing: TTLCache[str, None] = TTLCache(_MISSING_AT_MOST, _LOOK_AGAIN_SECONDS, time.monotonic)
        self._kept: tuple[StoredRevision, ...] = ()  # the oldest first
        self._outdated: dict[str, str] = {}  # each revision but the newest, and from when on it should decide nothing
        self._look_at = 0.0

    def __call__(self, revision: str) -> Judge | None:
        """Give the judge of a revision."""
        current = self._current()
        if current is not None and current.policy.revision == revision:
            return current
        judge = self._known.get(revision)
        if judge is None and revision not in self._missing:
            judge = self._load(revision)
        return judge

    def replacing(self, record: Record) -> Judge | None:
        """Give the judge of the revision that was in force where a record names one that was outdated; else None."""
        if time.monotonic() >= self._look_at:
            self._look()
        if record.time <= self._outdated.get(record.revision, record.time):
            return None
        start = parse_time(record) - timedelta(milliseconds=record.duration_ms)
        if format_time(start) <= self._outdated[record.revision]:
            return None
        newest = (start - OUTDATED_AFTER).timestamp()
        return self(max((one for one in self._kept if one.loaded <= newest), key=lambda one: one.loaded).revision)

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            self._kept = tuple(reversed(kept(self._folder)))
        except OSError:
            return  # by what was there before
        self._outdated = {older.revision: _outdated_from(newer) for older, newer in pairwise(self._kept)}

    def _load(self, revision: str) -> Judge | None:
        try:
            judge = load_kept(self._folder, revision)
        except (OSError, PolicyError):
            self._missing[revision] = None
            return None
        self._known[revision] = judge
        return judge


def _outdated_from(newer: StoredRevision) -> str:
    return format_time(datetime.fromtimestamp(newer.loaded, UTC) + OUTDATED_AFTER)
