"""Clients, ports and methods, cut into the finest parts that two policies could tell
apart.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPV4LENGTH, IPV6LENGTH, IPv4Address, IPv6Address
from itertools import chain, count
from typing import Final, TypeVar

from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.compiled_policy import injects
from squidkeeper.policy.engine.fields import HOST_FIELDS, covers_default_port
from squidkeeper.policy.language.hosts import Network
from squidkeeper.policy.language.model import AnyEntry, HostFacts, covers_every_port
from squidkeeper.policy.language.quotas import Quota
from squidkeeper.policy.protocol.request import ANY_LOGIN, Request
from squidkeeper.policy.url import (
    DEFAULT_PORTS,
    Address,
    Host,
    address_host,
    canonical_address,
)

T = TypeVar("T", bound=Hashable)

Entries = Sequence[Sequence[AnyEntry]]  # of both policies

# The matching fields that each field of a cell is cut by. Those of hosts are in
# hosts.py, those of the URL in languages.py.
CELLS: Final[Mapping[str, tuple[str, ...]]] = {
    "clients": ("clients",),
    "ports": ("schemes", "ports"),
    "methods": ("methods",),
    "hosts": ("hosts", "lists"),
    "matched": ("paths",),
    "held": ("query",),
    "exact": ("urls",),
}
_LAST_PORT = 65535
_SPARE_METHODS = ("POST", "PUT", "PATCH", "REPORT", "LINK")
_NOWHERE = Host("client.invalid")


@dataclass(frozen=True, slots=True)
class ClientKind:
    """A kind of client: to which clients of either policy it belongs, and an address
    and user of that kind.

    `lapses` is when the last token of its login expires; None for never.
    """

    address: Address | None
    user: str | None
    names: tuple[tuple[str, ...], tuple[str, ...]]
    refused: tuple[bool, bool]
    lapses: tuple[datetime | None, datetime | None]

    def lapsed(self, at: datetime) -> tuple[bool, ...]:
        """Tell for either policy whether its login has lapsed."""
        return tuple(lapses is not None and at >= lapses for lapses in self.lapses)

    def facts(self, side: int) -> HostFacts:
        """Return what the field `clients` is matched with."""
        return HostFacts(self.names[side], "", "http", _NOWHERE, 80)

    @property
    def login(self) -> str | None:
        """What stands for the login of its user."""
        return self.user and ANY_LOGIN

    @property
    def host(self) -> Host | None:
        """Its address, as a request has it."""
        return None if self.address is None else address_host(self.address)


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of a scheme, from the first to the last."""

    scheme: str
    first: int
    last: int

    def holds(self, scheme: str, port: int) -> bool:
        """Whether a port of a scheme is one of them."""
        return scheme == self.scheme and self.first <= port <= self.last

    @property
    def example(self) -> int:
        """One of them."""
        return next(
            (port for port in (8080, 8443) if self.first <= port <= self.last),
            self.first,
        )


def client_kinds(policies: Sequence[CompiledPolicy]) -> list[ClientKind]:
    """List every kind of client, those that belong to no client first."""
    clients = [client for policy in policies for client in policy.source.clients]
    users = {user for policy in policies for user in policy.source.users}
    networks = [network for client in clients for network in client.networks or ()]
    networks += (
        network for policy in policies for network in policy.source.session_networks
    )
    found: dict[object, ClientKind] = {}
    for address in _addresses(networks):
        for user in (None, *sorted(users)):
            client = _client_kind(policies, address, user)
            found.setdefault((client.names, client.refused), client)
    return list(found.values())


def _client_kind(
    policies: Sequence[CompiledPolicy], address: Address | None, user: str | None
) -> ClientKind:
    host = None if address is None else address_host(address)
    request = Request("GET", host, user, "http", 80, _NOWHERE, login=user and ANY_LOGIN)
    (old, before), (new, after) = (
        (policy.clients_of(host, user), policy.match(request)) for policy in policies
    )
    refused = before.denial is not None, after.denial is not None
    return ClientKind(address, user, (old, new), refused, (before.lapses, after.lapses))


def _addresses(networks: Iterable[Network]) -> list[Address | None]:
    """Return an address of each part into which the networks cut all addresses; None
    for those in none of them.
    """
    named = set(networks)
    found: list[Address | None] = [
        address
        for address in _firsts(named)
        if any(address in network for network in named)
    ]
    outside = any(
        not any(address in network for network in named) for address in _firsts(named)
    )
    return [*([None] if outside else []), *found]


