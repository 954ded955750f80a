"""What metered requests may use is reserved when they begin, and settled when their
answers have ended.

A reserve is held on this gateway until it is settled, or its window ends. What a store
of all gateways counts is what was used. So a request of another gateway does not see a
reserve.

Each change comes with a line of the ledger. The file of counts keeps the last line of
each process, in the same transaction as the change. A process that starts finds there
the line that a killed one has not written.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.policy.language.quotas import Quota, QuotaUnit
from squidkeeper.serving.quotas.counts import QuotaCount, Taken
from squidkeeper.serving.quotas.local_counts import OF_COUNT, LocalCounts, key_of
from squidkeeper.serving.quotas.meter import Refusal
from squidkeeper.serving.quotas.opening import GatewayCounts

if TYPE_CHECKING:
    import sqlite3

Used = Mapping[QuotaUnit, int]
Amounts = Mapping[QuotaCount, int]
NOTHING: Final[Amounts] = {}
ROWS_AT_MOST: Final = 2048  # of requests that hold something of one count
_MERGED: Final = ""  # as a request
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS lines (process TEXT NOT NULL PRIMARY KEY, line BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS answers (id TEXT NOT NULL PRIMARY KEY, counted BLOB NOT NULL, until INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_time ON answers (until);
"""
_ANSWERS_SECONDS: Final = 30 * 86_400  # as long as APIs keep answers
# an origin chooses IDs
_FORGET_ANSWERS: Final = "DELETE FROM answers WHERE until < ? OR rowid <= (SELECT max(rowid) - 100000 FROM answers)"
_OF_REQUEST: Final = "SELECT quota, unit, every, holder FROM held WHERE request = ?"


class CountedAnswer(NamedTuple):
    """The ID of an answer that can be read again, and what was counted for it, as the
    caller writes it.
    """

    answer_id: str
    counted: bytes


@dataclass(frozen=True, slots=True)
class Hold:
    """So much of a count.

    `used` is what the store of all gateways has; None: what is counted here.
    """

    count: QuotaCount
    limit: int
    size: int
    used: int | None = None


