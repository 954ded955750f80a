"""Tickets as a command of root's reads them: with the rights of the account that writes
them, and checked.

Whatever stands in the state folder, links and pipes too, leads root nowhere that
Squid's account could not go itself.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from errno import ENOTDIR
from pathlib import Path
from typing import Any, Final

from squidkeeper.base.errors import EditRefused
from squidkeeper.base.squid_account import call_as_owner
from squidkeeper.serving.tickets.judgement import sound_ticket
from squidkeeper.serving.tickets.store import FOLDER, Ticket, TicketState, TicketStore
from squidkeeper.serving.tickets.ticket import NUMBER, AskedRequest

_WAIT_SECONDS: Final = 5.0  # while clients ask, helpers write all the time


@dataclass(frozen=True, slots=True)
class Waiting:
    """The questions that wait, the one that waits longest first, and the numbers of
    rows that no helper writes.
    """

    tickets: tuple[Ticket, ...]
    unreadable: tuple[str, ...]


def waiting_tickets(state: Path) -> Waiting:
    """List the questions that wait; `EditRefused` where they cannot be read.

    A faulty row hides no other.
    """
    return _read(state, lambda store: store.pending(time.time()))


def find_ticket(state: Path, number: str) -> Ticket:
    """Find a ticket; `EditRefused` where there is none."""
    number = number.lower()
    if not NUMBER.fullmatch(number):
        raise EditRefused(
            f"{number!r} is not the number of a ticket, expected 12 letters and digits, as `ask` shows"
        )
    found = _read(state, lambda store: [store.find(number)])
    if found.unreadable:
        raise EditRefused(
            f"the ticket {number} holds what no helper writes: it cannot be answered"
        )
    if not found.tickets:
        raise EditRefused(
            f"there is no ticket {number}: `squidkeeper ask` lists those that wait"
        )
    return found.tickets[0]


def ticket_of(state: Path, asked: AskedRequest) -> Ticket | None:
    """Find the ticket of a request; `EditRefused` where tickets cannot be read."""
    return next(iter(_read(state, lambda store: [store.of(asked)]).tickets), None)


def note_decision(
    state: Path, number: str, decided: TicketState, until: float, reason: str
) -> None:
    """Note in the tickets what was decided, for the page that the client reads."""

    def note(store: TicketStore) -> list[Any]:
        store.decide(number, decided, time.time(), until, reason)
        return []

    _as_owner(state, note)


def _read(
    state: Path, select: Callable[[TicketStore], list[Ticket] | list[Ticket | None]]
) -> Waiting:
    def rows(store: TicketStore) -> list[Any]:
        found = [_plain(asdict(ticket)) for ticket in select(store) if ticket]
        return [store.key.hex() if found else "", *found]

    key, *found = _as_owner(state, rows)
    tickets = [(row, sound_ticket(row, bytes.fromhex(key))) for row in found]
    return Waiting(
        tuple(ticket for _, ticket in tickets if ticket),
        tuple(str(row["number"]) for row, ticket in tickets if not ticket),
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str | int | float) else None
        for name, value in row.items()
    }


def _as_owner(state: Path, call: Callable[[TicketStore], list[Any]]) -> list[Any]:
    """Call with the store, in a child process with the rights of the account that owns
    the state folder.
    """

    def called() -> list[Any]:
        store = TicketStore(state, _WAIT_SECONDS)
        try:
            return call(store)
        finally:
            store.close()

    try:
        if (state / FOLDER).exists() and not (state / FOLDER).is_dir():
            raise NotADirectoryError(
                ENOTDIR, "not a folder: remove it", str(state / FOLDER)
            )
        answer: list[Any] = call_as_owner(state, called)
    except OSError as error:
        raise EditRefused(f"the tickets in {state} cannot be read: {error}") from error
    return answer
