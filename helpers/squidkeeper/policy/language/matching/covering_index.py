"""Which of many entries hold for every host of another one."""

from collections.abc import Sequence
from dataclasses import replace

from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.hosts import HostForm, HostPattern, Network, host_keys
from squidkeeper.policy.language.model import Match
from squidkeeper.policy.url import Host


class CoveringIndex(HostIndex):
    """Entries by their hosts, for lookups of wider ones.

    One whose hosts a session names is wider than none.
    """

    def add(self, position: int, match: Match) -> None:
        """Add the entry at a position, with the hosts that the policy names."""
        named = match.hosts and tuple(one for one in match.hosts if not one.variable)
        if named or not match.hosts:
            super().add(position, replace(match, hosts=named))

    def covering(self, match: Match) -> list[int]:
        """List, in the policy's order, the positions of the entries that hold for every
        host which `match` holds for.

        Of entries that only together cover a host list or two patterns, none is listed.
        """
        patterns = (
            (HostPattern("*", HostForm.ANY),) if match.any_host else match.hosts or ()
        )
        groups = [self._covering_pattern(pattern) for pattern in patterns]
        groups += [
            {*self._by_list.get(name, ()), *self._with_keys([HostForm.ANY])}
            for name in match.lists or ()
        ]
        return sorted(set.intersection(*groups))

    def _covering_pattern(self, pattern: HostPattern) -> set[int]:
        keys, network = _wider_keys(pattern), pattern.network
        found = set(self._with_keys(keys))
        if network is not None:
            found.update(
                position
                for wider, position in self._by_network
                if _contains(wider, network)
            )
        for name, positions in self._by_list.items():
            hosts = self._lists[name]
            if hosts.has_key(keys) or (
                network is not None and hosts.covers_network(network)
            ):
                found.update(positions)
        return found


def _wider_keys(pattern: HostPattern) -> Sequence[str]:
    if pattern.network is not None or pattern.form is HostForm.ANY:
        return [HostForm.ANY]
    if pattern.form is HostForm.EXACT:
        return host_keys(Host(pattern.name))
    itself = {
        HostForm.TREE: (".",),
        HostForm.LABEL: ("*.", ".", "**."),
        HostForm.UNDER: (".", "**."),
    }[pattern.form]
    above = [
        key
        for key in host_keys(Host(pattern.name))
        if key.startswith((".", "**.")) and key != f".{pattern.name}"
    ]
    return [*(f"{form}{pattern.name}" for form in itself), *above, HostForm.ANY]


def _contains(wider: Network, network: Network) -> bool:
    return wider.version == network.version and wider.supernet_of(network)  # type: ignore[arg-type] # the same version
