"""The entries of a policy by the hosts they match: the cost does not depend on their
number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import HostForm, Network, host_keys
from squidkeeper.policy.language.model import Match
from squidkeeper.policy.url import Host


class Matching(Protocol):
    """A rule, a rewrite or a credential."""

    @property
    def match(self) -> Match:
        """The fields it matches by."""


@dataclass(frozen=True, slots=True)
class KeptIndex:
    """The positions of entries by key, by network and by list."""

    by_key: dict[str, list[int]]
    by_network: list[tuple[Network, int]]
    by_list: dict[str, list[int]]
    has_wildcards: bool


class HostIndex:
    """Entries by their position and the hosts they match.

    A lookup costs the labels of the host, not the entries.
    """

    def __init__(
        self,
        entries: Sequence[Matching],
        lists: Mapping[str, HostList],
        kept: KeptIndex | None = None,
    ) -> None:
        kept = kept or KeptIndex({}, [], {}, has_wildcards=False)
        self._by_key = kept.by_key
        self._by_network = kept.by_network
        self._by_list = kept.by_list
        self._lists = lists
        self._is_empty = not (kept.by_key or kept.by_network or kept.by_list)
        self._has_wildcards = kept.has_wildcards
        for position, entry in enumerate(entries):
            self.add(position, entry.match)

    @property
    def kept(self) -> KeptIndex:
        """What an index is made of, so that it need not be made again."""
        return KeptIndex(
            self._by_key,
            self._by_network,
            self._by_list,
            has_wildcards=self._has_wildcards,
        )

    def add(self, position: int, match: Match) -> None:
        """Add the entry at a position."""
        self._is_empty = False
        if match.any_host:
            self._by_key.setdefault(HostForm.ANY, []).append(position)
        for pattern in match.hosts or ():
            if pattern.network is not None:
                self._by_network.append((pattern.network, position))
            else:
                self._by_key.setdefault(pattern.key, []).append(position)
                self._has_wildcards |= pattern.form in _WILDCARDS
        for name in match.lists or ():
            self._by_list.setdefault(name, []).append(position)
            self._has_wildcards |= self._lists[name].has_wildcards

    def positions(self, host: Host) -> tuple[int, ...]:
        """List, in the policy's order, the positions of the entries whose `hosts` and
        `lists` hold for a host.
        """
        if self._is_empty:
            return ()
        keys = host_keys(host, wildcards=self._has_wildcards)
        found = self._with_keys(keys)
        if host.address is not None:
            found += (
                position
                for network, position in self._by_network
                if host.address in network
            )
        for name, positions in self._by_list.items():
            if self._lists[name].holds(host, keys):
                found += positions
        # most hosts have no entry in most sections
        return tuple(sorted(set(found))) if found else ()

    def _with_keys(self, keys: Iterable[str]) -> list[int]:
        by_key = self._by_key
        return [position for key in keys if key in by_key for position in by_key[key]]


_WILDCARDS = (HostForm.LABEL, HostForm.UNDER)
