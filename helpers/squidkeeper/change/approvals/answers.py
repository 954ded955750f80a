"""What a person answers to a ticket: what cannot be kept is not answered."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote

from squidkeeper.base.errors import EditRefused, PolicyError
from squidkeeper.base.formatting import utc_time
from squidkeeper.change.approvals.decisions import (
    DecisionLog,
    TicketDecision,
    policies_now,
    who_decides,
)
from squidkeeper.change.approvals.granting import Granted, add_grant, remove_grant
from squidkeeper.change.approvals.new_grant import NewGrant
from squidkeeper.change.approvals.scopes import (
    approved_fields,
    clients_that_asked,
)
from squidkeeper.change.approvals.waiting import find_ticket, note_decision
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.approvals import ApprovalScope
from squidkeeper.policy.policy_store.loading import load
from squidkeeper.serving.tickets.judgement import decide_again, opening_ends
from squidkeeper.serving.tickets.store import Ticket, TicketState

_LONGEST_REASON = 1_000  # characters, as of the reasons of a policy


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person approves of a question.

    Without `clients`, for the client of the policy that has asked.
    """

    scope: ApprovalScope
    valid: timedelta
    uses: int | None = None
    clients: tuple[str, ...] = ()
    any_client: bool = False
    reason: str = ""

    def grant(self, policy: CompiledPolicy, ticket: Ticket, now: datetime) -> NewGrant:
        """Make the grant; `EditRefused` where nobody can be told apart whom
        it is for.
        """
        _check_no_session(ticket)
        fields = approved_fields(ticket, self.scope)
        return NewGrant(
            expires=now + self.valid,
            reason=self.reason or f"Ticket {ticket.number}",
            by=who_decides(),
            clients=self._for(policy, ticket),
            hosts=fields.hosts,
            ports=fields.ports,
            paths=fields.paths,
            urls=fields.urls,
            methods=(ticket.method,),
            uses=self.uses,
        )

    def _for(self, policy: CompiledPolicy, ticket: Ticket) -> tuple[str, ...]:
        asked = clients_that_asked(policy, ticket)
        if self.any_client:
            return ()
        others = [name for name in self.clients if name not in asked]
        if others:
            known = ", ".join(asked) or "none of the policy's clients"
            raise EditRefused(
                f"--client {others[0]}: the question is of {known}, whom this would not help"
            )
        if not (self.clients or asked):
            raise EditRefused(
                f"no client of the policy has the address {ticket.client}: add one to the policy, or use --any-client"
            )
        return self.clients or asked[:1]


def approve_ticket(
    directory: Path,
    state: Path,
    policy: CompiledPolicy,
    ticket: Ticket,
    approval: Approval,
    now: datetime,
) -> Granted:
    """Approve a question by a grant; where it is open already, without one."""
    check_reason(approval.reason or "-")
    new, uses = approval.grant(policy, ticket, now), GrantUses(state)
    with _kept(directory) as log:
        _check_not_decided_since(ticket, find_ticket(state, ticket.number))
        granted = add_grant(directory, new, now, uses)
        if granted.file is None:
            return _settled(granted, log, directory, state, ticket, now)
        decision = replace(
            _decision(ticket, TicketState.APPROVED, new.reason),
            scope=approval.scope,
            clients=new.clients,
            grant=granted.grant.name,
            until=utc_time(new.expires),
            uses=approval.uses,
        )
        try:
            log.keep(decision)
        except OSError as error:
            remove_grant(directory, granted.grant.name, now)
            raise EditRefused(
                f"{log.path} cannot be written: {error.strerror}; nothing was approved"
            ) from error
        return _noted(granted, state, ticket, new.expires)


def _check_no_session(ticket: Ticket) -> None:
    if ticket.session:
        raise EditRefused(
            f"ticket {ticket.number} is of the session {ticket.session}: its orchestrator answers it, by"
            f" POST /v1/tickets/{ticket.number} (squid/SESSIONS.md)"
        )


