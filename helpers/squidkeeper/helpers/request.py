"""What squid.conf makes of a request, as a `Query` (floor 5).

Every helper is asked about the same eight tokens, in this order: client, user, method, scheme, host, port, SNI and the
authority of the tunnel (squid/squidkeeper.conf). Squid ends the tokens of an external ACL by the arguments of its
`acl` line, or `-`.
"""

from __future__ import annotations

from squidkeeper.engine import Query

PLACE_TOKENS = 8
HOST_TOKENS = (PLACE_TOKENS, PLACE_TOKENS + 1)
URL_TOKENS = (PLACE_TOKENS + 1, PLACE_TOKENS + 2)


def query_from(tokens: list[str | None], url: str | None = None) -> Query:
    """Make a query of the eight tokens."""
    client, user, method, scheme, host, port, sni, tunnel = tokens[:PLACE_TOKENS]
    return Query(method or "", scheme, host or "", port or "", client, user, sni, tunnel, url)
