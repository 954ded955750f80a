"""`tls: passthrough`: what else in a policy keeps it from passing tunnels through.

A tunnel that passes through shows no path, method, query or header. So whatever would
have to see one for the same host is a fault: the tunnel would be bumped, or the entry
would have no effect.
"""

from collections.abc import Iterator
from dataclasses import replace

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.matching.table import overlap
from squidkeeper.policy.language.model import Entry, Match, Policy, Rule

_APART = "expected other hosts, ports or clients"
_HTTPS = frozenset({"https"})


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find the entries that need to see requests in a tunnel which a rule passes
    through.
    """
    for position, rule in enumerate(policy.rules):
        if rule.passthrough:
            tunnels = in_tunnels(rule)
            for what, entry, remedy in _seeing(policy, position):
                if overlap(tunnels, entry, policy.lists):
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


def in_tunnels(rule: Rule) -> Rule:
    """Return a rule that is for the tunnels of another one: https, whatever the method
    and URL.
    """
    match = rule.match
    seen = Match(
        clients=match.clients,
        hosts=match.hosts,
        lists=match.lists,
        schemes=_HTTPS,
        ports=match.ports,
    )
    return replace(rule, match=seen)
