"""Long host lists, compiled: a set of keys in a trie, which all helpers share.

The keys are those of host patterns (`host_keys`), and one for each network. The keys of
a host, and of a host with all under it, are stored backwards. All keys that match a
host are then prefixes of one text, and one walk down the trie finds them, however long
the list is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import marisa_trie

from squidkeeper.base.faults import Location
from squidkeeper.policy.language.hosts import HostForm, Network, host_keys
from squidkeeper.policy.url import Address, Host


@dataclass(frozen=True, slots=True)
class ListLine:
    """A line of a list, with its number."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class ListSummary:
    """What is known of a compiled list."""

    patterns: int = 0
    prefixes: tuple[
        tuple[int, int], ...
    ] = ()  # version and length of each kind of network in it
    strange: int = 0  # lines that were not understood
    first_strange: tuple[ListLine, ...] = ()
    widest: ListLine | None = None  # the first '*'
    wide: ListLine | None = None  # the first wildcard over a whole top-level domain
    exception: ListLine | None = (
        None  # the first line, not understood, that takes hosts out of the list
    )


_NOWHERE = Location("")


@dataclass(frozen=True, slots=True)
class HostList:
    """A compiled list: `host in hosts` tells whether one of its patterns matches."""

    location: Location = _NOWHERE
    summary: ListSummary = field(default_factory=ListSummary)
    trie: Any = field(default_factory=marisa_trie.Trie, repr=False, compare=False)
    digest: str = field(default="", compare=False)  # of its text
    # whether it can hold `*.x`, `**.x` or `*`
    has_wildcards: bool = field(default=True, compare=False)

    def __contains__(self, host: Host) -> bool:
        return self.holds(host, host_keys(host))

    def holds(self, host: Host, keys: Iterable[str]) -> bool:
        """Whether one of its patterns matches a host that has these keys."""
        if host.address is not None:
            return self.has_key(
                (HostForm.ANY, *_address_keys(host.address, self.summary.prefixes))
            )
        if self.trie.prefixes(f"{_ALONE}{host.text}"[::-1]):
            return True
        return self.has_wildcards and self.has_key(
            key for key in keys if key.startswith(HostForm.ANY)
        )

    def has_key(self, keys: Iterable[str]) -> bool:
        """Whether the list holds one of these keys."""
        return any(stored_key(key) in self.trie for key in keys)

    def covers_network(self, network: Network) -> bool:
        """Whether a network of the list contains all of this one."""
        wider = tuple(
            prefix for prefix in self.summary.prefixes if prefix[1] <= network.prefixlen
        )
        return self.has_key(_address_keys(network.network_address, wider))


def stored_key(key: str) -> str:
    """Write a key as a list stores it: those of a host, and of a host with all under
    it, backwards.
    """
    if key.startswith((HostForm.ANY, HostForm.NETWORK)):
        return key
    return (key if key.startswith(HostForm.TREE) else f"{_ALONE}{key}")[::-1]


def network_key(address: Address, length: int) -> str:
    """Write the key of the network with this many leading bits of an address."""
    return f"/{address.version}/{length}/{int(address) >> (address.max_prefixlen - length):x}"


def _address_keys(
    address: Address, prefixes: Iterable[tuple[int, int]]
) -> Iterator[str]:
    return (
        network_key(address, length)
        for version, length in prefixes
        if version == address.version
    )


_ALONE = (
    "=."  # ahead of a name that is listed without those under it; no name holds a =
)
