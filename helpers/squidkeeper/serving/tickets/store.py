"""The tickets of a gateway: one SQLite file in the state folder, which every helper
writes.

Each holder (a machine, see `machines.py`, or a session) has a bound of its own, so no
client takes another one's place; the number of holders and the size of the file are
bounded too. The tickets of 5,000 sessions at their bounds take 90 MB of 256. They leave
with their session. A holder that has reached its bound gets no new ticket, and keeps
all that it has: a
question that people have not decided leaves when nobody has asked it for `KEPT_DAYS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from squidkeeper.base.errors import PatternError
from squidkeeper.base.shared_database import WAIT_SECONDS, SharedDatabase
from squidkeeper.policy.language.methods import parse_method
from squidkeeper.serving.tickets.ticket import (
    AskedRequest,
    Holder,
    session_of_machine,
    session_of_place,
    ticket_key,
    ticket_number,
)

if TYPE_CHECKING:
    import sqlite3

FOLDER: Final = "tickets"  # of the state folder
FILE: Final = "tickets.db"
PENDING_AT_MOST: Final = 200  # questions of a holder that wait
LONGEST_URL: Final = 2_048  # characters of a URL that gets a ticket
KEPT_DAYS: Final = 7
# an approved question that is asked meanwhile stays approved: the edit is not in force
# yet
GRACE_SECONDS: Final = 10
_URL_CHARACTERS: Final = 100_000  # of all questions of a holder that wait
_DECIDED_AT_MOST: Final = 200  # of a holder: the oldest ones leave
SESSION_PENDING_AT_MOST: Final = 20
_SESSION_URL_CHARACTERS: Final = 8_192
_SESSION_DECIDED_AT_MOST: Final = 5
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640  # Squid's group reads the questions of sessions
_DAY: Final = 86_400

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tickets (
    number TEXT PRIMARY KEY, holder TEXT NOT NULL, place TEXT NOT NULL,
    client TEXT NOT NULL, user TEXT NOT NULL, method TEXT NOT NULL, url TEXT NOT NULL, rule TEXT NOT NULL,
    times INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    state TEXT NOT NULL, decided REAL NOT NULL, until REAL NOT NULL, reason TEXT NOT NULL, told INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_holder ON tickets (holder, state, last);
CREATE INDEX IF NOT EXISTS by_place ON tickets (place, last);
CREATE INDEX IF NOT EXISTS by_last ON tickets (last);
"""
_REOPENED = "(state = :settled OR state = :approved AND decided < :grace OR state = :denied AND decided < :expired)"
_TAKEN = """
WITH RECURSIVE every(place) AS (
    SELECT min(place) FROM tickets
    UNION ALL SELECT (SELECT min(place) FROM tickets WHERE place > every.place) FROM every WHERE every.place IS NOT NULL
)
SELECT place FROM every WHERE EXISTS (SELECT 1 FROM tickets WHERE tickets.place = every.place AND last >= ?)
"""  # a step for each place, however many questions there are
_COLUMNS = "holder, number, client, user, method, url, rule, times, first, last, state, decided, until, reason, told"


class TicketState(StrEnum):
    """What has become of a question."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    SETTLED = "settled"  # the policy decides it by now


class NoTicket(StrEnum):
    """Why a question gets no ticket; the denial tells it."""

    TOO_MANY = "this client has as many open questions as it may have, and an answer to one of its questions helps"
    NO_PLACE = "as many clients of its network as may have tickets have them, and an answer to their questions helps"
    NO_SESSION_PLACE = "as many sessions as may have tickets have them"
    NO_METHOD = "no approval can be for its method"
    TOO_LONG = "the URL is too long for one"
    OVER_QUOTA = "a quota of new tickets is used up, and its count begins again later"
    UNAVAILABLE = "the gateway cannot keep one now"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A question as it is kept.

    Times are seconds since 1970; `until` is the end of what was approved, or 0.
    """

    number: str
    client: str
    user: str
    method: str
    url: str
    rule: str
    times: int
    first: float
    last: float
    state: TicketState = TicketState.PENDING
    decided: float = 0.0
    until: float = 0.0
    reason: str = ""
    told: int = 0
    session: int = 0

    @property
    def asked(self) -> AskedRequest:
        """The request that it is about."""
        return AskedRequest(self.client, self.user, self.method, self.url, self.session)


