"""A SQLite file that several processes of one account write.

A process that is killed leaves no lock and no half-written row. No process waits for
another one for longer than `wait_seconds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

WAIT_SECONDS: Final = 0.2
_PAGES_AT_MOST: Final = 65_536  # of 4 KB: 256 MB
_SETTINGS: Final = (
    "trusted_schema = OFF",
    "journal_mode = WAL",
)


class SharedDatabase:
    """A file of SQLite, opened when it is first used, and opened again after a failure
    or when it was replaced.

    `mode` is that of its folder. `prepare` is called each time ahead of opening it,
    when the folder is there. What goes wrong is raised as `failure`, and nothing has
    changed then. `busy` is raised where another process writes for too long.
    `synchronous` is SQLite's: a power cut takes back no change of a file that is FULL.
    """

    def __init__(
        self,
        file: Path,
        schema: str,
        mode: int,
        *,
        wait_seconds: float = WAIT_SECONDS,
        synchronous: str = "NORMAL",
        prepare: Callable[[], None] = lambda: None,
        failure: type[Exception] = OSError,
        busy: type[Exception] | None = None,
    ) -> None:
        self._file = file
        self._schema = schema
        self._mode = mode
        self._wait_seconds = wait_seconds
        self._synchronous = synchronous
        self._now_synchronous = synchronous  # of the open file
        self._prepare = prepare
        self._failure = failure
        self._busy = busy or failure
        self._inode = 0
        self._connection: sqlite3.Connection | None = None

    @property
    def exists(self) -> bool:
        """Whether a process has made the file."""
        return self._file.exists()

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """Return the open file."""
        import sqlite3  # late: most helpers never need it

        try:
            yield self._current()
        except (sqlite3.Error, OSError, ValueError) as error:
            self.close()
            is_busy = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY
            failure = self._busy if is_busy else self._failure
            raise failure(f"{self._file.parent}: {error}") from error

    @contextmanager
    def transaction(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """Return the open file, for changes of which all happen, or none.

        What is not `synced` survives a power cut with the next transaction that is.
        """
        with self.opened() as database:
            wanted = self._synchronous if synced else "NORMAL"
            if wanted != self._now_synchronous:
                database.execute(f"PRAGMA synchronous = {wanted}")
                self._now_synchronous = wanted
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _current(self) -> sqlite3.Connection:
        # else somebody has removed the folder
        is_there = self.exists and self._file.stat().st_ino == self._inode
        if self._connection is None or not is_there:
            self.close()
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        self._file.parent.mkdir(mode=self._mode, exist_ok=True)
        self._prepare()
        connection = sqlite3.connect(
            self._file,
            timeout=self._wait_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = _decoded
        try:
            for setting in (
                *_SETTINGS,
                f"synchronous = {self._synchronous}",
                f"max_page_count = {_PAGES_AT_MOST}",
            ):
                connection.execute(f"PRAGMA {setting}")
            connection.executescript(self._schema)
        except sqlite3.Error:
            connection.close()
            raise
        self._now_synchronous = self._synchronous
        self._inode = self._file.stat().st_ino
        return connection


def _decoded(stored: bytes) -> str:
    return stored.decode("utf-8", "backslashreplace")
