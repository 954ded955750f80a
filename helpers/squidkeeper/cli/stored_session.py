"""The session that `--session` names: the one of a number, else the last of a name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.base.places import sessions_folder

if TYPE_CHECKING:
    from squidkeeper.policy.language.roles import Session
    from squidkeeper.serving.sessions.store import SessionRow


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session of the store, which may have ended."""

    row: SessionRow
    session: Session

    @property
    def address(self) -> str | None:
        """The address, or the first one of the /64, that it comes from."""
        return self.row.network and self.row.network.partition("/")[0]

    @property
    def user(self) -> str | None:
        """What it logs in with."""
        return self.row.name if self.row.token_sha256 else None

    @property
    def is_active(self) -> bool:
        """Whether it goes on."""
        from squidkeeper.serving.sessions.clock import TimeNow

        return self.row.ended is None and not self.row.expired(TimeNow.now())

    @property
    def state(self) -> str:
        """Say whether it goes on."""
        if self.row.ended is not None:
            return f"ended {_time(self.row.ended)}, {self.row.ended_why}"
        until = _time(self.row.ends)
        return f"active until {until}" if self.is_active else "its time is over"


def stored_session(state: Path, given: str) -> StoredSession:
    """Find a session; `click.BadParameter` where there is none."""
    from squidkeeper.serving.sessions.index import session_of
    from squidkeeper.serving.sessions.stored import last_session

    folder = sessions_folder(state)
    row = last_session(folder, given)
    if row is None:
        expected = "expected the name or number of one that is active, or ended within the days of the archive"
        raise click.BadParameter(
            f"{given!r} is no session in {folder}, {expected}", param_hint="--session"
        )
    return StoredSession(row, session_of(row))


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
