"""What a policy says about a question now: it may have been opened, closed or used up
since it was asked.

Also what a row of the tickets must be: whoever can write the state folder can write
rows of any kind.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

import msgspec

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.engine import CompiledPolicy, Decision, decide_until_spent
from squidkeeper.policy.engine.decision import deny
from squidkeeper.policy.language.methods import parse_method
from squidkeeper.policy.language.model import SESSION_REQUIRED, Rule
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol.request import Request, request_to
from squidkeeper.policy.url import parse_address, parse_url
from squidkeeper.serving.tickets.store import Ticket, TicketStore
from squidkeeper.serving.tickets.ticket import NUMBER, AskedRequest, ticket_number


def sound_ticket(row: Mapping[str, object], key: bytes) -> Ticket | None:
    """Return the ticket of a row; None where no helper writes such a row, or its number
    is another question's.
    """
    ticket = well_formed_ticket(row)
    is_own = ticket is not None and ticket.number == ticket_number(key, ticket.asked)
    return ticket if is_own else None


def well_formed_ticket(row: Mapping[str, object]) -> Ticket | None:
    """Return the ticket of a row, without the key of the numbers; None where no helper
    writes such a row.
    """
    try:
        ticket = msgspec.convert(row, Ticket)
        parse_address(ticket.client)
        parse_method(ticket.method)
        parse_url(ticket.url)
        for at in (ticket.first, ticket.last, ticket.decided, ticket.until):
            datetime.fromtimestamp(at, UTC)
    except (
        msgspec.ValidationError,
        InvalidUrl,
        PatternError,
        ValueError,
        OverflowError,
        OSError,
    ):
        return None
    return ticket if NUMBER.fullmatch(ticket.number) else None


FindSession = Callable[[int], Session | None]  # an active one, by its number
_ENDED: Final = deny(SESSION_REQUIRED, "The session that has asked has ended.")


def decide_again(
    policy: CompiledPolicy,
    is_spent: Callable[[Rule], bool],
    asked: AskedRequest,
    at: datetime,
    find: FindSession = lambda _: None,
) -> Decision:
    """Decide a request as if it was sent now, and use no grant.

    A grant without uses left opens nothing. What a session has asked is decided for
    that session alone, and denied once `find` finds none.
    """
    request = request_to(asked.method, asked.url, asked.client, asked.user or None)
    if asked.session:
        session = find(asked.session)
        if session is None:
            return _ENDED
        if isinstance(request, Request):
            request = request._replace(session=session)
    match = policy.match(request)
    decisions = decide_until_spent(policy, match, at)
    return next(
        decision
        for decision in decisions
        if decision.counted is None or not is_spent(decision.counted)
    )


def waits(decision: Decision) -> bool:
    """Whether a person can still answer a question about which this is decided: also
    one that no rule decides.
    """
    return not decision.allowed and (decision.asks or decision.location is None)


def opening_ends(policy: CompiledPolicy, decision: Decision) -> datetime | None:
    """Tell when the rule or grant that decided lapses; None if it does not."""
    rules = policy.source.rules_and_grants
    return next(
        (rule.expires for rule in rules if rule.location == decision.location), None
    )


def settle(
    store: TicketStore,
    policy: CompiledPolicy,
    is_spent: Callable[[Rule], bool],
    tickets: Iterable[Ticket],
    at: datetime,
    find: FindSession = lambda _: None,
) -> None:
    """Settle those of these questions that the policy opens or denies, and of
    sessions that have ended; OSError where that cannot be written.
    """
    key = store.key
    sound = (
        ticket for waiting in tickets if (ticket := sound_ticket(asdict(waiting), key))
    )
    numbers = [
        ticket.number
        for ticket in sound
        if not waits(decide_again(policy, is_spent, ticket.asked, at, find))
    ]
    if numbers:
        store.settle(numbers, at.timestamp())