class TicketStore:
    """The tickets below a state folder, for the processes of Squid's account.

    Every method raises OSError where the file cannot be used, and then nothing has
    changed.
    """

    def __init__(self, state: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        self._folder = state / FOLDER
        self._file = self._folder / FILE
        self._key = b""
        self._database = SharedDatabase(
            self._file,
            _SCHEMA,
            _FOLDER_MODE,
            wait_seconds=wait_seconds,
            prepare=self._prepare,
        )

    @property
    def exists(self) -> bool:
        """Whether a question was ever asked."""
        return self._database.exists

    @property
    def key(self) -> bytes:
        """The key of the numbers."""
        with self._database.opened():
            return self._key

    def ask(
        self,
        asked: AskedRequest,
        holder: Holder,
        rule: str,
        at: float,
        admits: Callable[[], bool] = lambda: True,
        is_active: Callable[[int], bool] = lambda _: True,
    ) -> str | NoTicket:
        """Note that a question was asked; give the number of its ticket, or why it has
        none.

        `admits` tells whether a quota gives it a new one, `is_active` whether a session
        goes on.
        """
        if len(asked.url) > LONGEST_URL:
            return NoTicket.TOO_LONG
        try:
            parse_method(asked.method)
        except PatternError:
            return NoTicket.NO_METHOD
        asked = _as_stored(asked)
        with self._database.opened() as database:
            number = ticket_number(self._key, asked)
            if _is_asked_again(database, number, at):
                return number
            if holder.session and not _has_tickets(database, holder):
                _forget_ended(database, is_active)
            if full := _what_is_full(database, holder, len(asked.url), at):
                return full
            if not admits():
                return NoTicket.OVER_QUOTA
            with self._database.transaction():
                if full := _what_is_full(
                    database, holder, len(asked.url), at
                ):  # of two processes, one was faster
                    return full
                _tidy(database, holder, at)
                _add(database, number, holder, asked, rule, at)
            return number

    def find(self, number: str) -> Ticket | None:
        """Find a ticket by its number."""
        return next(iter(self._select("number = ?", number)), None)

    def of(self, asked: AskedRequest) -> Ticket | None:
        """Find the ticket of a request."""
        if not self.exists:
            return None
        return self.find(self.number_of(asked))

    def number_of(self, asked: AskedRequest) -> str:
        """Return the number that the ticket of a request has."""
        return ticket_number(self.key, _as_stored(asked))

    def pending(self, at: float) -> list[Ticket]:
        """List the questions that wait, the one that waits longest first."""
        since = at - KEPT_DAYS * _DAY
        return self._select(
            "state = ? AND last >= ? ORDER BY first, number", TicketState.PENDING, since
        )

    def pending_after(self, number: str, at_most: int) -> list[Ticket]:
        """List some questions that wait, by their numbers: those after one."""
        return self._select(
            "number > ? AND state = ? ORDER BY number LIMIT ?",
            number,
            TicketState.PENDING,
            at_most,
        )

    def pending_of(self, holder: Holder) -> list[Ticket]:
        """List the questions of a machine that wait."""
        return self._select(
            "holder = ? AND state = ?", holder.machine, TicketState.PENDING
        )

    def count_pending(self, at: float) -> int:
        """Count the questions that wait."""
        if not self.exists:
            return 0
        with self._database.opened() as database:
            since = at - KEPT_DAYS * _DAY
            query = "SELECT count(*) FROM tickets WHERE state = ? AND last >= ?"
            return int(
                database.execute(query, (TicketState.PENDING, since)).fetchone()[0]
            )

    def decide(
        self, number: str, state: TicketState, at: float, until: float, reason: str
    ) -> None:
        """Note what people have decided about a question."""
        with self._database.opened() as database:
            change = "UPDATE tickets SET state = ?, decided = ?, until = ?, reason = ? WHERE number = ?"
            database.execute(change, (state, at, until, reason, number))

    def settle(self, numbers: list[str], at: float) -> None:
        """Note that the policy decides these questions, so that they wait no longer."""
        with self._database.transaction() as database:
            change = "UPDATE tickets SET state = ?, decided = ?, until = 0, reason = '' WHERE number = ? AND state = ?"
            rows = [
                (TicketState.SETTLED, at, number, TicketState.PENDING)
                for number in numbers
            ]
            database.executemany(change, rows)

    def tell(self, numbers: list[str]) -> None:
        """Note that people have been told about these questions."""
        with self._database.transaction() as database:
            change = "UPDATE tickets SET told = 1 WHERE number = ?"
            database.executemany(change, [(number,) for number in numbers])

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _select(self, condition: str, *values: object) -> list[Ticket]:
        if not self.exists:
            return []
        with self._database.opened() as database:
            return select_tickets(database, condition, *values)

    def _prepare(self) -> None:
        """Read the key, and make the file with its mode, which SQLite gives to those
        beside it.
        """
        self._key = ticket_key(self._folder / "key")
        with suppress(FileExistsError), self._file.open("xb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)


def select_tickets(
    database: sqlite3.Connection, condition: str, *values: object
) -> list[Ticket]:
    """Read tickets; `condition` is the program's own."""
    query = f"SELECT {_COLUMNS} FROM tickets WHERE {condition}"  # noqa: S608 - no values
    return [_ticket(row) for row in database.execute(query, values)]


def _is_asked_again(database: sqlite3.Connection, number: str, at: float) -> bool:
    """Count a question that has a ticket.

    One that is no longer approved, or was denied long ago, waits again.

    Only such a question waits for what other processes write: a client can ask new ones
    faster than a disk writes.
    """
    if (
        database.execute("SELECT 1 FROM tickets WHERE number = ?", (number,)).fetchone()
        is None
    ):
        return False
    change = f"""UPDATE tickets SET times = times + 1, last = :at, told = told AND NOT ({_REOPENED}),
        state = CASE WHEN {_REOPENED} THEN :pending ELSE state END WHERE number = :number"""  # noqa: S608 - no values
    limits = {"grace": at - GRACE_SECONDS, "expired": at - KEPT_DAYS * _DAY}
    states = {str(state): str(state) for state in TicketState}
    return (
        database.execute(
            change, {"at": at, "number": number, **limits, **states}
        ).rowcount
        > 0
    )


def _what_is_full(
    database: sqlite3.Connection, holder: Holder, length: int, at: float
) -> NoTicket | None:
    since = at - KEPT_DAYS * _DAY
    query = "SELECT count(*), total(length(url)) FROM tickets WHERE holder = ? AND state = ? AND last >= ?"
    count, characters = database.execute(
        query, (holder.machine, TicketState.PENDING, since)
    ).fetchone()
    pending, url_characters, _ = _bounds(holder)
    if count:
        has_room = count < pending and characters + length <= url_characters
        return None if has_room else NoTicket.TOO_MANY
    taken = [place for (place,) in database.execute(_TAKEN, (since,))]
    if holder.has_room(taken):
        return None
    return NoTicket.NO_SESSION_PLACE if holder.session else NoTicket.NO_PLACE


def _bounds(holder: Holder) -> tuple[int, int, int]:
    """Return how many questions of a holder may wait, the characters of their URLs,
    and how many that are decided stay.
    """
    if holder.session:
        return (
            SESSION_PENDING_AT_MOST,
            _SESSION_URL_CHARACTERS,
            _SESSION_DECIDED_AT_MOST,
        )
    return PENDING_AT_MOST, _URL_CHARACTERS, _DECIDED_AT_MOST


def _has_tickets(database: sqlite3.Connection, holder: Holder) -> bool:
    query = "SELECT 1 FROM tickets WHERE holder = ? LIMIT 1"
    return database.execute(query, (holder.machine,)).fetchone() is not None


def _forget_ended(
    database: sqlite3.Connection, is_active: Callable[[int], bool]
) -> None:
    """Remove the tickets of sessions that have ended: each new session asks for it."""
    places = [place for (place,) in database.execute(_TAKEN, (0.0,))]
    ended = [
        (place,)
        for place in places
        if (number := session_of_place(place)) and not is_active(number)
    ]
    if ended:
        database.executemany("DELETE FROM tickets WHERE place = ?", ended)


def _tidy(database: sqlite3.Connection, holder: Holder, at: float) -> None:
    database.execute("DELETE FROM tickets WHERE last < ?", (at - KEPT_DAYS * _DAY,))
    database.execute(
        "DELETE FROM tickets WHERE number IN (SELECT number FROM tickets WHERE holder = ? AND state != ?"
        # what people have decided stays longest
        " ORDER BY state = ?, decided DESC LIMIT -1 OFFSET ?)",
        (holder.machine, TicketState.PENDING, TicketState.SETTLED, _bounds(holder)[2]),
    )


def _add(
    database: sqlite3.Connection,
    number: str,
    holder: Holder,
    asked: AskedRequest,
    rule: str,
    at: float,
) -> None:
    question = (
        asked.client,
        asked.user,
        asked.method,
        asked.url,
        _text(rule),
        1,
        at,
        at,
    )
    values = (
        number,
        holder.machine,
        _text(holder.place),
        *question,
        TicketState.PENDING,
        0.0,
        0.0,
        "",
        0,
    )
    database.execute(
        f"INSERT INTO tickets VALUES ({', '.join('?' * len(values))})",  # noqa: S608 - no values
        values,
    )


def _as_stored(asked: AskedRequest) -> AskedRequest:
    return AskedRequest(
        _text(asked.client),
        _text(asked.user),
        _text(asked.method),
        _text(asked.url),
        asked.session,
    )


def _text(text: str) -> str:
    """Write bytes that are not UTF-8 as escapes: SQLite stores UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _ticket(row: tuple[Any, ...]) -> Ticket:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    session = session_of_machine(str(values.pop("holder")))
    state = TicketState(values["state"])
    return Ticket(**(values | {"state": state, "session": session}))
