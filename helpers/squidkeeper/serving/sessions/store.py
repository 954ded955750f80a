"""The sessions of a gateway: one SQLite file, which one service writes.

Whoever may read the folder reads the file beside it, and after the service has ended in
whichever way. A change that was answered survives a power cut. Sessions that ended stay
until `purge`, and no number is used twice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from squidkeeper.base.client_network import client_network
from squidkeeper.base.errors import SessionGone, SessionTaken
from squidkeeper.base.shared_database import SharedDatabase
from squidkeeper.serving.sessions.answers import (
    StoredAnswer,
    answers_text,
    parse_answers,
)
from squidkeeper.serving.sessions.clock import TimeNow
from squidkeeper.serving.sessions.counter import ChangeCounter

if TYPE_CHECKING:
    import sqlite3

_log = logging.getLogger(__name__)
FILE: Final = "sessions.sqlite"  # of the folder of sessions
FOLDER_MODE: Final = 0o2750  # its group reads
EXPIRED: Final = "expired"  # why a session ended whose time is over
_FILE_MODE: Final = 0o640
_WAIT_SECONDS: Final = 5.0
_RESERVE_BYTES: Final = 8 * 1024 * 1024  # twice what SQLite writes ahead

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL, role TEXT NOT NULL, network TEXT, place TEXT, token_sha256 TEXT,
    variables TEXT NOT NULL, labels TEXT NOT NULL, secrets TEXT NOT NULL, orchestrator TEXT NOT NULL,
    created REAL NOT NULL, ends REAL NOT NULL, boot TEXT NOT NULL, boot_ends REAL NOT NULL,
    ended REAL, ended_why TEXT, content TEXT NOT NULL, change INTEGER NOT NULL UNIQUE
);
CREATE UNIQUE INDEX IF NOT EXISTS active_name ON sessions (name) WHERE ended IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS active_network ON sessions (network)
    WHERE ended IS NULL AND token_sha256 IS NULL AND network IS NOT NULL;
CREATE INDEX IF NOT EXISTS active_ends ON sessions (ends) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS active_boot_ends ON sessions (boot, boot_ends) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS active_place ON sessions (place) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS by_network ON sessions (network, ended) WHERE ended IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_name ON sessions (name, number);
CREATE INDEX IF NOT EXISTS by_ended ON sessions (ended) WHERE ended IS NOT NULL;
CREATE TABLE IF NOT EXISTS answers (session INTEGER PRIMARY KEY, answers TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS changes (name TEXT PRIMARY KEY, change INTEGER NOT NULL) WITHOUT ROWID;
"""
COLUMNS: Final = (
    "number, name, role, network, token_sha256, variables, labels, secrets, orchestrator,"
    " created, ends, boot, boot_ends, ended, ended_why, content, change, answers"
)
ROWS: Final = f"SELECT {COLUMNS} FROM sessions LEFT JOIN answers ON session = number"  # noqa: S608 - our columns


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a program asks for.

    `network` is the text of an address (as a network: /32 or /128) or of a /64.
    `lifetime` is in seconds. `content` is the hash of the whole call.
    """

    name: str
    role: str
    network: str | None
    token_sha256: str | None
    variables: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]
    secrets: tuple[str, ...]
    orchestrator: str
    lifetime: float
    content: str


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is stored.

    Times are seconds since 1970, but `boot_ends`, which are since the start `boot` of
    the machine. `ended` is None in an active session. `secrets` are the names alone.
    """

    number: int
    name: str
    role: str
    network: str | None
    token_sha256: str | None
    variables: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]
    secrets: tuple[str, ...]
    orchestrator: str
    created: float
    ends: float
    boot: str
    boot_ends: float
    ended: float | None
    ended_why: str | None
    content: str
    change: int
    answers: tuple[StoredAnswer, ...] = ()

    def expired(self, at: TimeNow) -> bool:
        """Whether its time is over, by either clock."""
        return self.seconds_left(at) <= 0

    def seconds_left(self, at: TimeNow) -> float:
        """Return how long it lives, by the clock that ends it first."""
        left = self.ends - at.wall
        is_same_boot = self.boot == at.boot
        return min(left, self.boot_ends - at.since_boot) if is_same_boot else left


