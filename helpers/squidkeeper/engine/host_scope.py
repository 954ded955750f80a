"""The decision at host scope (floor 3): as far as it goes for every URL of a host."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from datetime import datetime

from squidkeeper.engine.compiled_policy import CompiledPolicy, HostMatch, decision_of, holding, in_force
from squidkeeper.engine.decision import Decision, deny
from squidkeeper.policy.forms import QueryParameters
from squidkeeper.policy.model import Action, Rewrite, Rule
from squidkeeper.url import Host

_NOT_PASSED_THROUGH = deny(
    "invalid-request", "A CONNECT inside a tunnel is not allowed. No rule passes this tunnel through."
)


def decide_host(policy: CompiledPolicy, match: HostMatch, at: datetime) -> Decision:
    """Decide for every URL of the host; for a CONNECT, whether the tunnel opens, and whether it is spliced."""
    candidates = match.candidates
    if match.facts.host.address is not None:  # hosts with the same candidates can be private or not
        decision = _decide(policy, match, at)
    else:
        span = bisect_right(candidates.lapses, at) if candidates.lapses else 0
        known = candidates.at_host.get(span)
        if known is None:
            known = candidates.at_host[span] = _decide(policy, match, at)
        decision = known
    if match.spliced and decision.allowed and not decision.passthrough:
        return _NOT_PASSED_THROUGH
    return decision


def first_rule(policy: CompiledPolicy, match: HostMatch, at: datetime) -> Rule | None:
    """Find the first rule for the host, whatever the method and the URL."""
    any_method = match.facts._replace(method=None)
    return next(in_force(holding(policy.source.rules, match.candidates.rule_positions, any_method), at), None)


def first_rewrite(policy: CompiledPolicy, match: HostMatch) -> Rewrite | None:
    """Find the first rewrite for the host, whatever the method and the URL."""
    positions, any_method = policy.rewrites.positions(match.facts.host), match.facts._replace(method=None)
    return next(holding(policy.source.rewrites, positions, any_method), None)


def deny_private(host: Host, opener: str) -> Decision:
    """Deny a private address, which the rule or rewrite that leads there does not allow."""
    return deny("private-address", f"{host.text} is a private address, which {opener} does not open (private: true).")


def checked_private(decision: Decision, host: Host) -> Decision:
    """Deny what a decision allows where the host is a private address and the rule is not for private ones."""
    if host.private and decision.allowed and not decision.private:
        return deny_private(host, f"the rule {decision.rule}")
    return decision


def _decide(policy: CompiledPolicy, match: HostMatch, at: datetime) -> Decision:
    if match.facts.method is None:
        return _decide_tunnel(match, at)
    decision = _decide_any_url(policy, match, at)
    if not decision.allowed:
        return decision
    unrestricted = _is_unrestricted(policy, match, at)
    return replace(
        decision,
        may_rewrite=bool(match.candidates.rewrites),
        may_inject=bool(match.candidates.credentials),
        may_add_parameters=any(isinstance(one.form, QueryParameters) for one in match.candidates.credentials),
        unrestricted=unrestricted,
        credential_varies=unrestricted and _credential_varies(policy, match),
        upstream=match.candidates.upstream,
        needs_headers=policy.needs_headers(match.candidates),
    )


def _decide_any_url(policy: CompiledPolicy, match: HostMatch, at: datetime) -> Decision:
    rule = next(in_force(match.candidates.rules, at), None)
    if rule is None:
        return checked_private(match.candidates.default, match.facts.host)
    if rule.match.any_url:
        return checked_private(policy.decision_by(rule), match.facts.host)
    return Decision(Action.ALLOW, rule.name, "The URL decides.", rule.location, private=rule.private, needs_url=True)


def _decide_tunnel(match: HostMatch, at: datetime) -> Decision:
    """Decide a tunnel: the first certain rule, unless an allow that is not certain comes before it."""
    allows: list[Rule] = []  # those that a request inside could match
    last: Rule | None = None
    for last in in_force(match.candidates.rules, at):
        if last.action is Action.ALLOW:
            allows.append(last)
        if last.certain:
            break
    else:
        last = None
    rule = allows[0] if allows else last
    private = any(one.private for one in allows)
    decision = decision_of(rule, private=private) if rule else match.candidates.default
    decision = checked_private(decision, match.facts.host)
    if not decision.allowed:
        return decision
    rewrites, credentials = bool(match.candidates.rewrites), bool(match.candidates.credentials)
    return replace(
        decision,
        may_rewrite=rewrites,
        may_inject=credentials,
        passthrough=not (rewrites or credentials) and _is_passed_through(match, at),
        websocket=False,
        strip=None,
        upstream=match.candidates.upstream,
    )


def _is_passed_through(match: HostMatch, at: datetime) -> bool:
    """Tell whether the first rule for a tunnel passes it through: what stands above, even a path, has to be seen."""
    first = next(in_force(match.candidates.rules, at), None)
    return first is not None and first.passthrough


def _is_unrestricted(policy: CompiledPolicy, match: HostMatch, at: datetime) -> bool:
    """Tell whether the first rule for the host allows every method and path, and no rewrite is for any of them."""
    if first_rewrite(policy, match) is not None:
        return False
    rule = first_rule(policy, match, at)
    if rule is None:
        return policy.source.default_action is Action.ALLOW
    return rule.certain and rule.action is Action.ALLOW


def _credential_varies(policy: CompiledPolicy, match: HostMatch) -> bool:
    """Tell whether another method, path or query of the host can get other credentials, as by a sealed token."""
    if policy.source.sealing_keys:
        return True
    credentials = policy.injectable(match.facts._replace(method=None))
    return not all(credential.match.any_request for credential in credentials)
