"""What was asked about a request on record (floor 5): the same query, made of the record's fields."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from squidkeeper.engine.query import CONNECT, DENIED_BY, Query, query_of
from squidkeeper.record.record import NONE, Record, truncated_fields
from squidkeeper.record.urls import host_of

FRAGMENT: Final = "fragment"
USERINFO: Final = "userinfo"
_NOT_OF_THE_POLICY: Final = {
    NONE: "nobody was asked: Squid refused the request, or a line of the operator's own decided",
    "policy-unavailable": "no helper answered, or none had a policy",
    "credential-unavailable": "a secret was not available",
}


def asked(record: Record) -> Query:
    """Make the query; for what Squid answers inside a denied tunnel, that of the CONNECT which was denied."""
    user, tunnel = token(record.user), token(record.tunnel)
    if tunnel is not None and DENIED_BY in tunnel:
        return query_of(CONNECT, tunnel.partition(DENIED_BY)[0], record.client, user)
    query = query_of(token(record.method) or "", _as_sent(record), record.client, user)
    if record.method != CONNECT:
        return query._replace(sni=token(record.sni), tunnel=tunnel)
    if record.revision != NONE:  # the tunnel on record is what the answer to this CONNECT named
        return query
    return query._replace(tunnel=tunnel)


def unexplained(record: Record) -> str | None:
    """Say why the verdict on record does not follow from its fields and the policy alone; None where it does."""
    cut = truncated_fields(record)
    if cut:
        whole = "" if record.cut == NONE else f" (length and SHA-256 of the whole URL: {record.cut})"
        return f"the record holds only the beginning of {', '.join(cut)}{whole}"
    if record.rule == "private-address" and host_of(record.url).address is None:
        return "the name had a private address, which only Squid knew"
    if record.rule == "authority-mismatch" and record.revision == NONE:
        return "the server's certificate did not cover the host, which only Squid knew"
    return _NOT_OF_THE_POLICY.get(record.rule)


def token(value: str) -> str | None:
    """Decode a field as helpers decode a token: bytes that are not UTF-8 stay as surrogates."""
    return None if value == NONE else unquote(value, errors="surrogateescape")


def _as_sent(record: Record) -> str:
    """Put back what `hidden` names. A URL that has it is denied, wherever it stands."""
    if record.hidden == FRAGMENT:
        return f"{record.url}#"
    return record.url.replace("//", "//_@", 1) if record.hidden == USERINFO else record.url
