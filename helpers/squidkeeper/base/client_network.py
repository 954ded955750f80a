"""Whom an address belongs to: what is counted for one client."""

from ipaddress import ip_network
from typing import Final

_IPV6_PREFIX: Final = 64  # one network's; a client can use every address in it


def client_network(client: str) -> str:
    """Name one client: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in client:
        return client
    try:
        return str(ip_network((client.partition("%")[0], _IPV6_PREFIX), strict=False))
    except ValueError:
        return client