def _check_not_decided_since(seen: Ticket, found: Ticket) -> None:
    if found.decided != seen.decided:
        reason = f" ({found.reason})" if found.reason else ""
        raise EditRefused(
            f"ticket {seen.number} was {found.state} meanwhile{reason}; nothing was approved"
        )


def _settled(
    granted: Granted,
    log: DecisionLog,
    directory: Path,
    state: Path,
    ticket: Ticket,
    now: datetime,
) -> Granted:
    policy = load(directory, now).compiled
    opener = decide_again(policy, GrantUses(state).is_spent, ticket.asked, now)
    if not opener.allowed:
        return granted
    until = opening_ends(policy, opener)
    decision = _decision(
        ticket, TicketState.APPROVED, f"Open already, by {opener.rule}"
    )
    _keep(
        log,
        replace(decision, grant=opener.rule, until=utc_time(until) if until else ""),
    )
    return _noted(granted, state, ticket, until)


def _noted(
    granted: Granted, state: Path, ticket: Ticket, until: datetime | None
) -> Granted:
    try:
        note_decision(
            state,
            ticket.number,
            TicketState.APPROVED,
            until.timestamp() if until else 0.0,
            "",
        )
    except EditRefused as error:
        warning = f"it is approved and kept, but ticket {ticket.number} is not marked: {error}: approve it again"
        return replace(granted, warnings=(*granted.warnings, warning))
    return granted


def _check_not_open(directory: Path, state: Path, ticket: Ticket) -> None:
    """Refuse to deny what is open: that is closed where it was opened."""
    now = datetime.now(UTC)
    try:
        policies = policies_now(directory, state, now)
    except PolicyError:  # and then every request is denied
        return
    for policy in policies:
        found = decide_again(policy, GrantUses(state).is_spent, ticket.asked, now)
        if found.allowed:
            is_grant = any(
                grant.location == found.location for grant in policy.source.grants
            )
            how = (
                f"squidkeeper grant --revoke {quote(found.rule)}"
                if is_grant
                else "change the policy"
            )
            place = f" ({found.location})" if found.location else ""
            why = f"ticket {ticket.number} is open, by {found.rule}{place}: close that first ({how})"
            raise EditRefused(f"{why}; nothing was denied")


def deny_ticket(directory: Path, state: Path, number: str, reason: str) -> Ticket:
    """Deny a question, with a reason for its client; `EditRefused` where it is open."""
    check_reason(reason)
    with _kept(directory) as log:
        ticket = find_ticket(state, number)
        _check_no_session(ticket)
        _check_not_open(directory, state, ticket)
        _keep(log, _decision(ticket, TicketState.DENIED, reason))
        try:
            note_decision(state, ticket.number, TicketState.DENIED, 0.0, reason)
        except EditRefused as error:
            raise EditRefused(
                f"{error}\nThe denial is kept in {log.path}, but its client does not read it yet: deny it again"
            ) from error
    return ticket


def _keep(log: DecisionLog, decision: TicketDecision) -> None:
    try:
        log.keep(decision)
    except OSError as error:
        raise EditRefused(
            f"{log.path} cannot be written: {error.strerror}; nothing was decided"
        ) from error


@contextmanager
def _kept(directory: Path) -> Iterator[DecisionLog]:
    log = DecisionLog(directory)
    try:
        yield log
    finally:
        log.close()


def _decision(ticket: Ticket, decided: TicketState, reason: str) -> TicketDecision:
    return TicketDecision(
        time=utc_time(datetime.now(UTC)),
        who=who_decides(),
        decision=decided,
        reason=reason,
        ticket=ticket.number,
        client=ticket.client,
        user=ticket.user,
        method=ticket.method,
        url=ticket.url,
    )


def check_reason(reason: str) -> None:
    """Refuse a reason that is no line of text."""
    if not reason.strip() or not reason.isprintable() or len(reason) > _LONGEST_REASON:
        raise EditRefused(
            f"--reason: expected 1 to {_LONGEST_REASON:,} printable characters in one line"
        )
