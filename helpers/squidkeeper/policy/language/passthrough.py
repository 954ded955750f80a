"""What only an allow can have, and `tls: passthrough`: what cannot stand beside it, in
a rule and a policy.

A tunnel that passes through shows no path, method, query or header. So whatever would
have to see one for the same host is a fault: the tunnel would be bumped, or the entry
would have no effect.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.host_lists import HostList
from squidkeeper.policy.language.hosts import HostForm, HostPattern
from squidkeeper.policy.language.model import (
    Action,
    Credential,
    Match,
    Policy,
    Rewrite,
    Route,
    Rule,
)
from squidkeeper.policy.url import DEFAULT_PORTS, Host

Entry = Rule | Rewrite | Credential

_ALLOW_ONLY = (
    (Action.DENY, "a deny", {"tls", "websocket", "connections", "headers", "meter"}),
    (
        Action.ASK,
        "an ask",
        {"tls", "websocket", "connections", "headers", "strip", "private", "meter"},
    ),
)
_NOT_BESIDE = {
    "paths": "no path is seen in the tunnel",
    "query": "no query is seen in the tunnel",
    "methods": "no method is seen in the tunnel",
    "schemes": "only https has a tunnel, so it says nothing",
    "lists": "expected the hosts themselves, in hosts",
    "strip": "no header is seen in the tunnel",
    "headers": "no header is seen in the tunnel",
    "connections": "no request is seen in the tunnel",
    "websocket": "upgrades in the tunnel pass unseen",
    "body": "no body is seen in the tunnel",
    "meter": "no answer is seen in the tunnel",
}
_ONE_OF_BOTH = "remove {!r}, or remove 'tls' so that each request is decided"
_APART = "expected other hosts, ports or clients"
_HTTPS = "https"
_EVERY_PORT = (range(1, 1 << 16),)


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find what a deny or an ask cannot have, and what cannot stand beside `tls`."""
    for document in documents:
        for _, entry, steps in entries(document, "rules"):
            for action, kind, keys in _ALLOW_ONLY:
                for key in keys & entry.keys() if entry.get("action") == action else ():
                    message = f"{key!r} in {kind}, expected it in an allow only"
                    yield Fault(
                        document.locate((*steps, key), key=True),
                        FaultCode.ALLOW_ONLY,
                        message,
                    )
            if entry.get("action") != Action.ALLOW or "tls" not in entry:
                continue
            for key in _NOT_BESIDE.keys() & entry.keys():
                message = f"{key!r} beside tls: passthrough: {_NOT_BESIDE[key]}; {_ONE_OF_BOTH.format(key)}"
                yield Fault(
                    document.locate((*steps, key), key=True),
                    FaultCode.PASSTHROUGH_CONFLICT,
                    message,
                )
            if "hosts" not in entry:
                message = "tls: passthrough without 'hosts', expected the hosts whose tunnels pass through"
                yield Fault(
                    document.locate(steps), FaultCode.PASSTHROUGH_CONFLICT, message
                )


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find the entries that need to see requests in a tunnel which a rule passes
    through.
    """
    for position, rule in enumerate(policy.rules):
        if rule.passthrough:
            for what, entry, remedy in _seeing(policy, position):
                if overlap(rule, entry, policy.lists):
                    seer = f"{what} {entry.name!r} ({entry.location}) has to see the requests to some of its hosts"
                    message = f"rule {rule.name!r} passes tunnels through, but the {seer}; {_APART}{remedy}"
                    yield Fault(rule.location, FaultCode.PASSTHROUGH_CONFLICT, message)


def _seeing(policy: Policy, position: int) -> Iterator[tuple[str, Entry, str]]:
    yield from (
        ("rule above it,", rule, ", or this rule above that one")
        for rule in policy.rules[:position]
        if not rule.certain
    )
    yield from (("rewrite", rewrite, "") for rewrite in policy.rewrites)
    yield from (("credential", credential, "") for credential in policy.credentials)


def overlap(rule: Rule, other: Entry | Route, lists: Mapping[str, HostList]) -> bool:
    """Whether both can be for one https request.

    Clients with different names count as different.
    """
    one, two = rule.match, other.match
    if two.schemes is not None and _HTTPS not in two.schemes:
        return False
    if (
        one.clients is not None
        and two.clients is not None
        and one.clients.isdisjoint(two.clients)
    ):
        return False
    return _share_a_port(_ports(rule), _ports(other)) and _share_a_host(
        one.hosts or (), two, lists
    )


def _ports(entry: Entry | Route) -> Iterable[range]:
    if entry.match.ports is not None:
        return entry.match.ports
    is_deny = isinstance(entry, Route) or (
        isinstance(entry, Rule) and entry.action is Action.DENY
    )
    default = DEFAULT_PORTS[_HTTPS]
    return _EVERY_PORT if is_deny else (range(default, default + 1),)


def _share_a_port(some: Iterable[range], others: Iterable[range]) -> bool:
    return any(
        max(one.start, two.start) < min(one.stop, two.stop)
        for one, two in product(some, others)
    )


def _share_a_host(
    patterns: Iterable[HostPattern], match: Match, lists: Mapping[str, HostList]
) -> bool:
    if match.any_host or any(
        one.overlaps(two) for one, two in product(patterns, match.hosts or ())
    ):
        return True
    return any(
        _may_hold(lists[name], pattern)
        for name, pattern in product(match.lists or (), patterns)
    )


def _may_hold(hosts: HostList, pattern: HostPattern) -> bool:
    """Whether a list can hold a host of a pattern; of a wildcard or a network, that is
    not looked up.
    """
    return pattern.form is not HostForm.EXACT or Host(pattern.name) in hosts
