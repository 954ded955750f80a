"""Requests for the gateway itself: the pages of tickets, under a name that no rule
decides about.

Nothing is sent anywhere for such a request: Squid answers with what the helper says.
What is not on the list here is denied, by the URL as it was sent.
"""

import re
from dataclasses import replace
from http import HTTPMethod
from typing import Final

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.engine.decision import Decision, Outlook, deny
from squidkeeper.policy.language.model import Action
from squidkeeper.policy.protocol.request import CONNECT, Request, TunnelMode
from squidkeeper.policy.url import DEFAULT_PORTS, OWN_HOST, parse_url

TICKET_PAGE: Final = "ticket-page"
_PATH: Final = re.compile(r"/tickets/[A-Za-z2-7]{12}")
_ANSWERS: Final = f"{OWN_HOST} is this gateway. It answers GET http://{OWN_HOST}/tickets/NUMBER alone."
_NOWHERE: Final = Outlook(
    mode=TunnelMode.FIRST, mode_reason="the gateway answers itself"
)
_TUNNEL: Final = Decision(
    Action.ALLOW, TICKET_PAGE, outlook=replace(_NOWHERE, may_ask=True)
)
_ANY_URL: Final = Decision(
    Action.ALLOW,
    TICKET_PAGE,
    "The URL decides.",
    outlook=replace(_NOWHERE, needs_url=True),
)
_PAGE: Final = Decision(
    Action.ALLOW, TICKET_PAGE, "The gateway answers this itself.", outlook=_NOWHERE
)
_NO_PAGE: Final = deny(TICKET_PAGE, _ANSWERS)


def decide_own_host(request: Request) -> Decision | None:
    """Decide a request for the gateway itself, whatever its URL; None for any other
    host.
    """
    if request.host.text != OWN_HOST:
        return None
    if request.port != DEFAULT_PORTS[request.scheme]:
        return _NO_PAGE
    if request.method == CONNECT:
        return _TUNNEL
    return _ANY_URL if request.method in (HTTPMethod.GET, HTTPMethod.HEAD) else _NO_PAGE


def with_url(decision: Decision, text: str | None) -> Decision:
    """Decide for one URL what was decided without it; what needs no URL stays."""
    if decision is not _ANY_URL or text is None:
        return decision
    try:
        url = parse_url(text)
    except InvalidUrl:
        return _NO_PAGE
    is_page = (
        url.host.text == OWN_HOST and url.query is None and _PATH.fullmatch(url.path)
    )
    return _PAGE if is_page else _NO_PAGE
