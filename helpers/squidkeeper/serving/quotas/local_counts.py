"""Counts on one gateway: one SQLite file in the state folder, which every helper
writes.

It survives restarts. A count never goes back with the clock: a window that has begun
goes on until the clock has reached its end, unless it is more than one window away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.base.errors import CountsBusy, CountsUnavailable
from squidkeeper.base.shared_database import SharedDatabase
from squidkeeper.serving.quotas.counts import (
    LARGEST,
    Choice,
    QuotaCount,
    QuotaUse,
    Taken,
    share,
)

if TYPE_CHECKING:
    import sqlite3

FOLDER: Final = "quotas"  # of the state folder
_TIDY_EVERY_SECONDS: Final = 60.0
_KEPT_SECONDS: Final = 86_400.0  # after the window's end: a clock may be set back
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS counts (
    quota TEXT NOT NULL, unit TEXT NOT NULL, every TEXT NOT NULL, holder TEXT NOT NULL,
    began INTEGER NOT NULL, ends INTEGER NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (quota, unit, every, holder)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_end ON counts (ends);
CREATE TABLE IF NOT EXISTS held (
    request TEXT NOT NULL, quota TEXT NOT NULL, unit TEXT NOT NULL, every TEXT NOT NULL, holder TEXT NOT NULL,
    amount INTEGER NOT NULL, ends INTEGER NOT NULL,
    PRIMARY KEY (quota, unit, every, holder, request)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_request ON held (request);
"""
_FIND: Final = "SELECT began, used FROM counts WHERE quota = ? AND unit = ? AND every = ? AND holder = ?"
_HOLD: Final = "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?, ?, ?)"
OF_COUNT: Final = "FROM held WHERE quota = ? AND unit = ? AND every = ? AND holder = ?"
_HELD: Final = f"SELECT coalesce(sum(amount * (ends > ?)), 0), count(*) {OF_COUNT} AND request <> ?"
_USES: Final = """
SELECT quota, unit, every, holder, sum(used), max(ends) FROM (
    SELECT quota, unit, every, holder, used, ends FROM counts
    UNION ALL SELECT quota, unit, every, holder, amount, ends FROM held
) WHERE ends > ? GROUP BY quota, unit, every, holder
"""
_OF_HOLDER: Final = "WHERE quota = :quota AND (:holder IS NULL OR holder = :holder)"
_WRITE: Final = "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?, ?)"


class Offer(NamedTuple):
    """What is used of a count, held by requests under way, and may be used at most;
    now, and the end of the window.

    `rows` is by how many requests it is held.
    """

    used: int
    held: int
    rows: int
    limit: int
    now: float
    ends: int

    @property
    def free(self) -> int:
        """What nobody uses or holds."""
        return self.taken(0).left - self.held

    def taken(self, given: int) -> Taken:
        """Say what was given of it."""
        return Taken(
            given, self.used, max(0, self.limit - self.used), self.ends - self.now
        )


