"""What a rule with `observe: true` would have decided: recorded, and of no effect on
any verdict.

The first rule that matches is the one that counts. If it observes, its verdict is
observed. If it decides, nothing is.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

from squidkeeper.policy.engine.compiled_policy import (
    CompiledPolicy,
    HostMatch,
    RulesInForce,
)
from squidkeeper.policy.engine.decision import Decision
from squidkeeper.policy.engine.fields import UrlFacts, url_test
from squidkeeper.policy.engine.precedence import first_rule
from squidkeeper.policy.language.model import Action, Rule


def observe_host(match: HostMatch, decision: Decision, now: RulesInForce) -> Decision:
    """Add what is observed about every URL of a host, or that it depends on the URL."""
    rule = next(iter(now.observing or ()), None)
    if (
        rule is None
        or not rule.observe
        or (rule.body is not None and not decision.allowed)
    ):
        return decision
    if not rule.any_url:
        return replace(decision, observed=None, observes_url=True)
    return replace(decision, observed=_observed_by(rule, match))


def observe_tunnel(match: HostMatch, decision: Decision, now: RulesInForce) -> Decision:
    """Add what is observed about a tunnel: a deny that is not certain is passed over,
    as in deciding.
    """
    for rule in now.observing or ():
        if rule.action is not Action.DENY or rule.certain:
            opens = rule.action is Action.ASK  # so that the URL is known
            return replace(
                decision, observed=None if opens else _observed_by(rule, match)
            )
    return decision


def observe_url(
    policy: CompiledPolicy,
    match: HostMatch,
    decision: Decision,
    readings: Sequence[UrlFacts],
    at: datetime,
    spent: Collection[str] = (),
) -> Decision:
    """Add what is observed about one URL, where anything observes; `spent` names grants
    without uses left.

    Of a path with several readings: a deny if one of them would have been denied, an
    allow if all would be allowed.
    """
    now = policy.rules_in_force(match.candidates, at)
    rules, grants = now.observing or (), now.unspent(spent)
    method = match.facts.method if now.reading else None
    firsts = [first_rule(rules, grants, url_test(url, method)) for url in readings]
    observed = [_observed_by(rule, match) for rule in firsts]
    denied = next(
        (
            verdict
            for verdict in observed
            if verdict is not None and verdict.startswith("deny:")
        ),
        None,
    )
    if denied is not None or not all(_allows(rule, match) for rule in firsts):
        return policy.with_observed(decision, denied)
    return policy.with_observed(decision, next(filter(None, observed), None))


def _observed_by(rule: Rule | None, match: HostMatch) -> str | None:
    """Write what is observed where a rule is the first that matches; None stands for
    the default.
    """
    if rule is None:  # a private address is denied, whether the default observes or not
        return None if match.facts.host.private else match.candidates.default.observed
    if (
        not rule.observe or rule.body is not None
    ):  # what depends on the body is observed with it
        return None
    if rule.action is not Action.ALLOW:
        return f"deny:{rule.name}"
    return f"allow:{rule.name}" if _allows(rule, match) else None


def _allows(rule: Rule | None, match: HostMatch) -> bool:
    """Whether a request would be allowed by a rule: a private address needs `private:
    true`.
    """
    if rule is None:
        return match.candidates.default.allowed and not match.facts.host.private
    return rule.action is Action.ALLOW and (
        rule.private or not match.facts.host.private
    )
