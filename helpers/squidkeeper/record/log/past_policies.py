"""The policies of the revisions that were in force, a few of them in memory."""

import time
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cachetools import LRUCache, TTLCache

from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load_stored_revision
from squidkeeper.policy.policy_store.revisions import StoredRevision, stored_revisions
from squidkeeper.record.log.record import Record, parse_time

OUTDATED_AFTER: Final = timedelta(seconds=60)  # every helper has loaded an edit by then, long lists too
_POLICIES_AT_MOST: Final = 4  # a log names its revisions in turn; one of 10,000 rules takes 35 MB
_MISSING_AT_MOST: Final = 1000
_READ_AGAIN_SECONDS: Final = 2.0


class Effective(NamedTuple):
    """A revision, and the time from which no request is decided by an older one any more."""

    revision: str
    since: datetime


class PastPolicies:
    """The policies of the revisions that are stored in a folder, and the one in force; None for others.

    A revision that is missing is read again after a while: helpers store a revision only after it comes in force.
    """

    def __init__(self, folder: Path, current: Callable[[], CompiledPolicy | None] = lambda: None) -> None:
        self._folder = folder
        self._current = current
        self._known: LRUCache[str, CompiledPolicy] = LRUCache(_POLICIES_AT_MOST)
        self._missing: TTLCache[str, None] = TTLCache(_MISSING_AT_MOST, _READ_AGAIN_SECONDS, time.monotonic)
        self._effective: tuple[Effective, ...] = ()
        self._places: dict[str, int] = {}  # of each revision in `_effective`
        self._read_at = 0.0

    def __call__(self, revision: str) -> CompiledPolicy | None:
        """Give the policy of a revision."""
        current = self._current()
        if current is not None and current.revision == revision:
            return current
        policy = self._known.get(revision)
        if policy is None and revision not in self._missing:
            policy = self._load(revision)
        return policy

    def effective(self) -> tuple[Effective, ...]:
        """Give the stored revisions, the oldest first, each with the time from which it replaces those before it."""
        if time.monotonic() >= self._read_at:
            self._read_folder()
        return self._effective

    def replacing(self, record: Record) -> CompiledPolicy | None:
        """Give the policy that was in force where a record names an outdated revision; else None."""
        effective = self.effective()
        place = self._places.get(record.revision, len(effective))
        if place + 1 >= len(effective):
            return None
        start = parse_time(record) - timedelta(milliseconds=record.duration_ms)
        newest = bisect_right(effective, start, key=lambda one: one.since) - 1
        return self(effective[newest].revision) if newest > place else None

    def _read_folder(self) -> None:
        self._read_at = time.monotonic() + _READ_AGAIN_SECONDS
        try:
            stored = stored_revisions(self._folder)
        except OSError:
            return  # what was read before stays
        self._effective = tuple(Effective(one.revision, _effective_from(one)) for one in reversed(stored))
        self._places = {one.revision: place for place, one in enumerate(self._effective)}

    def _load(self, revision: str) -> CompiledPolicy | None:
        try:
            policy = load_stored_revision(self._folder, revision)
        except (OSError, PolicyError):
            self._missing[revision] = None
            return None
        self._known[revision] = policy
        return policy


def _effective_from(stored: StoredRevision) -> datetime:
    return datetime.fromtimestamp(stored.loaded, UTC) + OUTDATED_AFTER
