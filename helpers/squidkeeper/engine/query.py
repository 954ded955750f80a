"""What is asked (floor 3): the facts of one request as Squid or a command states them, nothing believed yet."""

from __future__ import annotations

from typing import NamedTuple

from squidkeeper.errors import InvalidUrl
from squidkeeper.url import Host, bracketed, format_authority, origin_of, parse_authority, unrecorded_url

CONNECT = "CONNECT"
DENIED_BY = " denied by "  # between authority and rule in the name that a denied tunnel gets (clt_conn_tag)
REFUSED_METHODS = {
    "TRACE": "returns a request's headers to whoever asks",
    "TRACK": "returns a request's headers to whoever asks",
    "PURGE": "is for the owner of a cache",
}


class Query(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """One request; what Squid gives as `-` is None.

    `tunnel` is the authority (host:port) of the CONNECT that an https request came through, `url` the absolute
    request target: without it, the question is what can be said for every URL of the host.
    """

    method: str
    scheme: str | None
    host: str
    port: str
    client: str | None = None
    user: str | None = None
    sni: str | None = None
    tunnel: str | None = None
    url: str | None = None


def query_of(method: str, target: str, client: str | None = None, user: str | None = None) -> Query:
    """Ask about a method and a request target as a client would.

    An https URL is asked inside the tunnel that its CONNECT opened; the target of a CONNECT is `host:port`. Both may be
    escaped as on record. A target that cannot be parsed becomes the query's `url`, for which the judge denies it.
    """
    target = unrecorded_url(target)
    try:
        if method == CONNECT:
            return Query(method, None, *_host_and_port(target), client, user)
        scheme, host, port = origin_of(target)
    except InvalidUrl:
        return Query(method, "http", "", "80", client, user, url=target)
    tunnel = format_authority(host, port) if scheme == "https" else None
    return Query(method, scheme, _stated(host), str(port), client, user, None, tunnel, target)


def _host_and_port(target: str) -> tuple[str, str]:
    host, port = parse_authority(target)
    if port is None:
        raise InvalidUrl("the target of a CONNECT has no port")
    return _stated(host), str(port)


def _stated(host: Host) -> str:
    """Write a host as Squid states it: a helper reads `-` as none."""
    return "" if host.text == "-" else bracketed(host)
