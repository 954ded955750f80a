"""Who has tickets: machines, and the networks that they share places with.

A network has at most as many places as are free. So one takes half of all, the next one half of the rest: however many
addresses an attacker has in one network, clients of others get tickets. Clients that the policy names are one network
each, and what they have is apart from what all others have.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network
from typing import Final

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.url import Address, address_host, parse_address
from squidkeeper.serving.tickets.ticket import AskedRequest

PLACES: Final = 512  # of clients that the policy names, and as many of all others
_NAMED: Final = "client "
_END: Final = "\n"  # no name of a client has it
_BITS_OF_IPV4, _BITS_OF_IPV6 = 24, 48


@dataclass(frozen=True, slots=True)
class Holder:
    """A machine, and its network: a client of the policy, or a network of addresses."""

    network: str
    machine: str

    @property
    def place(self) -> str:
        """Its place, as text."""
        return f"{self.network}{_END}{self.machine}"

    def has_room(self, taken: Iterable[str]) -> bool:
        """Tell whether it has a place among those that are taken, or may take one."""
        alike = [place for place in taken if place.startswith(_NAMED) is self.place.startswith(_NAMED)]
        own = sum(place.startswith(self.network + _END) for place in alike)
        return self.place in alike or own < PLACES - len(alike)


def holder_of(policy: CompiledPolicy, asked: AskedRequest) -> Holder:
    """Tell who asks. Where several clients of the policy match, it is the one with the fewest addresses."""
    address = parse_address(asked.client)
    clients = clients_by_size(policy, address, asked.user)
    return Holder(f"{_NAMED}{clients[0]}" if clients else _network(address), policy.machines.of(address))


def clients_by_size(policy: CompiledPolicy, address: Address, user: str) -> tuple[str, ...]:
    """Name the clients of the policy that a request belongs to, the one with the fewest addresses first."""
    names = policy.clients_of(address_host(address), user or None)
    sizes = {client.name: client.size for client in policy.source.clients} if names else {}
    return tuple(sorted(names, key=lambda name: (sizes[name], name)))


def _network(address: Address) -> str:
    bits = _BITS_OF_IPV6 if isinstance(address, IPv6Address) else _BITS_OF_IPV4
    return str(ip_network((address, bits), strict=False))
