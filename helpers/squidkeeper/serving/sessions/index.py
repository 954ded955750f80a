"""The active sessions, as a helper keeps them in memory.

Ahead of each line the helper reads the mapped counter, and the changes where it was
raised. Twice a second it reads the file in any case. So a change holds though nobody
has raised the counter, and a session ends by time though no service ends it.
"""

from __future__ import annotations

import heapq
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hmac import compare_digest
from ipaddress import ip_network
from pathlib import Path
from sys import intern
from typing import Final

from squidkeeper.base.bounded_cache import BoundedCache
from squidkeeper.base.client_network import client_network
from squidkeeper.base.errors import InvalidUrl
from squidkeeper.base.read_only_database import ReadOnlyDatabase
from squidkeeper.policy.engine.compiled_policy import LOGIN_REFUSED
from squidkeeper.policy.engine.sessions import SESSIONS_UNAVAILABLE, Refused, Stamp
from squidkeeper.policy.language.model import TOKEN_ID_LENGTH
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.lines import decode_token
from squidkeeper.policy.protocol.request import ANY_LOGIN
from squidkeeper.policy.url import Address, Host, address_host, parse_address
from squidkeeper.serving.sessions.answers import (
    StoredAnswer,
    grants_of,
    told_answers,
)
from squidkeeper.serving.sessions.clock import TimeNow
from squidkeeper.serving.sessions.counter import MappedCounter
from squidkeeper.serving.sessions.store import FILE, ROWS, SessionRow, session_row

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.5
FAULTS: Final = (sqlite3.Error, OSError, ValueError, TypeError, AttributeError)
_UNAVAILABLE: Final = Refused(
    SESSIONS_UNAVAILABLE,
    "The gateway cannot read its sessions, so it denies what needs one. Its operators must repair them.",
)
_WRONG_LOGIN: Final = "The session {} has a token of another ID."
_OTHER_NETWORK: Final = "The network of the session {} does not hold this address."
_LAST_ENDED: Final = (
    "SELECT ended, ended_why FROM sessions WHERE network IN (?, ?)"
    " AND ended IS NOT NULL AND token_sha256 IS NULL ORDER BY ended DESC LIMIT 1"
)
_NO_COUNT: Final = [0]
_NOTHING: Final = -1  # the change of an index that knows nothing
_UNREADABLE: Final = -1  # in place of a stamp
_ENDED_CACHE_BYTES, _ENDED_BYTES = 10_000_000, 1_000  # for the record
_STAMPS: Final = 100  # of a session between two changes: as approvals lapse


@dataclass(frozen=True, slots=True)
class _Active:
    """A session, and what tells its requests: much smaller than the row of the file."""

    session: Session
    network: str | None
    token_sha256: str | None
    ends: float
    boot_ends: float | None
    answers: tuple[StoredAnswer, ...]

    def at(self, at: TimeNow) -> _Active:
        """Return it without the approvals that have lapsed."""
        return replace(self, session=_with_answers(self.session, self.answers, at))

    def expired(self, at: TimeNow) -> bool:
        by_age = self.boot_ends is not None and at.since_boot >= self.boot_ends
        return by_age or at.wall >= self.ends

    def within_network(self, address: Address | None) -> bool:
        return self.network is None or (
            address is not None and address in ip_network(self.network)
        )


