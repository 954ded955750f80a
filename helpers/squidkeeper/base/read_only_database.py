"""A SQLite file that another account writes, in a folder that this one only reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

T = TypeVar("T")
_WAIT_SECONDS: Final = 0.2  # for a writer that repairs the file at its start
_TRIES: Final = 3
_CACHE_KB: Final = 200  # of pages


class ReadOnlyDatabase:
    """A file of SQLite, which is never written here.

    Beside its writer, and after it was killed, the file is open with its `-wal`. After
    a clean end there is none, and SQLite takes the file as one that nobody changes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._wal = file.with_name(f"{file.name}-wal")
        self._connection: sqlite3.Connection | None = None
        self._inode = 0  # of the file that is open

    def read(self, take: Callable[[sqlite3.Connection], T]) -> T:
        """Have `take` read one state of the file.

        The writer may start or end meanwhile, so it is tried again.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._read(take)
            except sqlite3.OperationalError:
                self.close()
        return self._read(take)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self, take: Callable[[sqlite3.Connection], T]) -> T:
        inode, is_unused = self._file.stat().st_ino, not self._wal.exists()
        if is_unused or inode != self._inode:
            self.close()
        if self._connection is None:
            self._connection, self._inode = self._open(is_unused), inode
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        database = self._connection
        database.execute("BEGIN")
        try:
            taken = take(database)
        finally:
            database.execute("ROLLBACK")
        if is_unused:
            self.close()
        if is_unused and self._wal.exists():
            raise sqlite3.OperationalError("its writer has just started")
        return taken

    def _open(self, is_unused: bool) -> sqlite3.Connection:
        how = "immutable=1" if is_unused else "readonly_shm=1"
        return sqlite3.connect(
            f"file:{quote(str(self._file))}?mode=ro&{how}",
            uri=True,
            timeout=_WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
