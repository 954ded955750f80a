"""Ends the wait of questions that the policy decides by now (floor 4): nobody has to answer them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime

from squidkeeper.engine import CompiledPolicy
from squidkeeper.policy.model import Rule
from squidkeeper.tickets.judgement import decide_again, waits
from squidkeeper.tickets.soundness import sound_ticket
from squidkeeper.tickets.store import Ticket, TicketStore


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