class SessionIndex:
    """The active sessions of a folder, by address and by name. For one thread.

    `find` answers as of the last `refresh` or `stamp_of`.

    `find` takes 1 us, `stamp_of` 0.2, a change 27.
    """

    def __init__(self, folder: Path, now: Callable[[], TimeNow] = TimeNow.now) -> None:
        self._folder = folder
        self._now = now
        self._file = ReadOnlyDatabase(folder / FILE)
        self._counter: MappedCounter | None = None
        self._counts: list[int] | memoryview[int] = _NO_COUNT
        self._seen = -1
        self._look_at = 0.0  # by the monotonic clock
        self._refused: Refused | None = _UNAVAILABLE  # until the first look
        self._problem = ""  # that was logged
        self._ended: BoundedCache[int, Session] = BoundedCache(_ENDED_CACHE_BYTES)
        self._forget()

    def find(
        self, client: Host | None, user: str | None, login: str | None
    ) -> Session | Refused | None:
        """Find the session of a request: that of its login, else of its address."""
        if self._refused:
            return self._refused
        named = self._by_name.get(user) if user and login else None
        if named is not None:
            return _logged_in(named, client, login or "")
        found = self._at(client.text) if client and client.address else None
        return found.session if found else None

    @property
    def have_tokens(self) -> bool:
        """Whether a login can be that of a session."""
        return bool(self._by_name)

    def log_in(self, name: str, sha256: str, address: Address | None) -> str:
        """Return the result of a login, one of `LOGIN_RESULTS`, in the same time
        whether the token is the right one or not.
        """
        self.refresh()
        named = self._by_name.get(name)
        is_token = compare_digest((named and named.token_sha256) or "0" * 64, sha256)
        if named is None:
            return "unknown_client"
        if not is_token:
            return "wrong_token"
        return "accepted" if named.within_network(address) else "other_network"

    def numbered(self, number: int) -> Session | None:
        """Find an active session by its number."""
        self.refresh()
        active = self._by_number.get(number)
        return active.session if active else None

    def recorded(self, number: int) -> Session | None:
        """Find a session by its number, also one that has ended, for the record."""
        if (ended := self._ended.get(number)) is not None:
            return ended
        active = self.numbered(number)
        if active is not None and not active.answers:
            return active
        try:
            row = self._file.read(
                lambda database: database.execute(
                    f"{ROWS} WHERE number = ?", (number,)
                ).fetchone()
            )
            return None if row is None else self._recorded(session_row(row))
        except FAULTS:
            return None

    def _recorded(self, row: SessionRow) -> Session:
        session = session_of(row, None)
        if row.ended is not None:
            self._ended.add(row.number, session, _ENDED_BYTES)
        return session

    def stamp_of(self, line: bytes) -> Stamp:
        """Return a value for what `find` finds for a line that begins by client and
        user: another one after each change of that.

        Whether the session of the user or of the address holds depends on the login.
        So it tells both.
        """
        if self._counts[0] != self._seen or time.monotonic() >= self._look_at:
            self._look()
        client, user, _ = line.split(b" ", 2)
        if user != b"-" and (named := self._by_name.get(decode_token(user))):
            return named.session.stamp, self._stamp_at(client)
        return self._stamp_at(client)

    def _stamp_at(self, client: bytes) -> int:
        found = self._by_address.get(client.decode("ascii", "replace"))
        if found is None and (b":" in client or b"%" in client):  # IPv6
            found = self._at(_address_text(client))
        if found is not None:
            return found.session.stamp
        return _UNREADABLE if self._refused else int(bool(self._by_name))

    def former(self, client: Host) -> str:
        """Say when the last session of an address ended; an empty text where it had
        none. Who has the address now is not told whose it was.
        """
        networks = _networks_of(client.text)
        try:
            row = self._file.read(
                lambda database: database.execute(_LAST_ENDED, networks).fetchone()
            )
        except FAULTS:
            return ""
        if row is None:
            return ""
        ended, why = row
        at = datetime.fromtimestamp(ended, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"The last one ended at {at} ({why})."

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._counter:
            self._counter.close()
        self._counter, self._counts = None, _NO_COUNT

    # --- what is known ----------------------------------------------------------------

    def _at(self, address: str) -> _Active | None:
        found = self._by_address.get(address)
        return found or self._by_address.get(client_network(address))

    def _forget(self) -> None:
        self._by_number: dict[int, _Active] = {}
        self._by_address: dict[str, _Active] = {}  # or by the text of a /64
        self._by_name: dict[str, _Active] = {}  # with a token
        self._ends: list[tuple[float, int]] = []
        self._boot_ends: list[tuple[float, int]] = []
        self._change, self._first = _NOTHING, 0

    def _take(self, row: SessionRow, at: TimeNow) -> None:
        """Put a session where its former state was, or nothing if it has ended."""
        self._drop(row.number)
        if row.ended is not None or row.expired(at):
            return
        active = _active(row, at)
        self._put(active)
        heapq.heappush(self._ends, (active.ends, row.number))
        if active.boot_ends is not None:
            heapq.heappush(self._boot_ends, (active.boot_ends, row.number))
        for one in row.answers:
            if one.approved and not one.is_over(at):
                heapq.heappush(self._ends, (one.ends, row.number))
                if one.boot == at.boot:
                    heapq.heappush(self._boot_ends, (one.boot_ends, row.number))

    def _put(self, active: _Active) -> None:
        session = active.session
        self._by_number[session.number] = active
        if active.token_sha256 is not None:
            self._by_name[session.name] = active
        elif active.network is not None:
            self._by_address[_place(active.network)] = active

    def _drop(self, number: int) -> None:
        active = self._by_number.pop(number, None)
        if active is None:
            return
        places = (
            (self._by_name, active.session.name),
            (self._by_address, _place(active.network or "")),
        )
        for by_place, place in places:
            if by_place.get(place) is active:
                del by_place[place]

    def _expire(self, at: TimeNow) -> None:
        clocks = ((self._ends, at.wall), (self._boot_ends, at.since_boot))
        for ends, now in clocks:
            while ends and ends[0][0] <= now:
                _, number = heapq.heappop(ends)
                active = self._by_number.get(number)
                if active is None:
                    continue
                self._drop(number)
                if not active.expired(at):
                    self._put(active.at(at))

    # --- what has changed -------------------------------------------------------------

    def refresh(self) -> None:
        """Take what has changed."""
        if self._counts[0] != self._seen or time.monotonic() >= self._look_at:
            self._look()

    def _look(self) -> None:
        at = self._now()
        try:
            self._map_counter()
            seen = self._counts[0]  # ahead of reading: a later change is read again
            self._read_changes(at)
        except FAULTS as error:
            self._fail(error)
        else:
            self._seen, self._refused, self._problem = seen, None, ""
        self._expire(at)
        self._look_at = time.monotonic() + self._until_next(at)

    def _map_counter(self) -> None:
        if self._counter and self._counter.is_current:
            return
        if self._counter:
            self._counter.close()
        self._counter, self._counts = None, _NO_COUNT
        self._counter = MappedCounter(self._folder)
        self._counts = self._counter.counts

    def _read_changes(self, at: TimeNow) -> None:
        def take(database: sqlite3.Connection) -> None:
            first, last, purged = _marks(database)
            # another file, or an end that has left it
            if first != self._first or purged > self._change:
                self._forget()
            if last != self._change:
                for row in _changed(database, self._change):
                    self._take(row, at)
            self._change, self._first = last, first

        self._file.read(take)

    def _fail(self, error: Exception) -> None:
        if str(error) != self._problem:
            _log.error("%s: the sessions cannot be read: %s", self._folder, error)
        self._problem = str(error)
        self._file.close()
        self._forget()
        self._refused = _UNAVAILABLE
        self._seen = self._counts[0]

    def _until_next(self, at: TimeNow) -> float:
        """Return the seconds until a session ends, or until the next look."""
        clocks = ((self._ends, at.wall), (self._boot_ends, at.since_boot))
        ends = (first[0][0] - now for first, now in clocks if first)
        return max(0.0, min((_LOOK_SECONDS, *ends)))


def _marks(database: sqlite3.Connection) -> tuple[int, int, int]:
    """Return the number of the file's first change, of the last, and of the last that
    was purged.
    """
    marks = dict(database.execute("SELECT name, change FROM changes"))
    return marks.get("first", 0), marks.get("last", 0), marks.get("purged", 0)


def _changed(database: sqlite3.Connection, since: int) -> Iterator[SessionRow]:
    """Yield what is newer than a change; where nothing is known, what is active."""
    newer = "ended IS NULL" if since == _NOTHING else "change > ? ORDER BY change"
    values = () if since == _NOTHING else (since,)
    query = f"{ROWS} WHERE {newer}"
    return map(session_row, database.execute(query, values))


def session_of(row: SessionRow, at: TimeNow | None = None) -> Session:
    """Return a session as the engine knows it, with the approvals that are in force at
    a time; without a time, with all that are kept.
    """
    found = Session(
        number=row.number,
        name=row.name,
        role=intern(row.role),
        values={intern(name): texts for name, texts in row.variables.items()},
        stamp=row.change * _STAMPS,
        labels={intern(name): intern(text) for name, text in row.labels.items()},
        orchestrator=intern(row.orchestrator),
    )
    return _with_answers(found, row.answers, at) if row.answers else found


def _with_answers(
    session: Session, answers: tuple[StoredAnswer, ...], at: TimeNow | None
) -> Session:
    """Give a session what was approved; its stamp tells how much is in force."""
    grants = grants_of(answers, at)
    state = _STAMPS - 1 if at is None else len(grants)
    stamp = session.stamp // _STAMPS * _STAMPS + state
    return replace(session, stamp=stamp, grants=grants, answers=told_answers(answers))


def _active(row: SessionRow, at: TimeNow) -> _Active:
    return _Active(
        session_of(row, at),
        row.network,
        row.token_sha256,
        row.ends,
        row.boot_ends if row.boot == at.boot else None,
        row.answers,
    )


def _place(network: str) -> str:
    """Return what an address is looked up by: itself, or the text of its /64."""
    address, _, length = network.partition("/")
    return network if length == "64" else address


def _networks_of(address: str) -> tuple[str, str]:
    """Return the two networks of sessions that hold an address."""
    return str(ip_network(address)), client_network(address)


def _address_text(client: bytes) -> str:
    try:
        return address_host(parse_address(decode_token(client))).text
    except InvalidUrl:
        return ""


def _logged_in(named: _Active, client: Host | None, login: str) -> Session | Refused:
    name = named.session.name
    if login not in (ANY_LOGIN, (named.token_sha256 or "")[:TOKEN_ID_LENGTH]):
        return Refused(LOGIN_REFUSED, _WRONG_LOGIN.format(name))
    if not named.within_network(client and client.address):
        return Refused(LOGIN_REFUSED, _OTHER_NETWORK.format(name))
    return named.session
