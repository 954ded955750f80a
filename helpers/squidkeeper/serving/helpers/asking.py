"""Tickets of denied requests, and the pages on which clients see what has become of
them.

A request that a person can still approve is denied at once, and a ticket changes
nothing about that. Where none can be kept, the denial has none, and its reason says
why.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.formatting import utc_time
from squidkeeper.policy.engine import CompiledPolicy, Decision
from squidkeeper.policy.engine.quotas import ticket_quotas
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.model import SESSION_APPROVAL
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.language.roles import Session, TicketAnswer
from squidkeeper.policy.protocol.lines import Reply, parse_tokens
from squidkeeper.policy.protocol.request import REQUEST_TOKENS, Malformed, parse_request
from squidkeeper.policy.url import address_host, parse_address
from squidkeeper.serving.quotas.counts import held_counts
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.replies import (
    denied_ticket,
    no_ticket,
    no_ticket_page,
    recorded_user,
    ticket_page,
    with_ticket,
)
from squidkeeper.serving.tickets.judgement import (
    FindSession,
    decide_again,
    opening_ends,
    settle,
)
from squidkeeper.serving.tickets.store import (
    GRACE_SECONDS,
    NoTicket,
    Ticket,
    TicketState,
    TicketStore,
)
from squidkeeper.serving.tickets.ticket import PLACES, AskedRequest, Holder, holder_of

_LAPSED: Final = (
    "lapsed"  # or used up, or revoked; or the policy did decide it for a time
)
_MACHINES_AT_MOST: Final = 2 * PLACES
_LONGEST_REASON: Final = 200  # bytes as JSON: a reply has room for 996
_log = logging.getLogger(__name__)


class Asking:
    """The tickets that one helper process gives and shows."""

    def __init__(self, state: Path, meter: Meter) -> None:
        self._meter = meter
        self._store = TicketStore(state)
        self._uses = GrantUses(state)
        self._failure = ""
        self._settled: dict[
            str, str
        ] = {}  # by which revision the questions of a machine were settled

    def deny(
        self,
        denial: Reply,
        tokens: bytes,
        url: str,
        rule: str,
        policy: CompiledPolicy,
        session: Session | None = None,
    ) -> Reply:
        """Add a ticket to a denial, by the first nine tokens of the request as they
        came; or why it has none. `session` is the one that asks.
        """
        asked = _asked(tokens, url, session)
        if asked is None:
            return denial
        refused: list[Quota] = []
        number = self._ask(
            asked,
            rule,
            policy,
            lambda: self._admits(asked, rule, policy, session, refused),
            session,
        )
        if isinstance(number, NoTicket):
            return no_ticket(denial, number, [quota.name for quota in refused])
        if session is not None:
            return _answered_denial(denial, number, session)
        ticket = self._find(number)
        if ticket is not None and ticket.state is TicketState.DENIED:
            return denied_ticket(denial, number, _cut(ticket.reason))
        return with_ticket(denial, number)

    def show(
        self,
        page: Reply,
        tokens: bytes,
        url: str,
        policy: CompiledPolicy,
        session: Session | None = None,
    ) -> Reply:
        """Answer for the page of a ticket, by what the policy says now; only the client
        or session that has asked sees one.
        """
        asked = _asked(tokens, url, session)
        ticket = self._find(url.rpartition("/")[2].lower()) if asked else None
        if asked is None or ticket is None or _asker(ticket) != _asker(asked):
            return no_ticket_page(page)
        at = datetime.now(UTC)
        decision = decide_again(
            policy, self._uses.is_spent, ticket.asked, at, lambda _: session
        )
        answer = session and session.answers.get(ticket.number)
        if decision.rule == SESSION_APPROVAL:
            until = _utc(answer.ends) if answer and answer.approved else None
        else:
            until = opening_ends(policy, decision) if decision.allowed else None
        if answer:
            ticket = _with_answer(ticket, answer)
        return ticket_page(page, ticket_state(ticket, decision, until, at.timestamp()))

    def _admits(
        self,
        asked: AskedRequest,
        rule: str,
        policy: CompiledPolicy,
        session: Session | None,
        refused: list[Quota],
    ) -> bool:
        if not policy.source.quotas:
            return True
        clients = policy.clients_of(
            address_host(parse_address(asked.client)), asked.user or None
        )
        if session is not None:
            clients = (*clients, session.role)
        user = recorded_user(asked.user) if asked.user else None
        quotas = ticket_quotas(policy.source, clients, rule)
        refusal = self._meter.take(
            held_counts(quotas, asked.client, user, rule, session)
        )
        refused += [refusal.quota] if refusal else []
        return refusal is None

    def _ask(
        self,
        asked: AskedRequest,
        rule: str,
        policy: CompiledPolicy,
        admits: Callable[[], bool],
        session: Session | None,
    ) -> str | NoTicket:
        who, find = holder_of(policy, asked), _finder(policy)
        ask = partial(
            self._store.ask,
            asked,
            who,
            rule,
            is_active=lambda one: find(one) is not None,
        )
        try:
            if session is not None and session.answers:
                number = self._store.number_of(asked)
                answer = session.answers.get(number)
                if answer is not None and not answer.approved:
                    return number
                if answer is not None:
                    self._ask_anew(number, answer.ends)
            given = ask(at=time.time(), admits=admits)
            if given is NoTicket.TOO_MANY and self._settle(who, policy, session):
                given = ask(at=time.time(), admits=admits)
        except OSError as error:
            self._report(str(error))
            return NoTicket.UNAVAILABLE
        self._report("")
        return given

    def _ask_anew(self, number: str, lapsed: float) -> None:
        """Have people told about a question whose approval has lapsed."""
        ticket = self._store.find(number)
        if ticket is not None and ticket.last < lapsed:
            self._store.settle([number], time.time())

    def _settle(
        self, holder: Holder, policy: CompiledPolicy, session: Session | None
    ) -> bool:
        """Settle the questions of a machine that the policy decides; once for each
        revision and state of the session: clients can ask a lot.
        """
        decided_by = f"{policy.revision} {session.stamp if session else ''}"
        if self._settled.get(holder.machine) == decided_by:
            return False
        if len(self._settled) >= _MACHINES_AT_MOST:
            self._settled.clear()
        self._settled[holder.machine] = decided_by
        settle(
            self._store,
            policy,
            self._uses.is_spent,
            self._store.pending_of(holder),
            datetime.now(UTC),
            _finder(policy),
        )
        return True

    def _find(self, number: str) -> Ticket | None:
        try:
            return self._store.find(number)
        except OSError as error:
            self._report(str(error))
            return None

    def _report(self, failure: str) -> None:
        """Log a failure when it begins or changes, not for each request."""
        if failure and failure != self._failure:
            _log.error(
                "no ticket can be kept, and requests are denied without one: %s",
                failure,
            )
        self._failure = failure


def ticket_state(
    ticket: Ticket, decision: Decision, until: datetime | None, now: float
) -> str:
    """Write what has become of a question, as JSON for its client: by the decision
    about it now, if that is final.
    """
    if decision.allowed:
        state, reason = str(TicketState.APPROVED), ""
    elif not decision.asks:
        state, reason = (
            str(TicketState.DENIED),
            decision.reason or f"The rule {decision.rule} denies it.",
        )
    else:
        state, reason = _answered(ticket, now), ticket.reason
    shown = {
        "ticket": ticket.number,
        "state": state,
        "until": until and utc_time(until),
        "reason": _cut(reason) or None,
    }
    return json.dumps(shown)


def _answered(ticket: Ticket, now: float) -> str:
    if ticket.state is TicketState.SETTLED:
        return _LAPSED
    if ticket.state is not TicketState.APPROVED:
        return ticket.state
    # this policy has no grant yet
    return _LAPSED if now - ticket.decided > GRACE_SECONDS else TicketState.PENDING


def _cut(reason: str) -> str:
    while len(json.dumps(reason)) > _LONGEST_REASON:
        reason = f"{reason[:-2]}…"
    return reason


def _asked(tokens: bytes, url: str, session: Session | None) -> AskedRequest | None:
    request = parse_request(parse_tokens(tokens, (REQUEST_TOKENS,)))
    if isinstance(request, Malformed) or request.client is None:
        return None
    return AskedRequest(
        client=request.client.text,
        user=request.user or "",
        method=request.method,
        url=url,
        session=session.number if session else 0,
    )


def _asker(asked: AskedRequest | Ticket) -> int | tuple[str, str]:
    """Tell who asks: the session, wherever it is, or else the address and the login."""
    return asked.session or (asked.client, asked.user)


def _finder(policy: CompiledPolicy) -> FindSession:
    if policy.sessions is None:
        return lambda _: None
    return policy.sessions.active.numbered


def _answered_denial(denial: Reply, number: str, session: Session) -> Reply:
    answer = session.answers.get(number)
    if answer is None or answer.approved:
        return with_ticket(denial, number)
    return denied_ticket(denial, number, _cut(answer.reason))


def _with_answer(ticket: Ticket, answer: TicketAnswer) -> Ticket:
    """Return a ticket of a session with what people have answered.

    One that was asked again since the approval lapsed waits.
    """
    if not answer.approved:
        return replace(ticket, state=TicketState.DENIED, reason=answer.reason)
    waits = ticket.state is TicketState.PENDING and ticket.last > answer.ends
    return ticket if waits else replace(ticket, state=TicketState.SETTLED)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
