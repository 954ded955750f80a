"""Which connection to the origin a tunnel takes: its mode, and why.

Clients share connections only where each rule says so, and where no client can send a
body on one. An origin that writes more than its answer, or ignores a body, gives one
client what is for another.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from squidkeeper.policy.engine.compiled_policy import (
    Candidates,
    CompiledPolicy,
    HostMatch,
    RulesInForce,
)
from squidkeeper.policy.engine.decision import OUTDATED, Decision, TunnelUse
from squidkeeper.policy.engine.fields import holds_for_host
from squidkeeper.policy.language.model import (
    DIRECT,
    SHARED,
    Action,
    HostFacts,
    Policy,
    Rule,
)
from squidkeeper.policy.protocol.request import CONNECT, Malformed, Request, TunnelMode


def may_share(policy: Policy) -> bool:
    """Whether a host may be shared: whether a rule says so."""
    return any(rule.connections == SHARED for rule in policy.rules)


def mode_in_force(decision: Decision, *, shares: bool) -> TunnelMode:
    """Return the mode that a CONNECT gets by the decision about it; `shares` tells
    whether Squid shares connections.
    """
    return (
        TunnelMode.OWN
        if decision.mode is TunnelMode.SHARED and not shares
        else decision.mode
    )


def checked_tunnel(
    decision: Decision, request: Request | Malformed, *, shares: bool
) -> Decision:
    """Deny an allowed request in a tunnel of another mode than it needs.

    What may be shared may come in any.
    """
    if (
        isinstance(request, Malformed)
        or request.tunnel is None
        or request.method == CONNECT
        or not decision.allowed
    ):
        return decision
    needed = mode_in_force(decision, shares=shares)
    return decision if needed in (request.tunnel, TunnelMode.SHARED) else OUTDATED


def tunnel_use(policy: CompiledPolicy, match: HostMatch, at: datetime) -> TunnelUse:
    """Return the mode of the open tunnel of a request, whatever its method.

    Over plain http `SHARED` means that the requests to a host share connections.
    """
    facts, candidates = match.facts, match.candidates
    if facts.method is not None:
        facts = facts._replace(method=None)
        candidates = policy.candidates_for(facts)
    now = policy.rules_in_force(candidates, at)
    if now.tunnel is None:
        now.tunnel = _tunnel_use(policy, facts, candidates, now)
    return now.tunnel


def _tunnel_use(
    policy: CompiledPolicy, facts: HostFacts, candidates: Candidates, now: RulesInForce
) -> TunnelUse:
    if facts.scheme == "https" and candidates.rewrites:
        return TunnelUse(
            TunnelMode.FIRST, f"the rewrite {candidates.rewrites[0].name} may apply"
        )
    asker = _asker(candidates, now)
    if facts.scheme == "https" and asker:
        return TunnelUse(TunnelMode.FIRST, f"{asker} may ask a person")
    obstacle = next(_obstacles(policy, facts, candidates, now), None)
    if obstacle is not None:
        return TunnelUse(TunnelMode.OWN, obstacle)
    return TunnelUse(TunnelMode.SHARED, "each rule has connections: shared")


def _asker(candidates: Candidates, now: RulesInForce) -> str | None:
    for rule in now.rules:
        if rule.action is Action.ASK:
            return f"the rule {rule.name}"
        if rule.certain:
            return None
    return "the default" if candidates.default.asks else None


def _obstacles(
    policy: CompiledPolicy, facts: HostFacts, candidates: Candidates, now: RulesInForce
) -> Iterator[str]:
    """Say what keeps requests off shared connections."""
    yield from (f"the rule {rule.name} reads bodies" for rule in now.reading)
    yield from _obstacles_by_rules(policy, candidates, now)
    yield from (
        f"the client {name} has connections: own"
        for name in facts.clients
        if name in policy.own_clients
    )
    yield from (
        f"the credential {credential.name} may be injected"
        for credential in candidates.credentials
    )
    if policy.source.sealing_keys:
        yield "the policy opens sealed tokens"
    if candidates.upstream is not None and candidates.upstream.key != DIRECT:
        yield f"the upstream {candidates.upstream.name} may be a parent proxy"
    yield from _obstacles_by_others(policy, facts)


def _obstacles_by_rules(
    policy: CompiledPolicy, candidates: Candidates, now: RulesInForce
) -> Iterator[str]:
    # by the rules so far, whatever the URL
    undecided = policy.every_method
    for rule in now.rules:
        if rule.action is not Action.DENY:
            yield from _obstacles_of(rule, undecided)
        if rule.any_url:
            undecided = tuple(
                method for method in undecided if not _names(rule, method)
            )
        if rule.certain:
            break
    for grant in now.grants:
        yield from _obstacles_of(grant, undecided)
    if undecided and (candidates.default.allowed or candidates.default.asks):
        yield "the default allows every method"


def _obstacles_of(rule: Rule, methods: Iterable[str]) -> Iterator[str]:
    """Say what keeps the requests of these methods that a rule allows off shared
    connections.

    A rule with `connections: shared` allows no body and no WebSocket
    (language/sharing.py).
    """
    if rule.connections != SHARED and any(_names(rule, one) for one in methods):
        yield f"the rule {rule.name} does not have connections: shared"


def _obstacles_by_others(policy: CompiledPolicy, facts: HostFacts) -> Iterator[str]:
    """Say how any client can send the origin a body, or what is not encrypted, on a
    connection that Squid keeps.

    A tunnel with a connection of its own leaves none. Schedules and the order of rules
    make no difference: idle connections outlive an edit.
    """
    if policy.may_be_fetched_for(facts.host):
        yield "a rewrite is for this host, or leads to it"
    source = policy.source
    everyone = facts._replace(clients=source.client_names, session=None)
    rules = [source.rules[position] for position in policy.rules.positions(facts.host)]
    rules += (
        source.grants[position] for position in policy.grants.positions(facts.host)
    )
    rules = [
        rule for rule in rules if rule.action is not Action.DENY and not rule.observe
    ]
    opening = [rule for rule in rules if holds_for_host(rule, everyone)]
    yield from (
        f"the rule {rule.name} asks a person"
        for rule in opening
        if rule.action is Action.ASK
    )
    if facts.scheme == "http":
        for rule in opening:
            yield from _obstacles_of(rule, policy.every_method)
    else:
        # Squid's pool knows address, port and name, but no scheme: TLS would give way
        # to a connection without it.
        plain = [
            rule
            for rule in rules
            if holds_for_host(rule, everyone._replace(scheme="http"))
        ]
        yield from (
            f"the rule {rule.name} allows plain http on this port" for rule in plain
        )
    if source.default_action is Action.ALLOW or source.ask_default:
        yield "the default allows plain http on this port"


def _names(rule: Rule, method: str) -> bool:
    return rule.match.methods is None or method in rule.match.methods
