"""From what each client may have to the fewest rules that open just that."""

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from squidkeeper.change.learning.evidence import Evidence
from squidkeeper.change.learning.host_uses import READ, Openings
from squidkeeper.change.learning.path_shapes import pattern_of
from squidkeeper.policy.language.public_suffixes import registrable_domain
from squidkeeper.policy.url import DEFAULT_PORTS

_NAME_LENGTH: Final = 80


class Row(NamedTuple):
    """A rule to be: it opens each combination of what its fields list. `port` is None for the schemes' own."""

    clients: tuple[str, ...]
    hosts: tuple[str, ...]
    schemes: tuple[str, ...]
    port: int | None
    methods: tuple[str, ...]
    websocket: bool
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """A name that tells people what it opens, whichever host is first; other rows may have the same."""
        methods = [method.lower() for method in self.methods if method not in READ]
        return "-".join(
            [self._sites[:_NAME_LENGTH], *(["read"] if set(READ) & set(self.methods) else []), *methods[:3]]
        )

    @property
    def _sites(self) -> str:
        """The host, else the domain of the one owner; where hosts have several owners, the client that uses them."""
        hosts = [re.sub(r"^\*+\.", "", host) for host in self.hosts]
        owners = {registrable_domain(host) or host for host in hosts}
        if len(hosts) == 1:
            return hosts[0]
        if len(owners) == 1:
            return owners.pop()
        return f"{self.clients[0]}-sites" if len(self.clients) == 1 else "sites"


Rows = dict[Row, Evidence]


def rows(of_clients: Iterable[tuple[str, Openings]]) -> Rows:
    """Give the fewest rows that open to each client what it is given, and nothing else; the widely used first."""
    of_hosts: dict[str, Rows] = {}
    for client, openings in of_clients:
        for (place, shape), evidence in openings.items():
            port = None if place.port == DEFAULT_PORTS[place.scheme] else place.port
            paths = (pattern_of(shape),)
            row = Row((client,), (place.host,), (place.scheme,), port, place.methods, place.websocket, paths)
            of_hosts.setdefault(place.host, {})[row] = evidence
    merged: Rows = {}
    for of_host in of_hosts.values():
        orders = (("paths", "clients"), ("clients", "paths"))
        first, second = (_merged_in_turn(of_host, (*order, "methods", "schemes")) for order in orders)
        merged.update(first if len(first) <= len(second) else second)
    result = _merged(merged, "hosts")
    clients: dict[str, int] = {}
    for row, evidence in result.items():
        clients[row.hosts[0]] = max(evidence.clients, clients.get(row.hosts[0], 0))
    return dict(sorted(result.items(), key=lambda one: (-clients[one[0].hosts[0]], *_place(one[0]))))


def _merged_in_turn(some: Rows, fields: Iterable[str]) -> Rows:
    for field in fields:
        some = _merged(some, field)
    return some


def _merged(some: Rows, field: str) -> Rows:
    """Merge rows that differ in one field alone: together they open what each of them does."""
    values: dict[Row, set[str]] = {}
    evidence: Rows = {}
    for row, one in some.items():
        key = Row(**{**row._asdict(), field: ()})
        values.setdefault(key, set()).update(getattr(row, field))
        evidence[key] = evidence[key] + one if key in evidence else one
    sort = _SORTED.get(field, sorted)
    return {Row(**{**key._asdict(), field: tuple(sort(values[key]))}): one for key, one in evidence.items()}


def _methods(some: Iterable[str]) -> list[str]:
    return sorted(some, key=lambda method: (method not in READ, method))


_SORTED: Final[dict[str, Callable[[Iterable[str]], list[str]]]] = {"methods": _methods}


def _place(row: Row) -> tuple[object, ...]:
    port = row.port or 0
    return row.hosts[0].lstrip("*."), row.hosts, row.methods, row.schemes, port, row.websocket, row.clients, row.paths
