"""The hosts of two entries; `hosts` and `lists` are one field here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Final

from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import HostForm, HostPattern
from squidkeeper.policy.language.model import AnyEntry, Match
from squidkeeper.policy.url import Host

# of no host and of no name in a pattern: a name that is covered is covered by a
# wildcard
_NO_LABEL: Final = "*"


def share_a_host(one: AnyEntry, two: AnyEntry, lists: Mapping[str, HostList]) -> bool:
    """Whether one host may match both; two lists are not compared."""
    some, others = one.match, two.match
    if some.any_host or others.any_host or (some.lists and others.lists):
        return True
    return (
        any(
            patterns_overlap(pattern, other)
            for pattern, other in product(some.hosts or (), others.hosts or ())
        )
        or _may_hold(some, others, lists)
        or _may_hold(others, some, lists)
    )


def _may_hold(listing: Match, match: Match, lists: Mapping[str, HostList]) -> bool:
    """Whether a list can hold a host of a pattern; of a wildcard or a network, that is
    not looked up.
    """
    return any(
        pattern.form is not HostForm.EXACT or Host(pattern.name) in lists[name]
        for name, pattern in product(listing.lists or (), match.hosts or ())
    )


def cover_hosts(wide: AnyEntry, narrow: AnyEntry) -> bool:
    """Whether the wide entry matches each host of the narrow one."""
    if is_for_every_host(wide.match):
        return True
    some, others = wide.match, narrow.match
    if others.any_host or not {*(others.lists or ())} <= {*(some.lists or ())}:
        return False
    return all(
        any(pattern_covers(one, two) for one in some.hosts or ())
        for two in others.hosts or ()
    )


def is_for_every_host(match: Match) -> bool:
    """Whether an entry names no host, or `*`."""
    return match.any_host or any(
        pattern.form is HostForm.ANY for pattern in match.hosts or ()
    )


# --- two patterns ---------------------------------------------------------------------


def patterns_overlap(one: HostPattern, two: HostPattern) -> bool:
    """Whether some host matches both patterns."""
    if HostForm.ANY in (one.form, two.form):
        return True
    if one.network is not None and two.network is not None:
        return one.network.version == two.network.version and one.network.overlaps(
            two.network
        )
    return any(map(two.matches, _samples(one))) or any(map(one.matches, _samples(two)))


def pattern_covers(wide: HostPattern, narrow: HostPattern) -> bool:
    """Whether a pattern matches every host that another one matches.

    A variable covers nothing: a session may name none of its hosts.
    """
    if wide.variable is not None:
        return False
    if HostForm.ANY in (wide.form, narrow.form):
        return wide.form is HostForm.ANY
    if wide.network is not None and narrow.network is not None:
        return (
            wide.network.version == narrow.network.version
            and narrow.network.subnet_of(wide.network)  # type: ignore[arg-type] # the versions are the same
        )
    hosts = [*_samples(narrow, _NO_LABEL)]
    return bool(hosts) and all(map(wide.matches, hosts))


def _samples(pattern: HostPattern, label: str = "x") -> Iterator[Host]:
    """Return a host of each depth that a pattern tells apart: the name, a label under
    it, two labels under it.
    """
    name = pattern.name
    names = (name, f"{label}.{name}", f"{label}.{label}.{name}") if name else ()
    return filter(pattern.matches, map(Host, names))


# --- many entries ---------------------------------------------------------------------


class HostNeighbours:
    """Entries by their hosts: which of them can have a host in common with an entry.

    Two patterns share a host only where the name of one ends with that of the other. So
    the cost of a policy with many rules does not grow with all pairs of them.
    """

    def __init__(self, entries: Sequence[AnyEntry]) -> None:
        self._every = range(len(entries))
        self._wide: set[int] = set()
        self._at: dict[str, set[int]] = {}
        self._below: dict[str, set[int]] = {}
        for position, entry in enumerate(entries):
            if _is_wide(entry.match):
                self._wide.add(position)
                continue
            for name in (pattern.name for pattern in entry.match.hosts or ()):
                self._at.setdefault(name, set()).add(position)
                for ending in _endings(name):
                    self._below.setdefault(ending, set()).add(position)

    def of(self, entry: AnyEntry) -> Iterable[int]:
        """List the positions of the entries that may share a host with this one, in
        their order.
        """
        if _is_wide(entry.match):
            return self._every
        found = set(self._wide)
        for name in (pattern.name for pattern in entry.match.hosts or ()):
            found |= self._below.get(name, set())
            found = found.union(
                *(self._at.get(ending, ()) for ending in _endings(name))
            )
        return sorted(found)


def _is_wide(match: Match) -> bool:
    """Whether the hosts of an entry are not all known by names: lists, networks, any
    host.
    """
    return (
        match.any_host
        or bool(match.lists)
        or any(not pattern.name for pattern in match.hosts or ())
    )


def _endings(name: str) -> Iterator[str]:
    labels = name.split(".")
    return (".".join(labels[start:]) for start in range(len(labels)))
