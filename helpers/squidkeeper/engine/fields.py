"""The fields by which entries match, each with what it takes to hold (floor 3).

One table serves matching and explaining, so that what is explained is what is enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from squidkeeper.policy.model import Action, Credential, Match, Rewrite, Rule
from squidkeeper.policy.queries import parse_query
from squidkeeper.url import DEFAULT_PORTS, Host, ReadPath

Entry = Rule | Rewrite | Credential


class Facts(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """What is known of a request without its URL.

    `method` is None for the CONNECT of a tunnel, where any may follow, and empty for one that no entry names;
    one that differs from a named one in nothing but its case is in lower case.
    """

    clients: frozenset[str]
    method: str | None
    scheme: str
    host: Host
    port: int


class Asked(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """What the URL adds: its path in one reading, and its query."""

    path: ReadPath
    query: str | None


def is_deny(entry: Entry) -> bool:
    """Tell whether an entry closes: ports and queries left open close more, and open less."""
    return isinstance(entry, Rule) and entry.action is Action.DENY


def covers_default_port(scheme: str, port: int) -> bool:
    """Tell whether a port is the one that an allow opens where it names none."""
    return DEFAULT_PORTS[scheme] == port


def _clients(match: Match, facts: Facts, _deny: bool) -> bool:
    return match.clients is None or not match.clients.isdisjoint(facts.clients)


def _schemes(match: Match, facts: Facts, _deny: bool) -> bool:
    return match.schemes is None or facts.scheme in match.schemes


def _ports(match: Match, facts: Facts, deny: bool) -> bool:
    if match.ports is None:
        return deny or covers_default_port(facts.scheme, facts.port)
    return any(facts.port in ports for ports in match.ports)


def _methods(match: Match, facts: Facts, deny: bool) -> bool:
    if match.methods is None or facts.method is None or facts.method in match.methods:
        return True
    return deny and facts.method.upper() in match.methods  # some servers take `patch` for PATCH


def _paths(match: Match, asked: Asked, _deny: bool) -> bool:
    if match.paths is None:
        return True
    return any(pattern.match(asked.path) is not None for pattern in match.paths)


def _query(match: Match, asked: Asked, deny: bool) -> bool:
    if match.query is None:
        return True
    values = parse_query(asked.query)
    if deny:
        return all(pattern.matches_one(values) for pattern in match.query)
    return all(pattern.matches_all(values) for pattern in match.query)


HOST_FIELDS: dict[str, Callable[[Match, Facts, bool], bool]] = {
    "clients": _clients,
    "schemes": _schemes,
    "ports": _ports,
    "methods": _methods,
}
URL_FIELDS: dict[str, Callable[[Match, Asked, bool], bool]] = {"paths": _paths, "query": _query}


def holds_for_host(entry: Entry, facts: Facts) -> bool:
    """Tell whether every field that needs no URL holds; the host itself is the index's business."""
    deny = is_deny(entry)
    return all(holds(entry.match, facts, deny) for holds in HOST_FIELDS.values())


def holds_for_url(entry: Entry, asked: Asked) -> bool:
    """Tell whether every field that needs the URL holds."""
    match, deny = entry.match, is_deny(entry)
    for holds in URL_FIELDS.values():  # noqa: SIM110 - all() costs as much again, for each entry of each line
        if not holds(match, asked, deny):
            return False
    return True


def failing_fields(entry: Entry, facts: Facts, asked: Asked | None) -> Iterator[str]:
    """Name the fields that do not hold."""
    deny = is_deny(entry)
    yield from (name for name, holds in HOST_FIELDS.items() if not holds(entry.match, facts, deny))
    if asked is not None:
        yield from (name for name, holds in URL_FIELDS.items() if not holds(entry.match, asked, deny))