class SessionStore:
    """The sessions below a folder, as the service writes them; for several threads.

    Every method raises OSError where the file cannot be used, and then nothing has
    changed. `now` returns the time.
    """

    def __init__(self, folder: Path, now: Callable[[], TimeNow] = TimeNow.now) -> None:
        self._file = folder / FILE
        self._reserve = folder / "reserve"
        self._now = now
        self._lock = threading.Lock()
        self._counter = ChangeCounter(folder)
        self._database = SharedDatabase(
            self._file,
            SCHEMA,
            FOLDER_MODE,
            wait_seconds=_WAIT_SECONDS,
            synchronous="FULL",
            prepare=self._prepare,
        )

    def start(self) -> None:
        """Check the file, and have every helper read it again.

        A process that was killed may have left a change that it told nobody.
        """
        with self._lock:
            self._check()
        with self._changing():
            pass
        self._keep_reserve()

    def create(
        self,
        new: NewSession,
        prepare: Callable[[int], None] | None = None,
        *,
        synced: bool = True,
    ) -> SessionRow:
        """Make a session; `SessionTaken` where an active one has its name or address.

        `prepare` takes its number ahead of the session's beginning: what it raises
        leaves no session. What is not `synced` survives a power cut after `sync`.
        """
        at = self._now()
        with self._changing(synced=synced) as database:
            _end_expired(database, at)
            _check_free(database, new)
            values = (
                *(
                    new.name,
                    new.role,
                    new.network,
                    new.network and place_of(new.network),
                ),
                *(new.token_sha256, _json(new.variables), _json(new.labels)),
                *(_json(new.secrets), new.orchestrator, at.wall),
                *(at.wall + new.lifetime, at.boot, at.since_boot + new.lifetime),
                *(new.content, _next_change(database)),
            )
            number = database.execute(_INSERTION, values).lastrowid
            if prepare and number:
                prepare(number)
            return _select(database, "number = ?", number)[0]

    def change(
        self,
        number: int,
        *,
        lifetime: float | None = None,
        network: str | None = None,
        secrets: tuple[str, ...] | None = None,
        content: str | None = None,
    ) -> SessionRow:
        """Change what is given of an active session; its lifetime begins now.

        `SessionGone` where it is not active, `SessionTaken` as by `create`.
        """
        at = self._now()
        with self._changing() as database:
            _end_expired(database, at)
            row = _active(database, number)
            if network is not None:
                _check_network(database, network, row.token_sha256, number)
                _set(database, number, network=network, place=place_of(network))
            if lifetime is not None:
                ends, boot_ends = at.wall + lifetime, at.since_boot + lifetime
                _set(database, number, ends=ends, boot=at.boot, boot_ends=boot_ends)
            if secrets is not None:
                _set(database, number, secrets=_json(secrets))
            if content is not None:
                _set(database, number, content=content)
            _set(database, number, change=_next_change(database))
            return _active(database, number)

    def shorten(self, role: str, ttl: float) -> list[SessionRow]:
        """Have no active session of a role live longer than `ttl` in all, give or take
        a second; return those whose end has moved.
        """
        with self._changing() as database:
            late = "ended IS NULL AND role = ? AND ends > created + ? + 1"
            rows = _select(database, late, role, ttl)
            for row in rows:
                sooner = row.ends - row.created - ttl
                ends, boot_ends = row.ends - sooner, row.boot_ends - sooner
                _set(database, row.number, ends=ends, boot_ends=boot_ends)
                _set(database, row.number, change=_next_change(database))
            return [_active(database, row.number) for row in rows]

    def answer(self, number: int, answers: tuple[StoredAnswer, ...]) -> SessionRow:
        """Keep the answers to the tickets of an active session, else `SessionGone`."""
        with self._changing() as database:
            _active(database, number)
            change = "REPLACE INTO answers VALUES (?, ?)"
            database.execute(change, (number, answers_text(answers)))
            _set(database, number, change=_next_change(database))
            return _active(database, number)

    def end(self, number: int, why: str) -> SessionRow | None:
        """End a session; None where it is not active."""
        with self._changing() as database:
            if not _select(database, "number = ? AND ended IS NULL", number):
                return None
            _end(database, number, self._now().wall, why)
            return _select(database, "number = ?", number)[0]

    def end_all(self, numbers: Iterable[int], why: str) -> None:
        """End sessions; those that are not active stay as they are.

        On a full disk the reserve makes room.
        """
        ending = [*numbers]
        try:
            self._end_all(ending, why)
        except OSError:
            if not self._reserve.exists():
                raise
            self._reserve.unlink()
            self._end_all(ending, why)

    def _end_all(self, numbers: Iterable[int], why: str) -> None:
        at = self._now()
        with self._changing() as database:
            for number in numbers:
                if _select(database, "number = ? AND ended IS NULL", number):
                    _end(database, number, at.wall, why)

    def sync(self) -> None:
        """Have a power cut take back nothing of what was changed."""
        with self._changing() as database:
            _next_change(database)

    def end_expired(self) -> list[SessionRow]:
        """End the sessions whose time is over; return them."""
        at = self._now()
        with self._lock, self._database.opened() as database:
            if not _expired(database, at):
                return []
        with self._changing() as database:
            return _end_expired(database, at)

    def by_number(self, number: int) -> SessionRow | None:
        """Find a session that `purge` has not removed."""
        return next(iter(self._rows("number = ?", number)), None)

    def by_name(self, name: str) -> SessionRow | None:
        """Find the last session of a name, which may have ended."""
        rows = self._rows("name = ? ORDER BY number DESC LIMIT 1", name)
        return next(iter(rows), None)

    def active(self, orchestrator: str | None = None) -> list[SessionRow]:
        """List the active sessions of one orchestrator, or of all."""
        if orchestrator is None:
            return self._rows("ended IS NULL ORDER BY number")
        return self._rows(
            "ended IS NULL AND orchestrator = ? ORDER BY number", orchestrator
        )

    def ended_since(self, at: float) -> list[SessionRow]:
        """List the sessions that ended at a time or later, the first one first."""
        return self._rows("ended >= ? ORDER BY ended, number", at)

    def purge(self, before: float) -> int:
        """Forget the sessions that ended before a time, in the files too; return how
        many.
        """
        self._keep_reserve()
        removed = self._purge(before)
        if removed:
            with self._lock, self._database.opened() as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def _purge(self, before: float) -> int:
        with self._changing() as database:
            database.execute("PRAGMA secure_delete = ON")
            found = database.execute(
                "SELECT max(change) FROM sessions WHERE ended < ?", (before,)
            ).fetchone()[0]
            if found is None:
                return 0
            _note(database, "purged", found)
            purged = database.execute(
                "DELETE FROM sessions WHERE ended < ?", (before,)
            ).rowcount
            database.execute(
                "DELETE FROM answers WHERE session NOT IN (SELECT number FROM sessions)"
            )
            return purged

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _changing(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """Change the file, then have the helpers read it."""
        with self._lock:
            with self._database.transaction(synced=synced) as database:
                _begin_numbers(database)
                yield database
            try:
                self._counter.advance()
            except OSError as error:  # the helpers notice the change a little later
                _log.error("%s: the counter cannot be raised: %s", self._file, error)

    def _rows(self, condition: str, *values: object) -> list[SessionRow]:
        with self._lock, self._database.opened() as database:
            return _select(database, condition, *values)

    def _prepare(self) -> None:
        """Make the file with its mode, which SQLite gives to those beside it."""
        with suppress(FileExistsError), self._file.open("xb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)

    def _keep_reserve(self) -> None:
        """Hold some of the disk back, if there is room."""
        if self._reserve.exists():
            return
        with suppress(OSError), self._reserve.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)

    def _check(self) -> None:
        with self._database.opened() as database:
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise OSError(f"{self._file} is damaged: {found}")


_INSERTED: Final = (
    "name, role, network, place, token_sha256, variables, labels, secrets, orchestrator,"
    " created, ends, boot, boot_ends, content, change"
)
_INSERTION: Final = f"INSERT INTO sessions ({_INSERTED}) VALUES ({', '.join('?' * 15)})"  # noqa: S608 - no values


def _begin_numbers(database: sqlite3.Connection) -> None:
    """Begin the numbers of a new file at the time, as an earlier file may be lost."""
    if database.execute("SELECT 1 FROM changes WHERE name = 'last'").fetchone():
        return
    first = int(time.time() * 1_000)
    for name in ("first", "last"):
        _note(database, name, first)
    database.execute("INSERT INTO sqlite_sequence VALUES ('sessions', ?)", (first,))


def _note(database: sqlite3.Connection, name: str, change: int) -> None:
    database.execute("REPLACE INTO changes VALUES (?, ?)", (name, change))


def _next_change(database: sqlite3.Connection) -> int:
    query = (
        "UPDATE changes SET change = change + 1 WHERE name = 'last' RETURNING change"
    )
    return int(database.execute(query).fetchone()[0])


def _check_free(database: sqlite3.Connection, new: NewSession) -> None:
    named = _select(database, "name = ? AND ended IS NULL", new.name)
    if named:
        raise SessionTaken("name", named[0].number)
    if new.network is not None:
        _check_network(database, new.network, new.token_sha256)


def _check_network(
    database: sqlite3.Connection, network: str, token: str | None, own: int = 0
) -> None:
    """Refuse a network that shares addresses with another session's.

    A session with a token takes no address.
    """
    if token is not None:
        return
    wanted = ip_network(network)
    condition = "place = ? AND ended IS NULL AND token_sha256 IS NULL AND number != ?"
    for row in _select(database, condition, place_of(network), own):
        if row.network is not None and wanted.overlaps(ip_network(row.network)):
            raise SessionTaken("address", row.number)


def place_of(network: str) -> str:
    """Return what holds all networks that may share addresses with a network."""
    return client_network(network.partition("/")[0])


def _set(database: sqlite3.Connection, number: int, **values: object) -> None:
    columns = ", ".join(f"{column} = ?" for column in values)
    database.execute(
        f"UPDATE sessions SET {columns} WHERE number = ?",  # noqa: S608 - our columns
        (*values.values(), number),
    )


def _active(database: sqlite3.Connection, number: int) -> SessionRow:
    rows = _select(database, "number = ? AND ended IS NULL", number)
    if not rows:
        raise SessionGone(f"the session {number} is not active")
    return rows[0]


def _end(database: sqlite3.Connection, number: int, at: float, why: str) -> None:
    change = _next_change(database)
    _set(database, number, ended=at, ended_why=why, change=change)


def _expired(database: sqlite3.Connection, at: TimeNow) -> list[SessionRow]:
    by_wall = _select(database, "ended IS NULL AND ends <= ?", at.wall)
    by_age = _select(
        database,
        "ended IS NULL AND boot = ? AND boot_ends <= ?",
        at.boot,
        at.since_boot,
    )
    return list({row.number: row for row in (*by_wall, *by_age)}.values())


def _end_expired(database: sqlite3.Connection, at: TimeNow) -> list[SessionRow]:
    rows = _expired(database, at)
    for row in rows:
        _end(database, row.number, at.wall, EXPIRED)
    return [_select(database, "number = ?", row.number)[0] for row in rows]


def _select(
    database: sqlite3.Connection, condition: str, *values: object
) -> list[SessionRow]:
    query = f"{ROWS} WHERE {condition}"
    return [session_row(row) for row in database.execute(query, values)]


def session_row(row: tuple[Any, ...]) -> SessionRow:
    """Read a row of `COLUMNS`; ValueError, TypeError or AttributeError where it is
    damaged.
    """
    values = dict(zip(COLUMNS.split(", "), row, strict=True))
    variables = json.loads(values["variables"])
    return SessionRow(
        **values
        | {
            "variables": {name: tuple(texts) for name, texts in variables.items()},
            "labels": json.loads(values["labels"]),
            "secrets": tuple(json.loads(values["secrets"])),
            "answers": parse_answers(values["answers"] or "[]"),
        }
    )


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
