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
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.formatting import utc_time
from squidkeeper.policy.engine import CompiledPolicy, Decision
from squidkeeper.policy.engine.quotas import ticket_quotas
from squidkeeper.policy.grant_uses import GrantUses
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.language.roles import Session
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
from squidkeeper.serving.tickets.judgement import decide_again, opening_ends, settle
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
        asked = _asked(tokens, url)
        if asked is None:
            return denial
        refused: list[Quota] = []
        number = self._ask(
            asked,
            rule,
            policy,
            lambda: self._admits(asked, rule, policy, session, refused),
        )
        if isinstance(number, NoTicket):
            return no_ticket(denial, number, [quota.name for quota in refused])
        ticket = self._find(number)
        if ticket is not None and ticket.state is TicketState.DENIED:
            return denied_ticket(denial, number, _cut(ticket.reason))
        return with_ticket(denial, number)

    def show(
        self, page: Reply, tokens: bytes, url: str, policy: CompiledPolicy
    ) -> Reply:
        """Answer for the page of a ticket, by what the policy says now; only the client
        that has asked sees one.
        """
        asked = _asked(tokens, url)
        ticket = self._find(url.rpartition("/")[2].lower()) if asked else None
        if (
            asked is None
            or ticket is None
            or (ticket.client, ticket.user) != (asked.client, asked.user)
        ):
            return no_ticket_page(page)
        at = datetime.now(UTC)
        decision = decide_again(policy, self._uses.is_spent, ticket.asked, at)
        until = opening_ends(policy, decision) if decision.allowed else None
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
    ) -> str | NoTicket:
        who = holder_of(policy, asked)
        try:
            given = self._store.ask(asked, who, rule, time.time(), admits)
            if given is NoTicket.TOO_MANY and self._settle(who, policy):
                given = self._store.ask(asked, who, rule, time.time(), admits)
        except OSError as error:
            self._report(str(error))
            return NoTicket.UNAVAILABLE
        self._report("")
        return given

    def _settle(self, holder: Holder, policy: CompiledPolicy) -> bool:
        """Settle the questions of a machine that the policy decides; once for each
        revision: clients can ask a lot.
        """
        if self._settled.get(holder.machine) == policy.revision:
            return False
        if len(self._settled) >= _MACHINES_AT_MOST:
            self._settled.clear()
        self._settled[holder.machine] = policy.revision
        settle(
            self._store,
            policy,
            self._uses.is_spent,
            self._store.pending_of(holder),
            datetime.now(UTC),
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


def _asked(tokens: bytes, url: str) -> AskedRequest | None:
    request = parse_request(parse_tokens(tokens, (REQUEST_TOKENS,)))
    if isinstance(request, Malformed) or request.client is None:
        return None
    return AskedRequest(request.client.text, request.user or "", request.method, url)
