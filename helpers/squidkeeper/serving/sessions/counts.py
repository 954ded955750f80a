"""How many sessions are active, for whoever reads them beside the service."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from squidkeeper.serving.sessions.store import FILE

_QUERY: Final = "SELECT role, count(*) FROM sessions WHERE ended IS NULL GROUP BY role"


def count_by_role(folder: Path) -> dict[str, int] | None:
    """Count the active sessions of each role; None where they cannot be read."""
    file = folder / FILE
    # beside a service that has ended there is no file of shared memory
    how = "" if Path(f"{file}-shm").exists() else "&immutable=1"
    try:
        uri = f"file:{quote(str(file))}?mode=ro{how}"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            return dict(database.execute(_QUERY).fetchall())
    except sqlite3.Error:
        return None