class ReservedCounts(LocalCounts):
    """The counts of one gateway, with the reserves of requests under way."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(state, clock, _SCHEMA)
        self._process = secrets.token_hex(8)

    def hold_all(
        self, request: str, holds: Sequence[Hold], line: bytes
    ) -> tuple[Hold, Taken] | bool:
        """Hold something of each count, or nothing: then return the first that has too
        little left.

        Else return whether it is held for the first time: Squid asks again where a
        process was killed. An empty line is not written. A request that uses nothing,
        such as one for an answer of before, passes.
        """
        with self._database.transaction() as database:
            if database.execute(_OF_REQUEST, (request,)).fetchone():
                return False
            found = [
                (hold, self._offer(database, hold.count, hold.limit, hold.used))
                for hold in holds
            ]
            for hold, offer in found:
                if hold.size > max(offer.free, 0):
                    return hold, offer.taken(0)
            for hold, offer in found:
                self._keep(database, request, hold.count, hold.size, offer.ends)
                if offer.rows >= ROWS_AT_MOST:
                    self._merge(database, hold.count, offer.ends)
            self._note(database, line)
            return True

    def _merge(
        self, database: sqlite3.Connection, count: QuotaCount, ends: int
    ) -> None:
        """Hold with one row what the older half of the requests holds: most were left
        before their answers came.
        """
        key = key_of(count)
        middle = database.execute(
            f"SELECT request {OF_COUNT} ORDER BY request LIMIT 1 OFFSET ?",
            (*key, ROWS_AT_MOST // 2),
        )
        older = f"{OF_COUNT} AND request <= ?"  # a request's ID begins with its time
        place = (*key, *middle.fetchone())
        [amount] = database.execute(
            f"SELECT coalesce(sum(amount * (ends = ?)), 0) {older}", (ends, *place)
        ).fetchone()
        database.execute(f"DELETE {older}", place)
        self._keep(database, _MERGED, count, amount, ends)

    def held_for(self, request: str) -> list[QuotaCount]:
        """List the counts of which a request holds something."""
        with self._database.opened() as database:
            return _counts(database, request)

    def counted(self, answer_id: str) -> bytes | None:
        """Return what was counted for an answer."""
        with self._database.opened() as database:
            row = database.execute(
                "SELECT counted FROM answers WHERE id = ?", (answer_id,)
            ).fetchone()
            return bytes(row[0]) if row else None

    def settle(
        self,
        request: str,
        used: Used,
        line: bytes,
        answer: CountedAnswer | None,
        beyond: Amounts,
    ) -> None:
        """Count what a request has used, in place of what it holds, or `beyond` a
        reserve that was merged.
        """
        with self._database.transaction() as database:
            if answer is not None:
                now = int(self._clock())
                database.execute(_FORGET_ANSWERS, (now,))
                database.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                    (*answer, now + _ANSWERS_SECONDS),
                )
            held = {count: used[count.unit] for count in _counts(database, request)}
            self._add(database, {**beyond, **held})
            database.execute("DELETE FROM held WHERE request = ?", (request,))
            self._note(database, line)

    def take_last_lines(
        self, is_written: Callable[[bytes], bool], write: Callable[[bytes], None]
    ) -> None:
        """Write the last lines of other processes where they have not done so, and
        forget them.
        """
        if not self._database.exists:
            return
        with self._database.opened() as database:
            found = database.execute(
                "SELECT process, line FROM lines WHERE process <> ?", (self._process,)
            ).fetchall()
            for process, line in found:
                if not is_written(line):
                    write(line)
                database.execute(
                    "DELETE FROM lines WHERE process = ? AND line = ?", (process, line)
                )

    def _note(self, database: sqlite3.Connection, line: bytes) -> None:
        if line:
            database.execute(
                "INSERT OR REPLACE INTO lines VALUES (?, ?)", (self._process, line)
            )


class Reserves:
    """Reserves of one gateway, for one thread.

    Its methods raise `CountsUnavailable` where nothing can be counted.
    """

    def __init__(self, directory: Path, state: Path) -> None:
        self._local = ReservedCounts(state)
        self._counts = GatewayCounts(directory, state, local=self._local)
        # to the store of all gateways, of what is not settled yet
        self._sent: set[tuple[str, QuotaCount]] = set()

    def hold(
        self,
        request: str,
        wanted: Iterable[tuple[Quota, str]],
        reserve: Used,
        line: bytes,
    ) -> Refusal | bool:
        """Hold the reserve of a request of each quota for a holder, or nothing: then
        return which quota refuses it.

        Else return whether it is held for the first time.
        """
        quotas = {QuotaCount.of(quota, holder): quota for quota, holder in wanted}
        found = self._local.hold_all(
            request,
            [self._seen(count, quotas[count], reserve) for count in quotas],
            line,
        )
        if isinstance(found, bool):
            return found
        hold, taken = found
        return Refusal(
            quotas[hold.count],
            taken.ends_in,
            left=taken.left,
            held=taken.left >= max(hold.size, 1),
        )

    def counted(self, answer_id: str) -> bytes | None:
        """Return what was counted for an answer that can be read again."""
        return self._local.counted(answer_id)

    def settle(
        self,
        request: str,
        used: Used,
        line: bytes,
        answer: CountedAnswer | None = None,
        beyond: Amounts = NOTHING,
    ) -> None:
        """Count what a request has used.

        Where the store of all gateways is away, it has to be settled again later.

        `beyond` is how much that exceeds the reserve of each count.
        """
        if not self._counts.are_local:
            held = {count: used[count.unit] for count in self._local.held_for(request)}
            for count, amount in {**beyond, **held}.items():
                self._send(request, count, amount)
        self._local.settle(request, used, line, answer, beyond)
        self._sent = {(other, count) for other, count in self._sent if other != request}

    def take_last_lines(
        self, is_written: Callable[[bytes], bool], write: Callable[[bytes], None]
    ) -> None:
        """Write the last lines of killed processes to the ledger."""
        self._local.take_last_lines(is_written, write)

    def close(self) -> None:
        """Close the file of counts, and the connection to the store of all gateways."""
        self._counts.close()

    def _seen(self, count: QuotaCount, quota: Quota, reserve: Used) -> Hold:
        if self._counts.are_local:
            return Hold(count, quota.limit, reserve[count.unit])
        taken = self._counts.take(count, quota.limit, 0)
        return Hold(count, taken.used + taken.left, reserve[count.unit], taken.used)

    def _send(self, request: str, count: QuotaCount, amount: int) -> None:
        if (request, count) not in self._sent:
            self._counts.add(count, amount)
            self._sent.add((request, count))


def _counts(database: sqlite3.Connection, request: str) -> list[QuotaCount]:
    rows = database.execute(_OF_REQUEST, (request,)).fetchall()
    return [QuotaCount.parse(*row) for row in rows]
