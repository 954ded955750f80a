"""The matching fields, each with what makes it hold.

One table serves deciding and explaining.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from squidkeeper.policy.language.model import (
    AnyEntry,
    Entry,
    HostFacts,
    Match,
    Rule,
    covers_every_port,
    is_deny,
)
from squidkeeper.policy.language.queries import parse_query
from squidkeeper.policy.url import DEFAULT_PORTS, ReadPath, sent


class UrlFacts(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """What the fields that need the URL are matched with: the path in one reading, the
    query, and the path as sent.
    """

    path: ReadPath
    query: str | None
    sent: str


def covers_default_port(scheme: str, port: int) -> bool:
    """Whether a port is the one that an allow without `ports` opens."""
    return DEFAULT_PORTS[scheme] == port


def _clients(match: Match, facts: HostFacts, _deny: bool) -> bool:
    return match.clients is None or not match.clients.isdisjoint(facts.clients)


def _schemes(match: Match, facts: HostFacts, _deny: bool) -> bool:
    return match.schemes is None or facts.scheme in match.schemes


def _ports(match: Match, facts: HostFacts, deny: bool) -> bool:
    if match.ports is None:
        return deny or covers_default_port(facts.scheme, facts.port)
    return any(facts.port in ports for ports in match.ports)


def _methods(match: Match, facts: HostFacts, deny: bool) -> bool:
    if match.methods is None or facts.method is None or facts.method in match.methods:
        return True
    # some servers take `patch` for PATCH
    return deny and facts.method.upper() in match.methods


def _paths(match: Match, url: UrlFacts, _deny: bool) -> bool:
    if match.paths is None:
        return True
    return any(pattern.match(url.path) is not None for pattern in match.paths)


def _query(match: Match, url: UrlFacts, deny: bool) -> bool:
    if match.query is None:
        return True
    values = parse_query(url.query)
    if deny:
        return all(pattern.matches_one(values) for pattern in match.query)
    return all(pattern.matches_all(values) for pattern in match.query)


def _urls(match: Match, url: UrlFacts, _deny: bool) -> bool:
    return match.urls is None or any(
        exact.matches(url.sent, url.query) for exact in match.urls
    )


HOST_FIELDS: dict[str, Callable[[Match, HostFacts, bool], bool]] = {
    "clients": _clients,
    "schemes": _schemes,
    "ports": _ports,
    "methods": _methods,
}
URL_FIELDS: dict[str, Callable[[Match, UrlFacts, bool], bool]] = {
    "paths": _paths,
    "query": _query,
    "urls": _urls,
}


def holds_for_host(entry: AnyEntry, facts: HostFacts) -> bool:
    """Whether every field that needs no URL holds; `HostIndex` matches the host."""
    deny = covers_every_port(entry)
    return all(holds(entry.match, facts, deny) for holds in HOST_FIELDS.values())


def holds_for_url(entry: Entry, url: UrlFacts) -> bool:
    """Whether every field that needs the URL holds."""
    match, deny = entry.match, is_deny(entry)
    for holds in URL_FIELDS.values():  # noqa: SIM110 - all() costs as much again, for each entry of each line
        if not holds(match, url, deny):
            return False
    return True


def url_test(url: UrlFacts, method: str | None) -> Callable[[Entry], bool]:
    """Return the test whether an entry holds for a URL; with `method`, also whether its
    `body` may hold there.
    """
    return (
        partial(holds_for_url, url=url)
        if method is None
        else partial(_may_hold, url=url, method=method)
    )


def _may_hold(entry: Entry, url: UrlFacts, method: str) -> bool:
    return holds_for_url(entry, url) and (
        not isinstance(entry, Rule) or body_may_hold(entry, url, method)
    )


def body_may_hold(rule: Rule, url: UrlFacts, method: str) -> bool:
    """Whether the `body` of a rule may hold for a request, by its method and URL."""
    if rule.body is None:
        return True
    # late: only a rule with `body` needs it
    from squidkeeper.policy.bodies.body_forms import (
        may_hold,
    )

    return may_hold(rule.body, method.upper(), sent(url.sent), url.query)


def names_host(match: Match, facts: HostFacts) -> bool:
    """Whether the hosts of an entry hold, once they have the values of a session;
    before, and of lists, `HostIndex` tells.
    """
    hosts = match.hosts
    if hosts is None or match.lists:
        return True
    return any(one.variable or one.matches(facts.host) for one in hosts)


def failing_fields(
    entry: Entry, facts: HostFacts, url: UrlFacts | None
) -> Iterator[str]:
    """Name the fields that do not hold."""
    deny = is_deny(entry)
    if facts.session is not None and not names_host(entry.match, facts):
        yield "hosts"
    yield from (
        name
        for name, holds in HOST_FIELDS.items()
        if not holds(entry.match, facts, deny)
    )
    if url is not None:
        yield from (
            name
            for name, holds in URL_FIELDS.items()
            if not holds(entry.match, url, deny)
        )
