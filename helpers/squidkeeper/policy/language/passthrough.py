"""`tls: passthrough`: what else in a policy keeps it from passing tunnels through.

A tunnel that passes through shows no path, method, query or header. So whatever would
have to see one for the same host is a fault: the tunnel would be bumped, or the entry
would have no effect.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from squidkeeper.base.faults import Fault, FaultCode
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

_APART = "expected other hosts, ports or clients"
_HTTPS = "https"
_EVERY_PORT = (range(1, 1 << 16),)


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
