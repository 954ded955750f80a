"""The request of a record, and which records count with another.

The request is made of the record's fields as the helpers make it of Squid's tokens.
"""

from datetime import timedelta
from typing import Final
from urllib.parse import unquote

from squidkeeper.policy.language.model import BY_BODY
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.protocol import request
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.record import (
    CLIENT_ERRORS,
    NONE,
    Record,
    decode_field,
    host_of,
    is_spliced,
    truncated_fields,
)

FRAGMENT: Final = "fragment"
USERINFO: Final = "userinfo"
SUCCESSES: Final = range(100, 400)  # statuses
CLIENT_GONE: Final = "ERR_CLIENT_GONE"  # as a client ends a stream
_SNI: Final = 6  # the place of its token; the tunnel's comes next
_DENIED, _OK = "TCP_DENIED", 200
NOT_BY_THE_POLICY: Final = {  # rules whose denials do not follow from record and policy
    NONE: "no helper was asked: Squid refused the request, or a line of the operator's own decided",
    "policy-unavailable": "the gateway could not decide it: `squidkeeper why` says why",
    "credential-unavailable": "a secret was unavailable",
    "sealed-token-refused": "it presented a sealed token, and the record holds no headers",
    "secret-leaving": "it held a secret, and the record withholds what it was",
    "placeholder-misdirected": "it held a placeholder, and the record holds no headers",
    "ticket-page": "only the gateway's tickets tell whether there was one for this client",
    "quota": "a quota denied it, and the record does not hold what was used: see `squidkeeper quota`",
    "header-too-long": "its headers were too long, and the record holds none",
    "login-refused": "the token of the login was revoked or had expired, and the record does not hold the token",
    "not-rendered": "Squid's configuration lacked lines that the policy needs: run `squidkeeper doctor`",
    "session-required": "no session was active at its address, and the record does not hold the sessions",
    "session-invalid": "its session was not one of the policy, and the record does not hold the session",
    "sessions-unavailable": "the gateway could not read its sessions: `squidkeeper why` says what to do",
    "tunnel-outdated": "the policy had changed since the tunnel was opened",
}
WAIT: Final = timedelta(seconds=10)
HTTPS_PORT: Final = ":443"  # which no URL names

_OPENED = 200
_ABORTED = "_ABORTED/"
ConnectionKey = tuple[str, str, str, str]


def request_of(
    record: Record, session: Session | None = None
) -> request.Request | request.Malformed:
    """Make the request, of a session where one asked."""
    user, tunnel = token(record.user), token(record.tunnel)
    of_splice = asks_splice(record)
    tokens, url = request.stated_tokens(
        token(record.method) or "", as_sent(record), record.client, user
    )
    if record.method != request.CONNECT:
        tokens[_SNI : _SNI + 2] = token(record.sni), tunnel
    elif tunnel is not None and (
        of_splice or record.revision == NONE
    ):  # else the reply to this CONNECT named the tunnel
        tokens[_SNI : _SNI + 2] = token(record.sni), tunnel_of(record)
    asked = request.parse_request(tokens, url)
    if isinstance(asked, request.Malformed):
        return asked
    return asked._replace(session=session)


def tunnel_of(record: Record) -> str:
    """Return `host:port` of the CONNECT around a request; `-` without one.

    How the tunnel was opened follows it.
    """
    return (decode_field(record.tunnel) or NONE).partition(" ")[0]


def asks_splice(record: Record) -> bool:
    """Whether a record is of the second question about a CONNECT: whether its tunnel
    passes through.

    Squid answers a denied CONNECT with 200, and the second question with the status of
    the denial.
    """
    is_denied = record.squid.startswith(_DENIED) and record.status != _OK
    return is_spliced(record) or (is_denied and record.method == request.CONNECT)


def was_used(record: Record) -> bool:
    """Whether a request was allowed and got an answer of status 1xx to 3xx, or the
    beginning of one.
    """
    answered = record.error in (NONE, CLIENT_GONE) and record.status in SUCCESSES
    return record.verdict == "allow" and answered


