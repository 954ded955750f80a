"""The matching fields of an entry, written as in a policy."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from squidkeeper.policy.language.model import Match
from squidkeeper.policy.language.queries import QueryPattern


class _Written(Protocol):
    @property
    def text(self) -> str: ...


def written(match: Match) -> dict[str, list[str]]:
    """Write the fields that an entry has, by their names, in the order of `Match`."""
    values = {name: getattr(match, name) for name in WRITERS}
    return {
        name: WRITERS[name](value)
        for name, value in values.items()
        if value is not None
    }


def _texts(patterns: Iterable[_Written]) -> list[str]:
    return [pattern.text for pattern in patterns]


def _ports(ranges: Iterable[range]) -> list[str]:
    return [
        str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
        for ports in ranges
    ]


def _query(patterns: Iterable[QueryPattern]) -> list[str]:
    return [f"{pattern.key}={pattern.pattern}" for pattern in patterns]


WRITERS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "clients": sorted,
    "hosts": _texts,
    "lists": list,
    "schemes": sorted,
    "ports": _ports,
    "methods": sorted,
    "paths": _texts,
    "query": _query,
    "urls": _texts,
}
