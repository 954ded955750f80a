"""`connections: shared`: what keeps clients from sharing the connections of such a
rule.

The engine decides for each host (engine/tunnels.py). Here each entry counts that
overlaps with the rule.
"""

from collections.abc import Iterator
from dataclasses import replace

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.methods import BODILESS
from squidkeeper.policy.language.model import DIRECT, Action, Policy, Rewrite, Rule
from squidkeeper.policy.language.passthrough import overlap
from squidkeeper.policy.url import bracketed, parse_authority

_REMEDY = "expected other hosts, ports or clients, or connections: shared left out"
_NOT_BESIDE = (
    "tls: passthrough, websocket: true and private: true cannot stand beside it"
)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find what keeps connections from being shared where a rule says that they are."""
    for rule in policy.rules:
        if rule.connections == "shared":
            for obstacle in _obstacles(policy, rule):
                message = f"rule {rule.name!r} has connections: shared, but {obstacle}"
                yield Fault(rule.location, FaultCode.CONNECTIONS_CONFLICT, message)


def _obstacles(policy: Policy, rule: Rule) -> Iterator[str]:
    if rule.match.hosts is None:
        yield "it names no hosts; expected the hosts themselves, in hosts"
    if opened := _opened(rule):
        yield f"it allows {opened}; expected methods of {', '.join(sorted(BODILESS))}"
    if rule.passthrough or rule.websocket or rule.private:
        yield _NOT_BESIDE
    if policy.default is not Action.DENY or policy.sealing_keys:
        yield "the default allows or asks, or the policy opens sealed tokens; expected neither"
    yield from _obstacles_by_entries(policy, rule)


def _obstacles_by_entries(policy: Policy, rule: Rule) -> Iterator[str]:
    of_all = replace(rule, match=replace(rule.match, clients=None))
    for other in policy.rules:
        asks = other.action is Action.ASK
        opens = asks or (
            other.action is Action.ALLOW and not other.observe and _opened(other)
        )
        if (
            other is not rule
            and opens
            and overlap(of_all if asks else rule, other, policy.lists)
        ):
            what = "asks a person about" if asks else f"allows {_opened(other)} at"
            yield f"the rule {other.name!r} ({other.location}) {what} some of its hosts; {_REMEDY}"
    rewritten = (
        one
        for one in policy.rewrites
        if _leads_to(rule, one) or overlap(of_all, one, policy.lists)
    )
    credentials = (
        credential
        for credential in policy.credentials
        if overlap(rule, credential, policy.lists)
    )
    parents = (
        route
        for route in policy.upstreams
        if route.key != DIRECT and overlap(rule, route, policy.lists)
    )
    for kind, entries in (
        ("rewrite", rewritten),
        ("credential", credentials),
        ("upstream", parents),
    ):
        for entry in entries:
            yield f"the {kind} {entry.name!r} ({entry.location}) is for some of its hosts; {_REMEDY}"


def _leads_to(rule: Rule, rewrite: Rewrite) -> bool:
    if rewrite.redirect is not None:
        return False
    host = parse_authority(rewrite.target.authority.replace("{host}", "host"))[0]
    target = parse_host_pattern(bracketed(host))
    return "{host}" in rewrite.target.authority or any(
        pattern.overlaps(target) for pattern in rule.match.hosts or ()
    )


def _opened(rule: Rule) -> str:
    return (
        "every method"
        if rule.match.methods is None
        else ", ".join(sorted(rule.match.methods - BODILESS))
    )