def unexplained(record: Record) -> str | None:
    """Return the reason why the verdict does not follow from the record and the policy
    alone; None where it does.
    """
    cut = truncated_fields(record)
    if cut:
        whole = (
            ""
            if record.cut == NONE
            else f" (length and SHA-256 of the whole URL: {record.cut})"
        )
        return f"the record holds only the beginning of {', '.join(cut)}{whole}"
    if record.rule == "private-address" and host_of(record.url).address is None:
        return (
            "the name, or the name that a rewrite led to, had a private address, which only Squid knew;"
            " `squidkeeper explain METHOD URL` names the rule or rewrite that does not open it"
        )
    if record.rule == "authority-mismatch" and record.revision == NONE:
        return "the server's certificate did not cover the host, which only Squid knew"
    return NOT_BY_THE_POLICY.get(record.rule)


def told_by_body(record: Record) -> str | None:
    """Return what did not hold of a body that decided a denial; None where no
    body did.
    """
    found = decode_field(record.found) or ""
    return (
        found.removeprefix(BY_BODY)
        if record.verdict == "deny" and found.startswith(BY_BODY)
        else None
    )


def token(value: str) -> str | None:
    """Decode a field as helpers decode a token; bytes that are not UTF-8 become
    surrogates.
    """
    return None if value == NONE else unquote(value, errors="surrogateescape")


def as_sent(record: Record) -> str:
    """Return the URL with what `hidden` names put back.

    Where in the URL does not matter: it is denied.
    """
    if record.hidden == FRAGMENT:
        return f"{record.url}#"
    return (
        record.url.replace("//", "//_@", 1) if record.hidden == USERINFO else record.url
    )


# Tunnels: which CONNECT opens one, and what counts once with another record.
#
# The CONNECT of a denied host has status 200 and leads nowhere. Each request inside is
# denied itself. The CONNECT is left out where a request to this host follows within
# `WAIT`. Otherwise it stands: a client must not hide the host that was denied behind
# another that it writes into the request. A tunnel whose origin fails has one failure:
# the CONNECT stands. What Squid answers inside has no decision, and is left out.
# `record/table/table.py` does this.


def is_tunnel(record: Record) -> bool:
    """Whether a record is the CONNECT of an allowed tunnel, opened or not; not the
    record of its end.
    """
    return (
        record.method == CONNECT
        and record.verdict == "allow"
        and not is_spliced(record)
    )


def is_opened_tunnel(record: Record) -> bool:
    """Whether a record is the CONNECT of an allowed tunnel that was opened."""
    return (
        is_tunnel(record)
        and record.status == _OPENED
        and record.error == NONE
        and _ABORTED not in record.squid
    )


def is_answered_inside(record: Record) -> bool:
    """Whether Squid answers a CONNECT inside its tunnel: it was denied, or its origin
    failed.
    """
    if (
        record.method != CONNECT
        or record.status != _OPENED
        or record.error in CLIENT_ERRORS
    ):
        return False
    return record.verdict == "deny" or record.error != NONE


def is_denied_tunnel(record: Record) -> bool:
    """Whether a record is the CONNECT of a denied host, whose requests are denied one
    by one.
    """
    return record.verdict == "deny" and is_answered_inside(record)


def is_served(record: Record) -> bool:
    """Whether a record was allowed and did not fail: it is no request that Squid
    answered for its CONNECT.
    """
    return record.verdict == "allow" and record.error == NONE


def names_tunnel(url: str, authority: str) -> bool:
    """Whether a URL names the host and port of a CONNECT; both are written as Squid
    understood them.
    """
    return url.startswith(f"https://{authority.removesuffix(HTTPS_PORT)}/")


def connection_key(record: Record) -> ConnectionKey:
    """Tell the connections of the access log apart."""
    # each worker numbers its connections
    return (
        record.client,
        record.connection,
        record.worker,
        record.gateway,
    )
