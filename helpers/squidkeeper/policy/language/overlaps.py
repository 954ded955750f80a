"""Whether two entries can be for one request, and whether one is for all requests of
another.

Where that is not known, entries overlap, and none covers another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import HostForm, HostPattern
from squidkeeper.policy.language.model import (
    Action,
    Credential,
    Match,
    Rewrite,
    Rule,
)
from squidkeeper.policy.language.paths import (
    FOLDERS,
    IN_SEGMENT,
    OVER_SEGMENTS,
    PathPattern,
)
from squidkeeper.policy.url import DEFAULT_PORTS, Host, Reading

Entry = Rule | Rewrite | Credential
_EVERY_PORT = (range(1, 1 << 16),)
_WILDCARDS = (IN_SEGMENT, OVER_SEGMENTS, FOLDERS)


def overlap(one: Entry, two: Entry, lists: Mapping[str, HostList]) -> bool:
    """Whether both can be for one request.

    Clients with different names count as different.
    """
    some, others = one.match, two.match
    return (
        _share(some.clients, others.clients)
        and _share(_methods(one), _methods(two))
        and any(
            _share_a_port(_ports(one, scheme), _ports(two, scheme))
            for scheme in DEFAULT_PORTS
        )
        and _share_a_path(some, others)
        and _share_a_host(some, others, lists)
    )


class HostNeighbours:
    """Entries by their hosts: which of them can have a host in common with an entry.

    Two patterns share a host only where the name of one ends with that of the other. So
    the cost of a policy with many rules does not grow with all pairs of them.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
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

    def of(self, entry: Entry) -> Iterable[int]:
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


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether a rule is for every request of another one, at any time."""
    if (
        wide.when is not None
        or wide.expires is not None
        or wide.match.query is not None
    ):
        return False
    some, others = wide.match, narrow.match
    same_paths = some.any_path or (
        others.paths is not None and {*others.paths} <= {*(some.paths or ())}
    )
    return (
        same_paths
        and (
            some.clients is None
            or (others.clients is not None and others.clients <= some.clients)
        )
        and (
            some.methods is None
            or (others.methods is not None and others.methods <= some.methods)
        )
        and all(
            _holds(asked, _ports(wide, scheme))
            for scheme in DEFAULT_PORTS
            for asked in _ports(narrow, scheme)
        )
        and _covers_hosts(some, others)
    )


def _share(some: frozenset[str] | None, others: frozenset[str] | None) -> bool:
    return some is None or others is None or not some.isdisjoint(others)


def _methods(entry: Entry) -> frozenset[str] | None:
    """Return the methods of an entry.

    Those of a deny may be in any case, so no method is out of the question.
    """
    is_deny = isinstance(entry, Rule) and entry.action is Action.DENY
    return None if is_deny else entry.match.methods


def _ports(entry: Entry, scheme: str) -> Iterable[range]:
    if entry.match.schemes is not None and scheme not in entry.match.schemes:
        return ()
    if isinstance(entry, Credential) and scheme != "https":
        return ()
    if entry.match.ports is not None:
        return entry.match.ports
    is_deny = isinstance(entry, Rule) and entry.action is Action.DENY
    default = DEFAULT_PORTS[scheme]
    return _EVERY_PORT if is_deny else (range(default, default + 1),)


def _share_a_port(some: Iterable[range], others: Iterable[range]) -> bool:
    return any(
        max(one.start, two.start) < min(one.stop, two.stop)
        for one, two in product(some, others)
    )


def _holds(asked: range, ports: Iterable[range]) -> bool:
    return any(held.start <= asked.start and asked.stop <= held.stop for held in ports)


def _share_a_path(some: Match, others: Match) -> bool:
    if some.any_path or others.any_path:
        return True
    return any(
        _may_both_match(one, two)
        for one, two in product(some.paths or (), others.paths or ())
    )


def _may_both_match(one: PathPattern, two: PathPattern) -> bool:
    """Whether one path can match both, by what they begin with; an expression is not
    looked into.
    """
    if not (one.is_glob and two.is_glob):
        return True
    return any(
        _begin_alike(one.parts(reading), two.parts(reading)) for reading in Reading
    )


def _begin_alike(one: tuple[str, ...], two: tuple[str, ...]) -> bool:
    some, others = ("" if parts[0] in _WILDCARDS else parts[0] for parts in (one, two))
    if len(one) == len(two) == 1 and some and others:
        return some == others
    return some.startswith(others) or others.startswith(some)


def _share_a_host(some: Match, others: Match, lists: Mapping[str, HostList]) -> bool:
    if some.any_host or others.any_host or (some.lists and others.lists):
        return True
    return (
        any(
            one.overlaps(two)
            for one, two in product(some.hosts or (), others.hosts or ())
        )
        or any(
            _may_hold(lists[name], pattern)
            for name, pattern in product(some.lists or (), others.hosts or ())
        )
        or any(
            _may_hold(lists[name], pattern)
            for name, pattern in product(others.lists or (), some.hosts or ())
        )
    )


def _may_hold(hosts: HostList, pattern: HostPattern) -> bool:
    """Whether a list can hold a host of a pattern; of a wildcard or a network, that is
    not looked up.
    """
    return pattern.form is not HostForm.EXACT or Host(pattern.name) in hosts


def _covers_hosts(wide: Match, narrow: Match) -> bool:
    if wide.any_host:
        return True
    if narrow.any_host or not {*(narrow.lists or ())} <= {*(wide.lists or ())}:
        return any(pattern.form is HostForm.ANY for pattern in wide.hosts or ())
    return all(
        any(one.covers(two) for one in wide.hosts or ()) for two in narrow.hosts or ()
    )
