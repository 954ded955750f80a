"""The matching fields in one table: how each is written, and how two entries compare
by it.

Where that is not known, entries overlap, and none covers another.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.matching.host_fields import cover_hosts, share_a_host
from squidkeeper.policy.language.matching.path_fields import cover_paths, share_a_path
from squidkeeper.policy.language.matching.port_ranges import cover_ports, share_a_port
from squidkeeper.policy.language.model import AnyEntry, Match, Rule, is_deny
from squidkeeper.policy.language.queries import QueryPattern

Lists = Mapping[str, HostList]


class _Written(Protocol):
    @property
    def text(self) -> str: ...


def _always(*_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class MatchingField:
    """A matching field.

    `overlaps` tells whether one request can be for both entries, `covers` whether the
    first is for every request of the second; both as far as this field goes. `lists`
    are compared with `hosts`, and `schemes` with `ports`.
    """

    written: Callable[[Any], list[str]]
    overlaps: Callable[[AnyEntry, AnyEntry, Lists], bool] = _always
    covers: Callable[[AnyEntry, AnyEntry], bool] = _always


def written(match: Match) -> dict[str, list[str]]:
    """Write the fields that an entry has, by their names, in the order of `Match`."""
    values = {name: getattr(match, name) for name in FIELDS}
    return {
        name: FIELDS[name].written(value)
        for name, value in values.items()
        if value is not None
    }


def overlap(one: AnyEntry, two: AnyEntry, lists: Lists) -> bool:
    """Whether both can be for one request.

    Clients with different names count as different.
    """
    return all(field.overlaps(one, two, lists) for field in FIELDS.values())


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether a rule is for every request of another one, as long as that one is."""
    return outlasts(wide, narrow) and covers_by(FIELDS, wide, narrow)


def covers_by(names: Iterable[str], wide: AnyEntry, narrow: AnyEntry) -> bool:
    """Whether an entry is for every request of another one, as far as some fields
    go.
    """
    return all(FIELDS[name].covers(wide, narrow) for name in names)


def outlasts(wide: Rule, narrow: Rule) -> bool:
    """Whether a rule matches at each time at which another one does."""
    if wide.when is not None and wide.when != narrow.when:
        return False
    return wide.expires is None or (
        narrow.expires is not None and narrow.expires <= wide.expires
    )


# --- sets of names --------------------------------------------------------------------


def _share(some: frozenset[str] | None, others: frozenset[str] | None) -> bool:
    return some is None or others is None or not some.isdisjoint(others)


def _is_within(narrow: frozenset[str] | None, wide: frozenset[str] | None) -> bool:
    return wide is None or (narrow is not None and narrow <= wide)


def share_a_client(one: AnyEntry, two: AnyEntry, _: object = None) -> bool:
    """Whether a client may be one of both."""
    return _share(one.match.clients, two.match.clients)


def _cover_clients(wide: AnyEntry, narrow: AnyEntry) -> bool:
    return _is_within(narrow.match.clients, wide.match.clients)


def _share_a_method(one: AnyEntry, two: AnyEntry, _: Lists) -> bool:
    """Whether some method is one of both; those of a deny may be in any case."""
    if is_deny(one) or is_deny(two):
        return True
    return _share(one.match.methods, two.match.methods)


def _cover_methods(wide: AnyEntry, narrow: AnyEntry) -> bool:
    if wide.match.methods is not None and is_deny(narrow) and not is_deny(wide):
        return False  # the deny is for the same methods in another case, too
    return _is_within(narrow.match.methods, wide.match.methods)


# --- queries and URLs -----------------------------------------------------------------


def _cover_query(wide: AnyEntry, narrow: AnyEntry) -> bool:
    if wide.match.query is None:
        return True
    # a deny holds for one value that matches, an allow for all
    holds_for_less = is_deny(narrow) and not is_deny(wide)
    return wide.match.query == narrow.match.query and not holds_for_less


def _cover_urls(wide: AnyEntry, narrow: AnyEntry) -> bool:
    return wide.match.urls is None or wide.match.urls == narrow.match.urls


def _texts(patterns: Iterable[_Written]) -> list[str]:
    return [pattern.text for pattern in patterns]


def _port_texts(ranges: Iterable[range]) -> list[str]:
    return [
        str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
        for ports in ranges
    ]


def _query_texts(patterns: Iterable[QueryPattern]) -> list[str]:
    return [f"{pattern.key}={pattern.pattern}" for pattern in patterns]


FIELDS: Final[Mapping[str, MatchingField]] = {
    "clients": MatchingField(sorted, share_a_client, _cover_clients),
    "hosts": MatchingField(_texts, share_a_host, cover_hosts),
    "lists": MatchingField(list),
    "schemes": MatchingField(sorted),
    "ports": MatchingField(_port_texts, share_a_port, cover_ports),
    "methods": MatchingField(sorted, _share_a_method, _cover_methods),
    "paths": MatchingField(_texts, share_a_path, cover_paths),
    "query": MatchingField(_query_texts, _always, _cover_query),
    "urls": MatchingField(_texts, _always, _cover_urls),
}
