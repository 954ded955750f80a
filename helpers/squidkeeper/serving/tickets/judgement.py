"""What a policy says about a question now: it may have been opened, closed or used up since it was asked."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime

from squidkeeper.policy.engine import CompiledPolicy, Decision, decide_until_spent
from squidkeeper.policy.language.model import Rule
from squidkeeper.policy.protocol.request import request_to
from squidkeeper.serving.tickets.soundness import sound_ticket
from squidkeeper.serving.tickets.store import Ticket, TicketStore
from squidkeeper.serving.tickets.ticket import AskedRequest


def decide_again(
    policy: CompiledPolicy, is_spent: Callable[[Rule], bool], asked: AskedRequest, at: datetime
) -> Decision:
    """Decide a request as if it was sent now, and use no grant. A grant without uses left opens nothing."""
    match = policy.match(request_to(asked.method, asked.url, asked.client, asked.user or None))
    decisions = decide_until_spent(policy, match, at)
    return next(one for one in decisions if one.counted is None or not is_spent(one.counted))


def waits(decision: Decision) -> bool:
    """Tell whether a person can still answer a question about which this is decided: also one that no rule decides."""
    return not decision.allowed and (decision.asks or decision.location is None)


def opening_ends(policy: CompiledPolicy, decision: Decision) -> datetime | None:
    """Tell when the rule or grant that decided lapses; None if it does not."""
    rules = policy.source.rules_and_grants
    return next((rule.expires for rule in rules if rule.location == decision.location), None)


def settle(
    store: TicketStore,
    policy: CompiledPolicy,
    is_spent: Callable[[Rule], bool],
    tickets: Iterable[Ticket],
    at: datetime,
) -> None:
    """Settle those of these questions that the policy opens or denies; OSError where that cannot be written."""
    key = store.key
    sound = (ticket for one in tickets if (ticket := sound_ticket(asdict(one), key)))
    numbers = [one.number for one in sound if not waits(decide_again(policy, is_spent, one.asked, at))]
    if numbers:
        store.settle(numbers, at.timestamp())
