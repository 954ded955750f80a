"""Whose count a request belongs to: the same in the helpers and in the access log."""

from ipaddress import ip_network
from typing import Final

from squidkeeper.policy.language.quotas import Counted, Quota

_IPV6_PREFIX: Final = 64  # one network's; a client can use every address in it
_EVERYONE: Final = "all"


def client_network(client: str) -> str:
    """Name one client: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in client:
        return client
    try:
        return str(ip_network((client.partition("%")[0], _IPV6_PREFIX), strict=False))
    except ValueError:
        return client


def holder(quota: Quota, address: str, user: str | None, rule: str) -> str:
    """Name whose count of a quota a request belongs to.

    `user` is the proxy user as the access log has it, in percent-encoding: who logs in has one count, from whichever
    address. None without a login.
    """
    match quota.per:
        case Counted.CLIENT:
            return client_network(address) if user is None else f"user:{user}"
        case Counted.RULE:
            return f"rule:{rule}"
        case Counted.ALL:
            return _EVERYONE
