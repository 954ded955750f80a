"""Which entries of a policy can concern a host, without asking each (floor 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from squidkeeper.policy.host_lists import HostList
from squidkeeper.policy.hosts import HostForm, Network, host_keys
from squidkeeper.policy.model import Match
from squidkeeper.url import Host


class Matching(Protocol):
    """A rule, a rewrite or a credential."""

    @property
    def match(self) -> Match:
        """The fields it matches by."""


E = TypeVar("E", bound=Matching)


class HostIndex:
    """The entries of one section by the hosts they match; a look-up costs the labels of the host, not the entries."""

    def __init__(self, entries: Sequence[Matching], lists: Mapping[str, HostList]) -> None:
        self._by_key: dict[str, list[int]] = {}
        self._by_network: list[tuple[Network, int]] = []
        self._by_list: dict[str, list[int]] = {}
        self._lists = lists
        self._is_empty = not entries
        for position, entry in enumerate(entries):
            self._add(position, entry.match)
        self._has_wildcards = any(lists[name].has_wildcards for name in self._by_list) or any(
            key.startswith((HostForm.LABEL, HostForm.UNDER)) for key in self._by_key
        )

    def positions(self, host: Host) -> tuple[int, ...]:
        """List, in the policy's order, the positions of the entries whose `hosts` and `lists` hold for a host."""
        if self._is_empty:
            return ()
        keys, by_key = host_keys(host, wildcards=self._has_wildcards), self._by_key
        found = [position for key in keys if key in by_key for position in by_key[key]]
        if host.address is not None:
            found += (position for network, position in self._by_network if host.address in network)
        for name, positions in self._by_list.items():
            if self._lists[name].holds(host, keys):
                found += positions
        return tuple(sorted(set(found))) if found else ()  # none is what most hosts have in most sections

    def _add(self, position: int, match: Match) -> None:
        if match.any_host:
            self._by_key.setdefault(HostForm.ANY, []).append(position)
        for pattern in match.hosts or ():
            if pattern.network is not None:
                self._by_network.append((pattern.network, position))
            else:
                self._by_key.setdefault(pattern.key, []).append(position)
        for name in match.lists or ():
            self._by_list.setdefault(name, []).append(position)
