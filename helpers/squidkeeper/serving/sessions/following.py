"""Has the policies of a process follow the sessions, where they have roles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from squidkeeper.base.places import sessions_folder
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.roles import Session

if TYPE_CHECKING:
    from squidkeeper.serving.sessions.index import SessionIndex

T = TypeVar("T")


class Following:
    """The sessions of a gateway, read once for all policies of a process."""

    def __init__(self, state: Path) -> None:
        self._folder = sessions_folder(state)
        self._index: SessionIndex | None = None
        self._lock = threading.Lock()

    def prepared(
        self, prepare: Callable[[CompiledPolicy], T]
    ) -> Callable[[CompiledPolicy], T]:
        """Have each policy follow the sessions, ahead of what else is made of it."""

        def prepared(policy: CompiledPolicy) -> T:
            if policy.source.has_sessions:
                policy.follow(self._found())
            return prepare(policy)

        return prepared

    def numbered(self, number: int) -> Session | None:
        """Find an active session by its number, for a service of several threads."""
        with self._lock:
            return self._found().numbered(number)

    def recorded(self, number: int) -> Session | None:
        """Find a session by its number, also one that has ended; as `numbered`."""
        with self._lock:
            return self._found().recorded(number)

    def close(self) -> None:
        """Close the files, which the next question opens again."""
        with self._lock:
            if self._index is not None:
                self._index.close()
            self._index = None

    def _found(self) -> SessionIndex:
        from squidkeeper.serving.sessions.index import SessionIndex  # late: few need it

        if self._index is None:
            self._index = SessionIndex(self._folder)
        return self._index
