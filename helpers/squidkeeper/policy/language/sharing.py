"""`connections: shared`: what a rule cannot have beside it, and what keeps its clients
from sharing connections.

The engine decides for each host (engine/tunnels.py). Here each entry counts that
overlaps with the rule.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.matching.host_fields import patterns_overlap
from squidkeeper.policy.language.matching.table import covers, overlap
from squidkeeper.policy.language.methods import BODILESS
from squidkeeper.policy.language.model import (
    DIRECT,
    SHARED,
    Action,
    AnyEntry,
    Policy,
    Rewrite,
    Rule,
)
from squidkeeper.policy.language.passthrough import in_tunnels
from squidkeeper.policy.url import bracketed, parse_authority

_SEEN_BY_NONE = (
    "tls: passthrough, websocket: true and private: true cannot stand beside it"
)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find what a rule cannot have beside `connections: shared`."""
    for rule in _sharing(policy):
        for obstacle in _obstacles(rule):
            message = f"rule {rule.name!r} has connections: shared, but {obstacle}"
            yield Fault(rule.location, FaultCode.CONNECTIONS_CONFLICT, message)


def not_shared(policy: Policy) -> Iterator[Fault]:
    """Warn about rules of the policy's own whose word has no effect."""
    for rule in _sharing(policy):
        if rule.preset is None:
            for obstacle in _obstacles_by_others(policy, rule):
                message = f"rule {rule.name!r} has connections: shared, but its clients share none: {obstacle}"
                yield Fault(rule.location, FaultCode.NOT_SHARED, message)


def _sharing(policy: Policy) -> Iterator[Rule]:
    return (rule for rule in policy.rules if rule.connections == SHARED)


def _obstacles(rule: Rule) -> Iterator[str]:
    if rule.match.hosts is None:
        yield "it names no hosts; expected the hosts that you trust, in hosts"
    if opened := _opened(rule):
        yield f"it allows {opened}; expected methods of {', '.join(sorted(BODILESS))}"
    if rule.passthrough or rule.websocket or rule.private:
        yield _SEEN_BY_NONE


def _obstacles_by_others(policy: Policy, rule: Rule) -> Iterator[str]:
    if policy.default is not Action.DENY:
        yield "the default allows or asks"
    if policy.sealing_keys:
        yield "the policy opens sealed tokens"
    tunnels = in_tunnels(rule)
    of_all = replace(tunnels, match=replace(tunnels.match, clients=None))
    asks = (
        other
        for other in policy.rules
        if other.action is Action.ASK and overlap(of_all, other, policy.lists)
    )
    rewrites = (
        one
        for one in policy.rewrites
        if _leads_to(rule, one) or overlap(of_all, one, policy.lists)
    )
    parents = [route for route in policy.upstreams if route.key != DIRECT]
    for kind, entries in (
        ("ask", asks),
        ("rule", _apart(policy, rule)),
        ("rewrite", rewrites),
        ("credential", _alike(policy, rule, policy.credentials)),
        ("upstream", _alike(policy, rule, parents)),
    ):
        for entry in entries:
            yield f"the {kind} {entry.name!r} ({entry.location}) is for some of its hosts"


def _apart(policy: Policy, rule: Rule) -> Iterator[AnyEntry]:
    """List the allows without the word that may decide for the rule's clients."""
    position = policy.rules.index(rule)
    others = [
        other
        for number, other in enumerate(policy.rules)
        if other.action is Action.ALLOW
        and not other.observe
        and other.connections != SHARED
        and (number < position or not covers(rule, _at_hosts_of(rule, other)))
    ]
    return _alike(policy, rule, others)


def _at_hosts_of(rule: Rule, other: Rule) -> Rule:
    return replace(
        other, match=replace(other.match, hosts=rule.match.hosts, lists=None)
    )


def _alike(
    policy: Policy, rule: Rule, entries: Iterable[AnyEntry]
) -> Iterator[AnyEntry]:
    """List the entries for the same hosts that are for all clients of a rule."""
    clients, tunnels = rule.match.clients, in_tunnels(rule)
    return (
        entry
        for entry in entries
        if entry.match.clients is None
        or (clients is not None and clients <= entry.match.clients)
        if overlap(tunnels, entry, policy.lists)
    )


def _leads_to(rule: Rule, rewrite: Rewrite) -> bool:
    if rewrite.redirect is not None:
        return False
    host = parse_authority(rewrite.target.authority.replace("{host}", "host"))[0]
    target = parse_host_pattern(bracketed(host))
    return "{host}" in rewrite.target.authority or any(
        patterns_overlap(pattern, target) for pattern in rule.match.hosts or ()
    )


def _opened(rule: Rule) -> str:
    return (
        "every method"
        if rule.match.methods is None
        else ", ".join(sorted(rule.match.methods - BODILESS))
    )