def _firsts(networks: Iterable[Network]) -> Iterator[Address]:
    bounds: dict[int, set[int]] = {4: {0}, 6: {0}}
    for network in networks:
        bounds[network.version] |= {
            int(network.network_address),
            int(network.broadcast_address) + 1,
        }
    for version, make, size in (
        (4, IPv4Address, 2**IPV4LENGTH),
        (6, IPv6Address, 2**IPV6LENGTH),
    ):
        ordered = sorted(bound for bound in bounds[version] if bound < size)
        for first, after in zip(ordered, [*ordered[1:], size], strict=True):
            number = first + 1 if first + 1 < after else first
            yield canonical_address(make(number))


def ports(policies: Sequence[CompiledPolicy]) -> list[Ports]:
    """Cut the ports of both schemes wherever an entry does, the default ports for
    themselves.
    """
    entries: Iterator[AnyEntry] = (
        entry for policy in policies for entry in all_entries(policy)
    )
    bounds = {
        1,
        *DEFAULT_PORTS.values(),
        *(port + 1 for port in DEFAULT_PORTS.values()),
    }
    for entry in entries:
        for span in entry.match.ports or ():
            bounds |= {span.start, span.stop}
    ordered = sorted(bound for bound in bounds if bound <= _LAST_PORT)
    spans = list(
        zip(ordered, [*(bound - 1 for bound in ordered[1:]), _LAST_PORT], strict=True)
    )
    return [
        Ports(scheme, first, last)
        for scheme in ("https", "http")
        for first, last in spans
    ]


def methods(policies: Sequence[CompiledPolicy]) -> list[str]:
    """List GET, OPTIONS, the methods that an entry names, one that stands for all
    others, and each in another case.
    """
    entries: Iterator[AnyEntry] = (
        entry for policy in policies for entry in all_entries(policy)
    )
    named = {method for entry in entries for method in entry.match.methods or ()} | {
        "GET",
        "OPTIONS",
    }
    numbered = (f"OTHER-{number}" for number in count(1))
    other = next(
        method for method in chain(_SPARE_METHODS, numbered) if method not in named
    )
    return [*sorted(named), other, *sorted(method.lower() for method in named)]


def all_entries(policy: CompiledPolicy) -> tuple[AnyEntry, ...]:
    """List the rules, rewrites, credentials and upstreams of a policy."""
    return (*policy.source.entries, *policy.source.upstreams)


def alike(parts: Iterable[T], key: Callable[[T], object]) -> list[tuple[T, ...]]:
    """Join the parts with the same key."""
    found: dict[object, list[T]] = {}
    for part in parts:
        found.setdefault(key(part), []).append(part)
    return [tuple(kept) for kept in found.values()]


def client_key(
    client: ClientKind,
    entries: Entries,
    quotas: Sequence[Sequence[Quota]],
    at: datetime,
) -> object:
    """Assign the same key to clients that entries and quotas of both policies, and
    tokens, do not tell apart.
    """
    held = _held("clients", [client.facts(side) for side in (0, 1)], entries)
    under = [
        quota.holds_for(client.names[side]) for side in (0, 1) for quota in quotas[side]
    ]
    return client.refused, client.lapsed(at), held, tuple(under)


def ports_key(ports: Ports, entries: Entries) -> object:
    """Assign a key to a scheme and port, which the default can tell apart too."""
    facts = HostFacts((), "", ports.scheme, _NOWHERE, ports.example)
    is_default = covers_default_port(ports.scheme, ports.example)
    return ports.scheme, is_default, _held("ports", [facts, facts], entries)


def method_key(method: str, entries: Entries) -> object:
    """Assign a key to a method, which WebSockets and credentials can tell apart too."""
    facts = HostFacts((), method, "https", _NOWHERE, 443)
    held = _held("methods", [facts, facts], entries)
    # GET is also the method of the request ahead of a push
    return method == "GET", injects(facts), held


def _held(cell: str, facts: Sequence[HostFacts], entries: Entries) -> tuple[bool, ...]:
    """Tell for each entry whether the fields of a cell hold; `facts` are those of
    either policy.
    """
    fields = [HOST_FIELDS[name] for name in CELLS[cell]]
    return tuple(
        holds(entry.match, known, covers_every_port(entry))
        for known, side in zip(facts, entries, strict=True)
        for entry in side
        for holds in fields
    )
