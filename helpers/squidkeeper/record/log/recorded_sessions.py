"""The sessions of records: who asked, also after the session has ended.

A record has the number of its session. Role, values and labels stand in the store of
sessions, as long as that keeps them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from squidkeeper.record.log.record import NONE, Record

if TYPE_CHECKING:
    from squidkeeper.policy.language.roles import Session

_NUMBER: Final = re.compile(r"[0-9]{1,18}")  # that SQLite can hold


class Unknown(Enum):
    """A session that is not in the store, or that cannot be read."""

    SESSION = "session unknown"


class RecordedSessions:
    """Finds the sessions of records by their numbers.

    `find` reads the store, and returns None for a session that is not there.
    """

    def __init__(self, find: Callable[[int], Session | None] = lambda _: None) -> None:
        self._find = find

    @classmethod
    def of_gateway(cls, state: Path) -> RecordedSessions:
        """Read those of the gateway with a state folder, once a record names one."""
        from squidkeeper.serving.sessions.following import (
            Following,  # late: few need it
        )

        following = Following(state)
        found = cls(following.recorded)
        weakref.finalize(found, following.close)
        return found

    def of(self, record: Record) -> Session | Unknown | None:
        """Find the session of a record; None where it names none."""
        return self.numbered(record.session)

    def numbered(self, number: str) -> Session | Unknown | None:
        """Find a session by its number as records have it."""
        if number == NONE:
            return None
        known = self._find(int(number)) if _NUMBER.fullmatch(number) else None
        return known or Unknown.SESSION

    def name_of(self, number: str) -> str | None:
        """Name the session of a number; None where it is unknown, or none."""
        found = self.numbered(number)
        return None if found is None or found is Unknown.SESSION else found.name

    def known(self, record: Record) -> Session | None:
        """Find the session of a record; None also where it is unknown."""
        found = self.of(record)
        return None if found is Unknown.SESSION else found


NO_SESSIONS: Final = RecordedSessions()  # none is known
