"""The hosts that two policies could tell apart: classes, in each of which the same
entries match.

Patterns and lists know names by their labels. So a host is as every other whose longest
ending that a pattern names is the same, with as many labels in front of it: none, one,
or more.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network, summarize_address_range

from squidkeeper.change.difference.dimensions import all_entries
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import HostForm, Network, host_keys
from squidkeeper.policy.url import PRIVATE_NETWORKS, Address, Host, address_host

_KEYS_AT_MOST = 3_000_000  # of all lists together
_NAME_LENGTH = 253
_LABELS = ("x", "any", "host", "anything", *(f"x{number}" for number in range(1000)))
_ENDINGS = (
    "example",
    "test",
    "invalid",
    *(f"invalid{number}" for number in range(1000)),
)
_MAPPED = ip_network("::ffff:0:0/96")  # these are IPv4 addresses
_DEEPEST = 2


class TooManyHostsError(Exception):
    """The lists hold more hosts than are compared."""


@dataclass(frozen=True, slots=True)
class HostPart:
    """Hosts that no pattern tells apart: the longest ending that one names, and how
    many labels are in front of it.

    Of a part of lists `lists` names these, and `count` is how many of their lines are
    for it. An address has neither.
    """

    example: Host
    ending: str = ""
    depth: int = 0
    lists: tuple[str, ...] = ()
    count: int = 0
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostClass:
    """Hosts for which the same entries of both policies match."""

    example: Host
    # of each policy: in the sections of _indexes
    positions: tuple[tuple[tuple[int, ...], ...], ...]
    parts: tuple[HostPart, ...]


@dataclass(slots=True)
class _Found:
    parts: list[HostPart] = field(default_factory=list)


def host_classes(policies: Sequence[CompiledPolicy]) -> list[HostClass]:
    """List the classes of hosts, names that a pattern has first."""
    patterns = [
        pattern
        for policy in policies
        for entry in all_entries(policy)
        for pattern in entry.match.hosts or ()
    ]
    lists = _used_lists(policies)
    names = {pattern.name for pattern in patterns if pattern.name}
    networks = [pattern.network for pattern in patterns if pattern.network is not None]
    found: dict[Hashable, _Found] = {}
    taken = {ending for name in names for ending in _endings(name)}
    parts = (
        *_named(names, taken, lists),
        *_listed(taken, names, lists, networks),
        *_of_addresses(networks),
    )
    for part in parts:
        found.setdefault(_key(policies, part.example), _Found()).parts.append(part)
    return [
        HostClass(
            part.parts[0].example,
            _positions(policies, part.parts[0].example),
            tuple(part.parts),
        )
        for part in found.values()
    ]


def _positions(
    policies: Sequence[CompiledPolicy], host: Host
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple(index.positions(host) for index in _indexes(policy))
        for policy in policies
    )


def _indexes(policy: CompiledPolicy) -> tuple[HostIndex, ...]:
    return (
        policy.rules,
        policy.grants,
        policy.rewrites,
        policy.credentials,
        policy.upstreams,
    )


def _key(policies: Sequence[CompiledPolicy], host: Host) -> Hashable:
    return _positions(policies, host), host.private, host.address is not None


def _used_lists(policies: Sequence[CompiledPolicy]) -> list[tuple[str, HostList]]:
    named = {
        (side, name)
        for side, policy in enumerate(policies)
        for entry in all_entries(policy)
        for name in entry.match.lists or ()
    }
    lists = [(name, policies[side].source.lists[name]) for side, name in sorted(named)]
    if sum(len(listed.trie) for _, listed in lists) > _KEYS_AT_MOST:
        raise TooManyHostsError
    return lists


# --- names ----------------------------------------------------------------------------


def _named(
    names: set[str], taken: set[str], lists: Sequence[tuple[str, HostList]]
) -> Iterator[HostPart]:
    for name in sorted(names, key=lambda name: (name.split(".")[::-1], name)):
        yield HostPart(Host(name), name)
        for depth in range(1, _DEEPEST + 1):
            host = _under(name, depth, taken, lists)
            if host is not None:
                yield HostPart(host, name, depth)
    ending = next(ending for ending in _ENDINGS if _is_new(ending, taken, lists))
    yield HostPart(Host(f"other.{ending}"), "", _DEEPEST)


def _endings(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.partition(".")[2]


def _under(
    name: str, depth: int, taken: set[str], lists: Sequence[tuple[str, HostList]]
) -> Host | None:
    label = next(label for label in _LABELS if _is_new(f"{label}.{name}", taken, lists))
    text = f"{'x.' * (depth - 1)}{label}.{name}"
    return Host(text) if len(text) <= _NAME_LENGTH else None


def _is_new(name: str, taken: set[str], lists: Sequence[tuple[str, HostList]]) -> bool:
    return name not in taken and not any(_lists_any(hosts, name) for _, hosts in lists)


def _lists_any(hosts: HostList, name: str) -> bool:
    stored, wildcards = (
        name[::-1],
        (f"{form}{name}" for form in (HostForm.LABEL, HostForm.UNDER)),
    )
    return next(iter(hosts.trie.iterkeys(stored)), None) is not None or hosts.has_key(
        wildcards
    )


# --- lists ----------------------------------------------------------------------------


def _listed(
    taken: set[str],
    names: set[str],
    lists: Sequence[tuple[str, HostList]],
    networks: list[Network],
) -> Iterator[HostPart]:
    """Return a part for each way in which a host is in some of the lists; `networks`
    gets those of the lists.
    """
    counts: Counter[Hashable] = Counter()
    firsts: dict[Hashable, HostPart] = {}
    for _, hosts in lists:
        for stored in hosts.trie.iterkeys():
            if stored.startswith(HostForm.NETWORK):
                networks.append(_network_of(stored))
                continue
            for host in _hosts_of(stored, taken, lists):
                keys = host_keys(host)
                members = tuple(listed.holds(host, keys) for _, listed in lists)
                key = (*_place(host.text, names), members)
                counts[key] += 1
                if key not in firsts:
                    held = (
                        name
                        for (name, _), is_in in zip(lists, members, strict=True)
                        if is_in
                    )
                    firsts[key] = HostPart(
                        host, *_place(host.text, names), tuple(dict.fromkeys(held))
                    )
    yield from (replace(part, count=counts[key]) for key, part in firsts.items())


def _hosts_of(
    stored: str, taken: set[str], lists: Sequence[tuple[str, HostList]]
) -> Iterator[Host]:
    depths: tuple[int, ...]
    if stored.startswith("*"):
        depths, name = (1, 2), stored.lstrip("*").removeprefix(".")
    elif stored.endswith("."):
        depths, name = (0, 1), stored[-2::-1]
    else:
        depths, name = (0,), stored[-3::-1]
    for depth in depths if name else ():
        host = Host(name) if depth == 0 else _under(name, depth, taken, lists)
        if host is not None:
            yield host


def _place(host: str, names: set[str]) -> tuple[str, int]:
    """Return the longest ending of a host that a pattern names, and how many labels are
    in front of it.
    """
    depth, rest = 0, host
    while rest:
        if rest in names:
            return rest, min(depth, _DEEPEST)
        rest = rest.partition(".")[2]
        depth += 1
    return "", _DEEPEST


def _network_of(stored: str) -> Network:
    _, version, length, bits = stored.split("/")
    size = 32 if version == "4" else 128
    return ip_network((int(bits, 16) << (size - int(length)), int(length)))


# --- addresses ------------------------------------------------------------------------


def _of_addresses(networks: Iterable[Network]) -> Iterator[HostPart]:
    named = set(networks)
    for version in (4, 6):
        of_version = [
            network
            for network in (*named, *PRIVATE_NETWORKS, _MAPPED)
            if network.version == version
        ]
        size = 32 if version == 4 else 128
        ends = (int(network.broadcast_address) + 1 for network in of_version)
        bounds = sorted(
            {
                0,
                *(int(one.network_address) for one in of_version),
                *(end for end in ends if end < 2**size),
            }
        )
        for first, after in zip(bounds, [*bounds[1:], 2**size], strict=True):
            start, last = _address(first, version), _address(after - 1, version)
            if start not in _MAPPED:
                yield HostPart(address_host(start), networks=_texts(start, last, named))


def _texts(start: Address, last: Address, named: set[Network]) -> tuple[str, ...]:
    if not any(start in network for network in named):
        return ()
    return tuple(map(str, summarize_address_range(start, last)))


def _address(number: int, version: int) -> Address:
    return ip_network((number, 32 if version == 4 else 128)).network_address