class LocalCounts:
    """The counts below a state folder, for the processes of Squid's account."""

    def __init__(
        self, state: Path, clock: Callable[[], float] = time.time, more: str = ""
    ) -> None:
        self._database = SharedDatabase(
            state / FOLDER / "counts.db",
            _SCHEMA + more,
            0o750,
            failure=CountsUnavailable,
            busy=CountsBusy,
        )
        self._clock = clock
        self._tidied = 0.0

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        """Hand out up to so many units of what is left."""
        if not asked:
            with self._database.opened() as database:
                now = self._clock()
                began, used = _current(database, count, now)
                return Taken(
                    0, used, max(0, limit - used), count.window.end(began) - now
                )
        with self._database.transaction() as database:
            now = self._clock()
            began, used = _current(database, count, now)
            given = share(limit, used, asked)
            if given:
                _write(database, count, began, used + given)
                self._tidy(database, now)
        used += given
        return Taken(given, used, max(0, limit - used), count.window.end(began) - now)

    def hold(
        self,
        request: str,
        count: QuotaCount,
        limit: int,
        choose: Choice,
        used: int | None = None,
    ) -> Taken:
        """Hold what a request is about to send or to get, until `release`.

        None given: too little is left.

        `used` is what the store of all gateways has; else what is counted here. `left`
        leaves out what is held. Held units count until the window ends.
        """
        with self._database.transaction() as database:
            offer = self._offer(database, count, limit, used, request)
            given = choose(max(0, offer.free), offer.rows)
            if given <= 0:
                return offer.taken(0)
            self._keep(database, request, count, given, offer.ends)
            return offer.taken(given)

    def release(self, requests: Iterable[str]) -> None:
        """Hold nothing any more for these requests."""
        if self._database.exists:
            with self._database.transaction() as database:
                database.executemany(
                    "DELETE FROM held WHERE request = ?",
                    ((request,) for request in requests),
                )

    def holding(self) -> set[str]:
        """List the requests for which something is held."""
        if not self._database.exists:
            return set()
        with self._database.opened() as database:
            return {
                request
                for (request,) in database.execute("SELECT DISTINCT request FROM held")
            }

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already."""
        self.add_all({count: amount})

    def add_all(self, amounts: dict[QuotaCount, int]) -> None:
        """Add to several counts, all or none."""
        with self._database.transaction() as database:
            self._add(database, amounts)

    def uses(self) -> list[QuotaUse]:
        """List what is used in the windows of now."""
        if not self._database.exists:
            return []
        with self._database.opened() as database:
            now = self._clock()
            rows = database.execute(_USES, (now,))
            return [
                QuotaUse(QuotaCount.parse(quota, unit, every, holder), used, ends - now)
                for quota, unit, every, holder, used, ends in rows
            ]

    def forget(self, quota: str, holder: str | None = None) -> int:
        """Forget the counts of a quota, or of one holder of it."""
        if not self._database.exists:
            return 0
        asked = {"quota": quota, "holder": holder}
        with self._database.transaction() as database:
            database.execute(f"DELETE FROM held {_OF_HOLDER}", asked)  # noqa: S608 - ours
            return database.execute(f"DELETE FROM counts {_OF_HOLDER}", asked).rowcount  # noqa: S608 - ours

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _offer(
        self,
        database: sqlite3.Connection,
        count: QuotaCount,
        limit: int,
        used: int | None,
        request: str = "",
    ) -> Offer:
        """Offer what other requests than this one do not hold."""
        now = self._clock()
        began, here = _current(database, count, now)
        held, rows = database.execute(_HELD, (now, *key_of(count), request)).fetchone()
        return Offer(
            here if used is None else used,
            held,
            rows,
            limit,
            now,
            count.window.end(began),
        )

    def _keep(
        self,
        database: sqlite3.Connection,
        request: str,
        count: QuotaCount,
        size: int,
        ends: int,
    ) -> None:
        database.execute(_HOLD, (request, *key_of(count), size, ends))

    def _add(
        self, database: sqlite3.Connection, amounts: dict[QuotaCount, int]
    ) -> None:
        now = self._clock()
        for count, amount in amounts.items():
            began, used = _current(database, count, now)
            _write(database, count, began, used + amount)
        self._tidy(database, now)

    def _tidy(self, database: sqlite3.Connection, now: float) -> None:
        if abs(now - self._tidied) >= _TIDY_EVERY_SECONDS:
            self._tidied = now
            for table in ("counts", "held"):
                database.execute(
                    f"DELETE FROM {table} WHERE ends < ?",  # noqa: S608 - ours
                    (now - _KEPT_SECONDS,),
                )


def _current(
    database: sqlite3.Connection, count: QuotaCount, now: float
) -> tuple[int, int]:
    began = count.window.begin(now)
    row = database.execute(_FIND, key_of(count)).fetchone()
    if row is None or not began <= row[0] <= count.window.end(began):
        return began, 0
    return row[0], row[1]


def _write(
    database: sqlite3.Connection, count: QuotaCount, began: int, used: int
) -> None:
    ends = count.window.end(began)
    database.execute(_WRITE, (*key_of(count), began, ends, min(used, LARGEST)))


def key_of(count: QuotaCount) -> tuple[str, str, str, str]:
    """Return a count as the file names it."""
    return count.quota, count.unit, count.window, count.holder
