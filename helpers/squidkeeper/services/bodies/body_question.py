"""What Squid asks about one request: the request, and what `http_access` has decided
about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from squidkeeper.base.errors import InvalidIcap, PatternError
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.engine import session_of_list
from squidkeeper.services.bodies.icap import IcapRequest, parse_http

_ASKED: Final = "x-sk-asked"
_USER: Final = "x-sk-user"  # where a rule of the policy has `meter`
_WORKER: Final = "x-sk-worker"  # there too
_TOKENS: Final = 5


@dataclass(slots=True)
class AskedBody:
    """A request, as far as it has come, and the revision and the rules that may still
    decide it.

    `observed` is what a rule ahead of these has observed. `request_id` and `user` are
    those of the access log. `most_bytes` is as much of the body as one of the rules may
    need. It is known once the request was judged. `session` is the number of the
    session that asks.
    """

    sent: SentRequest
    url: str
    revision: str
    listed: str
    client: str
    request_id: str
    observed: str | None
    user: str | None = None
    worker: str = "-"
    session: int | None = None
    most_bytes: int = 0


def asked_by(request: IcapRequest) -> AskedBody:
    """Read a request of ICAP; `InvalidIcap` where it lacks what bodies.conf adds to
    each.
    """
    revision, noted, observed, client, number = _noted(request.headers)
    try:
        listed, session = session_of_list(noted)
    except PatternError as error:
        raise InvalidIcap("a request has no list of rules") from error
    http = parse_http(request.http)
    body = SentRequest(
        http.method,
        http.target,
        http.headers,
        complete=not request.has_body,
        has_body=request.has_body,
    )
    user, worker = (
        unquote(request.headers.get(_USER, "-")),
        request.headers.get(_WORKER, "-"),
    )
    return AskedBody(
        body,
        http.url,
        revision,
        listed,
        client,
        number,
        _told(observed),
        _told(user),
        worker,
        session,
    )


def _told(text: str) -> str | None:
    return None if text == "-" else text


def _noted(headers: Mapping[str, str]) -> tuple[str, ...]:
    noted = tuple(map(unquote, headers.get(_ASKED, "").split(" ")))
    if len(noted) != _TOKENS:
        raise InvalidIcap("a request lacks what bodies.conf adds to each")
    return noted
