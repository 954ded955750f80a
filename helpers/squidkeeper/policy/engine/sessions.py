"""What the engine asks about sessions: which one a request belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.url import Host

SESSIONS_UNAVAILABLE = "sessions-unavailable"
SESSION_REQUIRED = "session-required"
SESSION_INVALID = "session-invalid"


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request gets no session: a built-in rule and the reason for the page."""

    rule: str
    reason: str


class Sessions(Protocol):
    """The active sessions."""

    def find(
        self, client: Host | None, user: str | None, login: str | None
    ) -> Session | Refused | None:
        """Find the session of a request: that of its login, else that of its address.

        None: it has none, whoever it is.
        """

    def stamp_of(self, line: bytes) -> int:
        """Return a number for what `find` finds for a line of Squid: another one after
        each change of that.
        """

    def former(self, client: Host) -> str:
        """Say which session an address had last; an empty text where it had none."""
