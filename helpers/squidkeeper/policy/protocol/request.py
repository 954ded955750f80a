"""A request, parsed and typed: what Squid's tokens state, or why that is invalid.

Every helper gets the same nine tokens, in this order: client, user, method, scheme,
host, port, SNI, the tag of the tunnel, and the ID of the token of a login
(squid/squidkeeper.conf). `explain`, `tests:` and drift state the same of a method and a
target.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.url import (
    Host,
    address_host,
    bracketed,
    check_scheme,
    format_authority,
    origin_of,
    parse_address,
    parse_authority,
    parse_host,
    parse_port,
    parse_url,
    unrecorded_url,
)

CONNECT = "CONNECT"
REQUEST_TOKENS = 9
ANY_LOGIN = (
    "*"  # no ID of a token: what people state names a user, who counts as logged in
)
NO_LOGIN = "none"  # nor is this: the client came to a port where nobody can log in
_LONGEST_KNOWN_METHOD = (
    64  # characters, so that what is kept is bounded; Squid itself takes 32
)
_REFUSED_METHODS = {
    "TRACE": "returns a request's headers to whoever asks",
    "TRACK": "returns a request's headers to whoever asks",
    "PURGE": "is for the owner of a cache",
}


class TunnelMode(StrEnum):
    """Which connection to the origin the requests of a tunnel take.

    `OWN`: one of the tunnel's own, made ahead of its first request. `FIRST`: one for
    each request. `SHARED`: one from Squid's pool, which clients share.
    """

    OWN = "own"
    FIRST = "first"
    SHARED = "shared"


class Request(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """One request.

    For a CONNECT the scheme is https, and `authority` is host and port as they were
    stated.

    `url` is the absolute request target as it was stated; None stands for every URL of
    the host. `spliced` marks a CONNECT that Squid asks about once more, with the TLS
    server name, before it splices the tunnel. `login` is the ID of the token that
    `user` logged in with; None stands for another login, or none. `tunnel` is the mode
    of the tunnel that it came through; None where there is none, or no one has stated
    it. `session` is who asks, where a session does; `tunnel_session` is the number of
    the one that opened the tunnel.
    """

    method: str
    client: Host | None
    user: str | None
    scheme: str
    port: int
    host: Host
    authority: str = ""
    url: str | None = None
    spliced: bool = False
    login: str | None = None
    tunnel: TunnelMode | None = None
    session: Session | None = None
    tunnel_session: int | None = None

    @property
    def is_of_its_session(self) -> bool:
        """Whether its login is that of its session."""
        return self.session is not None and self.session.name == self.user


class TunnelTag(NamedTuple):
    """What Squid keeps for a tunnel (clt_conn_tag): the authority of its CONNECT, its
    mode, and the number of the session that opened it.
    """

    authority: str
    mode: TunnelMode = TunnelMode.OWN
    session: int | None = None

    def __str__(self) -> str:
        mode = "" if self.mode is TunnelMode.OWN else f" {self.mode}"
        session = "" if self.session is None else f" {_SESSION}{self.session}"
        return f"{self.authority}{mode}{session}"


def read_tag(tag: str) -> TunnelTag:
    """Read the tag of a tunnel; a text that is no tag counts as an authority, which no
    request will name.
    """
    authority, *words = tag.split(" ")
    session = None
    if words and words[-1].startswith(_SESSION):
        number = words.pop().removeprefix(_SESSION)
        if not number.isascii() or not number.isdigit():
            return TunnelTag(tag)
        session = int(number)
    match words:
        case []:
            return TunnelTag(authority, session=session)
        case [mode] if mode in _TAGGED:
            return TunnelTag(authority, TunnelMode(mode), session)
    return TunnelTag(tag)


def authority_of(tag: str) -> str:
    """Return the authority that the tag of a tunnel names."""
    return read_tag(tag).authority


_SESSION = "s="
_TAGGED = (TunnelMode.FIRST, TunnelMode.SHARED)


class Malformed(NamedTuple):
    """A request that cannot be decided: the built-in rule that denies it, the reason,
    and what was stated.
    """

    rule: str
    reason: str
    method: str
    user: str | None
    authority: str
    url: str | None = None


def parse_request(
    tokens: Sequence[str | None], url: str | None = None
) -> Request | Malformed:
    """Parse the nine tokens, None where Squid gives `-`; more tokens are ignored.

    CONNECT, TLS server name and request have to name one host and port.
    """
    client, user, stated_method, stated_scheme, host, port, sni, tag, login = tokens[
        :REQUEST_TOKENS
    ]
    method, host, port = stated_method or "", host or "", port or ""
    tunnel, mode, opener = (None, None, None) if tag is None else read_tag(tag)
    authority = f"{host}:{port}" if method == CONNECT else ""
    try:
        parse_sender = (
            _known_sender if len(method) <= _LONGEST_KNOWN_METHOD else _parse_sender
        )
        sender, scheme, number = parse_sender(client, method, stated_scheme or "", port)
        spliced = method == CONNECT and (sni, tunnel) != (None, None)
        request = Request(
            method,
            sender,
            user,
            scheme,
            number,
            parse_host(host),
            authority,
            url,
            spliced,
            login,
            mode,
            tunnel_session=opener,
        )
        # which has nothing to agree with
        is_plain = tunnel is None and scheme == "http"
        wrong = None if is_plain else _contradiction(request, sni, tunnel)
    except InvalidUrl as error:
        wrong = "invalid-request", _reason(method, url, error)
    return Malformed(*wrong, method, user, authority, url) if wrong else request


def request_to(
    method: str, target: str, client: str | None = None, user: str | None = None
) -> Request | Malformed:
    """Make the request of a client that sends a method and a target, which may both be
    escaped as in the access log.

    The target of a CONNECT is `host:port`. An https URL is requested inside the tunnel
    that its own CONNECT opened.
    """
    return parse_request(*stated_tokens(method, target, client, user))


def stated_tokens(
    method: str, target: str, client: str | None = None, user: str | None = None
) -> tuple[list[str | None], str | None]:
    """Return what `parse_request` takes, as Squid would state it; where a target cannot
    be parsed, no host.

    A user counts as logged in.
    """
    target = unrecorded_url(target)
    login = user and ANY_LOGIN
    try:
        if method == CONNECT:
            host, port = parse_authority(target)
            if port is None:
                raise InvalidUrl("the target of a CONNECT has no port")
            return [
                client,
                user,
                method,
                None,
                _stated(host),
                str(port),
                None,
                None,
                login,
            ], None
        scheme, host, port = origin_of(target)
    except InvalidUrl:
        return [client, user, method, "http", "", "80", None, None, login], target
    tunnel = format_authority(host, port) if scheme == "https" else None
    return [
        client,
        user,
        method,
        scheme,
        _stated(host),
        str(port),
        None,
        tunnel,
        login,
    ], target


def _parse_sender(
    client: str | None, method: str, scheme: str, port: str
) -> tuple[Host | None, str, int]:
    """Parse what many requests have in common: the client's address, the scheme and the
    port.
    """
    refused = _REFUSED_METHODS.get(method.upper())
    if refused:
        raise InvalidUrl(f"the method {method} {refused}")
    sender = address_host(parse_address(client)) if client else None
    return (
        sender,
        "https" if method == CONNECT else check_scheme(scheme.lower()),
        parse_port(port),
    )


# an unknown host line takes 6 us instead of 9
_known_sender = lru_cache(maxsize=1024)(_parse_sender)


def _reason(method: str, url: str | None, error: InvalidUrl) -> str:
    """Say why a request cannot be parsed: where its URL is at fault, what is wrong with
    the URL.
    """
    if url is not None and method == CONNECT:
        return _no_authority(url)
    if url is not None:
        try:
            parse_url(url)
        except InvalidUrl as fault:
            error = fault
    return f"Not a request that can be judged: {error}."


def _contradiction(
    request: Request, sni: str | None, tunnel: str | None
) -> tuple[str, str] | None:
    """Return rule and reason where one layer claims another host than the next; None
    where all agree.
    """
    if request.spliced:
        return _splice_contradiction(request, sni, tunnel)
    if request.method == CONNECT:
        # Squid sends none
        return (
            None
            if request.url is None
            else ("invalid-request", _no_authority(request.url))
        )
    if tunnel is None:
        return (
            ("invalid-request", "An https URL needs a CONNECT first.")
            if request.scheme == "https"
            else None
        )
    host = bracketed(request.host)
    asked = f"{host}:{request.port}"
    if tunnel != asked and not _is(
        (request.host, request.port), parse_authority, tunnel
    ):
        return (
            "authority-mismatch",
            f"The tunnel was opened to {tunnel}, the request in it is for {asked}.",
        )
    if sni is not None and sni != host and not _is(request.host, parse_host, sni):
        return (
            "authority-mismatch",
            f"The TLS server name is {sni!r}, the request in it is for {asked}.",
        )
    if request.scheme != "https":
        return "invalid-request", "A request inside a tunnel has to be https."
    return None


def _splice_contradiction(
    request: Request, sni: str | None, tunnel: str | None
) -> tuple[str, str] | None:
    """Return rule and reason where a tunnel that is about to be spliced leads to
    another host than its TLS names.

    The same host, and not any other that is passed through: what is checked and logged
    is the host of the CONNECT.
    """
    asked = f"{bracketed(request.host)}:{request.port}"
    if tunnel is None or not _is((request.host, request.port), parse_authority, tunnel):
        return "invalid-request", "A CONNECT inside a tunnel is not allowed."
    if sni is None:  # no TLS server name can be an address (RFC 6066, 3)
        missing = f"The tunnel is for {asked}, and the TLS in it names no server (SNI)."
        return (
            None
            if request.host.address is not None
            else ("authority-mismatch", missing)
        )
    if not _is(request.host, parse_host, sni):
        return (
            "authority-mismatch",
            f"The TLS server name is {sni!r}, the tunnel is for {asked}.",
        )
    return None


def _no_authority(target: str) -> str:
    return f"CONNECT takes HOST:PORT, such as github.com:443, not {target!r}."


def _is(expected: object, parse: Callable[[str], object], text: str) -> bool:
    """Whether a text is another spelling of what is expected."""
    try:
        return parse(text) == expected
    except InvalidUrl:
        return False


def _stated(host: Host) -> str:
    """Write a host as Squid states it: a helper reads `-` as none."""
    return "" if host.text == "-" else bracketed(host)
