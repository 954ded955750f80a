"""A session of the store by its name, for commands: also one that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from squidkeeper.base.errors import UnreadableSessions
from squidkeeper.base.read_only_database import ReadOnlyDatabase
from squidkeeper.serving.sessions.index import FAULTS
from squidkeeper.serving.sessions.store import FILE, ROWS, SessionRow, session_row

_LAST: Final = (
    f"{ROWS} WHERE name = ? OR number = ? ORDER BY number = ? DESC, number DESC LIMIT 1"
)
_LARGEST: Final = 2**63 - 1


def last_session(folder: Path, given: str) -> SessionRow | None:
    """Find the session of a number, else the last one of a name.

    None where the store has none, or there is no store. `UnreadableSessions` where it
    cannot be read.
    """
    number = int(given) if given.isascii() and given.isdecimal() else -1
    number = number if number <= _LARGEST else -1
    file = ReadOnlyDatabase(folder / FILE)
    try:
        row = file.read(
            lambda database: database.execute(_LAST, (given, number, number)).fetchone()
        )
        return None if row is None else session_row(row)
    except FileNotFoundError:
        return None
    except FAULTS as error:
        raise UnreadableSessions(f"{folder / FILE}: {error}") from error
    finally:
        file.close()
