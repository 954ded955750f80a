"""The tickets of sessions: listed, and answered.

Squid's account writes the tickets, and this service only reads them. An answer is a row
of the store of sessions, which this service alone writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from squidkeeper.base.errors import PatternError
from squidkeeper.base.formatting import utc_seconds
from squidkeeper.base.read_only_database import ReadOnlyDatabase
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.approvals import approved_match
from squidkeeper.services.sessions.keeper import SessionKeeper
from squidkeeper.services.sessions.models import (
    Judging,
    PolicyTerms,
    TicketAnswered,
    TicketList,
    TicketShown,
    judged_or_faults,
)
from squidkeeper.services.sessions.orchestrators import Orchestrator
from squidkeeper.services.sessions.problems import (
    CallRefused,
    FieldProblem,
    ProblemCode,
    pointer,
)
from squidkeeper.serving.sessions.answers import StoredAnswer
from squidkeeper.serving.sessions.clock import TimeNow
from squidkeeper.serving.sessions.index import session_of
from squidkeeper.serving.sessions.store import SessionRow
from squidkeeper.serving.tickets.judgement import decide_again, well_formed_ticket
from squidkeeper.serving.tickets.store import (
    FILE,
    FOLDER,
    Ticket,
    select_tickets,
)
from squidkeeper.serving.tickets.ticket import Holder

_NO_TICKET = "no session of this orchestrator has this ticket"
_DENIED = "It was denied."


@dataclass(frozen=True, slots=True)
class SessionTickets:
    """The tickets of sessions. `policy` raises `CallRefused` without one."""

    keeper: SessionKeeper
    state: Path
    policy: Callable[[], CompiledPolicy]

    def waiting(self, caller: Orchestrator, name: str) -> TicketList:
        """List the tickets of a session of the caller that wait."""
        row = self.keeper.row_of(caller, name)
        if row.ended is not None:
            return TicketList(tickets=[])
        machine = Holder.of_session(row.number).machine
        found = self._read("holder = ? ORDER BY first, number", machine)
        waits = (ticket for ticket in found if self._waits(row, ticket))
        return TicketList(tickets=[_shown(row, ticket, None) for ticket in waits])

    def answer(
        self, caller: Orchestrator, number: str, data: Mapping[str, Any]
    ) -> TicketShown:
        """Answer a ticket of a session of the caller."""
        asked = self._judged(caller, data)
        ticket = next(iter(self._read("number = ?", number)), None)
        if ticket is None:
            raise CallRefused(ProblemCode.NO_TICKET, _NO_TICKET)
        row = self.keeper.numbered(caller, ticket.session)
        if row is None:
            raise CallRefused(ProblemCode.NO_TICKET, _NO_TICKET)
        if not caller.may_approve(row.role):
            raise CallRefused(
                ProblemCode.MAY_NOT_APPROVE,
                f"{caller.name} does not have {row.role} in `approves`",
            )
        new = _answer(caller, ticket, asked)
        if not any(one.ticket == number for one in _live(row)):
            self._check_asks(row, ticket)
        return _shown(row, ticket, self.keeper.answer(row.number, new))

    def _judged(self, caller: Orchestrator, data: Mapping[str, Any]) -> TicketAnswered:
        judging = Judging(PolicyTerms(self.policy().revision, {}), caller)
        asked, faults = judged_or_faults(TicketAnswered, data, judging)
        if asked is not None and asked.decision == "approve" and asked.valid is None:
            faults = [
                FieldProblem(pointer("for"), "expected a time, such as 30m or 2h")
            ]
        if asked is None or faults:
            detail = f"{faults[0].pointer}: {faults[0].detail}"
            raise CallRefused(ProblemCode.INVALID_ANSWER, detail, faults)
        return asked

    def _waits(self, row: SessionRow, ticket: Ticket) -> bool:
        """Whether nobody has answered, and the policy asks."""
        if any(one.ticket == ticket.number for one in _live(row)):
            return False
        lapsed = (one.ends for one in row.answers if one.ticket == ticket.number)
        is_asked = ticket.last > max(lapsed, default=0.0)
        return is_asked and self._decided(row, ticket) is None

    def _check_asks(self, row: SessionRow, ticket: Ticket) -> None:
        decided = self._decided(row, ticket)
        if decided is not None:
            raise CallRefused(ProblemCode.NOTHING_TO_ANSWER, decided)

    def _decided(self, row: SessionRow, ticket: Ticket) -> str | None:
        """Say how the policy decides the request; None where it asks."""
        session = session_of(row, TimeNow.now())
        decision = decide_again(
            self.policy(),
            GrantUses(self.state).is_spent,
            ticket.asked,
            datetime.now(UTC),
            lambda _: session,
        )
        if decision.asks and not decision.allowed:
            return None
        verdict = "allows" if decision.allowed else "denies"
        return f"the rule {decision.rule} {verdict} it: nothing was answered"

    def _read(self, condition: str, *values: object) -> list[Ticket]:
        file = self.state / FOLDER / FILE
        if not file.exists():
            return []
        try:
            with closing(ReadOnlyDatabase(file)) as database:
                found = database.read(
                    lambda opened: select_tickets(opened, condition, *values)
                )
        except (sqlite3.Error, OSError, ValueError) as error:
            raise CallRefused(
                ProblemCode.STORE_UNAVAILABLE, f"tickets cannot be read: {error}"
            ) from error
        sound = (well_formed_ticket(asdict(ticket)) for ticket in found)
        return [ticket for ticket in sound if ticket is not None]


def _live(row: SessionRow) -> list[StoredAnswer]:
    at = TimeNow.now()
    return [one for one in row.answers if not one.is_over(at)]


def _answer(
    caller: Orchestrator, ticket: Ticket, asked: TicketAnswered
) -> StoredAnswer:
    by = f"{caller.name}: {asked.by}" if asked.by else caller.name
    now = TimeNow.now()
    if asked.decision == "deny":
        reason = asked.reason or _DENIED
        return StoredAnswer(
            ticket.number, approved=False, by=by, at=now.wall, reason=reason
        )
    try:
        approved_match(ticket.method, ticket.url, asked.scope)
    except PatternError as error:
        fault = FieldProblem(pointer("scope"), str(error))
        raise CallRefused(ProblemCode.INVALID_ANSWER, fault.detail, [fault]) from error
    return StoredAnswer(
        ticket=ticket.number,
        approved=True,
        by=by,
        at=now.wall,
        method=ticket.method,
        url=ticket.url,
        scope=asked.scope,
        seconds=asked.valid or 0,
        boot=now.boot,
        since_boot=now.since_boot,
    )


def _shown(row: SessionRow, ticket: Ticket, answer: StoredAnswer | None) -> TicketShown:
    state: Literal["pending", "approved", "denied"] = "pending"
    if answer is not None:
        state = "approved" if answer.approved else "denied"
    ends = min(answer.ends, row.ends) if answer and answer.approved else None
    return TicketShown(
        ticket=ticket.number,
        session=row.name,
        number=row.number,
        method=ticket.method,
        url=ticket.url,
        rule=ticket.rule,
        times=ticket.times,
        first=utc_seconds(ticket.first),
        last=utc_seconds(ticket.last),
        state=state,
        until=None if ends is None else utc_seconds(ends),
        by=answer.by if answer else None,
    )
