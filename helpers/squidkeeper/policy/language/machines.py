"""Which requests come from one machine, as far as their addresses and the policy tell.

A machine chooses its addresses within the /64 network of an IPv6 address. It can also
have addresses that nothing but the policy relates: a client that lists single addresses
is one machine, however many it lists.
"""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_network
from typing import Final

from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.language.model import Client
from squidkeeper.policy.url import Address

_OWN_NETWORK_BITS: Final = 64  # of IPv6


class Machines:
    """The machines that the clients of a policy are."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self._names: dict[Network, str] = {}
        for client in clients:
            for network in client.single_addresses:
                self._names.setdefault(
                    _own_network(network.network_address), f"client {client.name}"
                )

    def of(self, address: Address) -> str:
        """Name the machine that has an address: its client, the address, or its IPv6
        network.
        """
        own = _own_network(address)
        return self._names.get(own) or (
            str(own) if isinstance(address, IPv6Address) else str(address)
        )


def _own_network(address: Address) -> Network:
    return ip_network(
        (address, _OWN_NETWORK_BITS) if isinstance(address, IPv6Address) else address,
        strict=False,
    )
