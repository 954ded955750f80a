"""What a row of the tickets must be: whoever can write the state folder can write rows of any kind."""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.methods import parse_method
from squidkeeper.policy.url import parse_address, parse_url
from squidkeeper.serving.tickets.store import Ticket
from squidkeeper.serving.tickets.ticket import NUMBER, ticket_number


def sound_ticket(row: Mapping[str, object], key: bytes) -> Ticket | None:
    """Give the ticket of a row; None where no helper writes such a row, or its number is another question's."""
    try:
        ticket = msgspec.convert(row, Ticket)
        parse_address(ticket.client)
        parse_method(ticket.method)
        parse_url(ticket.url)
        for at in (ticket.first, ticket.last, ticket.decided, ticket.until):
            datetime.fromtimestamp(at, UTC)
    except (msgspec.ValidationError, InvalidUrl, PatternError, ValueError, OverflowError, OSError):
        return None
    is_own = NUMBER.fullmatch(ticket.number) and ticket.number == ticket_number(key, ticket.asked)
    return ticket if is_own else None
