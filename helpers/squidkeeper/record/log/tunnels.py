"""Tunnels: which CONNECT opens one, and what counts once with another record.

The CONNECT of a denied host has status 200 and leads nowhere. Each request inside is denied itself. The CONNECT is left
out where a request to this host follows within `WAIT`; else it stands: a client must not hide the host that was denied
behind another that it writes into the request. A tunnel whose origin fails has one failure: the CONNECT
stands. What Squid answers inside has no decision, and is left out. `record/table/folding.py` does this.
"""

from datetime import timedelta
from typing import Final

from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.record.log.record import CLIENT_ERRORS, NONE, Record, is_spliced

WAIT: Final = timedelta(seconds=10)
HTTPS_PORT: Final = ":443"  # which no URL names

_OPENED = 200
_ABORTED = "_ABORTED/"
ConnectionKey = tuple[str, str, str, str]


def is_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of an allowed tunnel, opened or not; not the record of its end."""
    return record.method == CONNECT and record.verdict == "allow" and not is_spliced(record)


def is_opened_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of an allowed tunnel that was opened."""
    return is_tunnel(record) and record.status == _OPENED and record.error == NONE and _ABORTED not in record.squid


def is_answered_inside(record: Record) -> bool:
    """Tell whether Squid answers a CONNECT inside its tunnel: it was denied, or its origin failed."""
    if record.method != CONNECT or record.status != _OPENED or record.error in CLIENT_ERRORS:
        return False
    return record.verdict == "deny" or record.error != NONE


def is_denied_tunnel(record: Record) -> bool:
    """Tell whether a record is the CONNECT of a denied host, whose requests are denied one by one."""
    return record.verdict == "deny" and is_answered_inside(record)


def is_served(record: Record) -> bool:
    """Tell whether a record was allowed and did not fail: it is no request that Squid answered for its CONNECT."""
    return record.verdict == "allow" and record.error == NONE


def names_tunnel(url: str, authority: str) -> bool:
    """Tell whether a URL names the host and port of a CONNECT; both are written as Squid understood them."""
    return url.startswith(f"https://{authority.removesuffix(HTTPS_PORT)}/")


def connection_key(record: Record) -> ConnectionKey:
    """Tell the connections of the access log apart."""
    return record.client, record.connection, record.worker, record.gateway  # each worker numbers its connections
