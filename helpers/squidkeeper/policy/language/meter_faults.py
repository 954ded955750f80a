"""`meter`, quotas of tokens and prices: what cannot stand beside each other, and what
makes a budget of little use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.matching.host_fields import HostNeighbours
from squidkeeper.policy.language.matching.table import covers, overlap
from squidkeeper.policy.language.model import Action, Policy, Rule
from squidkeeper.policy.language.prices import MILLIONTHS
from squidkeeper.policy.language.quotas import Quota, QuotaUnit


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find quotas of a cost without prices."""
    for quota in policy.quotas if not policy.prices.entries else ():
        if quota.unit is QuotaUnit.COST:
            message = f"quota {quota.name!r} counts a cost, and the policy has no prices; expected the section 'prices'"
            yield Fault(quota.location, FaultCode.METER_CONFLICT, message)


def below_a_reserve(policy: Policy) -> Iterator[Fault]:
    """Warn about budgets that are less than one reserve: each request without a limit
    of its own is denied.
    """
    metered = [(rule, rule.meter) for rule in policy.rules if rule.meter is not None]
    for quota in policy.quotas:
        for rule, meter in metered:
            if (
                quota.counts(rule.name)
                and _taken(policy, quota, meter.reserve) > quota.limit
            ):
                message = f"quota {quota.name!r} is less than the reserve of {rule.name!r} ({meter.reserve:,} tokens)"
                denied = "each request is denied that names no limit of its own; expected a smaller reserve"
                yield Fault(
                    quota.location,
                    FaultCode.QUOTA_BELOW_RESERVE,
                    f"{message}, so {denied}",
                )


def _taken(policy: Policy, quota: Quota, reserve: int) -> int:
    """Return how much of a quota a reserve takes, without the prompt."""
    if quota.unit is QuotaUnit.COST:
        return reserve * policy.prices.dearest.tokens_out // MILLIONTHS
    return reserve if quota.unit in (QuotaUnit.TOKENS, QuotaUnit.TOKENS_OUT) else 0


def uncounted(policy: Policy) -> Iterator[Fault]:
    """Warn about allows, and presets, without `meter` that open a host of a rule with
    `meter` past its budget.
    """
    metered = [rule for rule in policy.rules if rule.meter is not None]
    if not metered or not any(quota.unit.is_tokens for quota in policy.quotas):
        return
    presets = {preset.name: preset.location for preset in policy.presets}
    neighbours = HostNeighbours(metered)
    for position, rule in enumerate(policy.rules):
        is_allow = (
            rule.action is Action.ALLOW and rule.meter is None and not rule.observe
        )
        near = [metered[other] for other in neighbours.of(rule)] if is_allow else []
        if near and (counted := _beside(policy, rule, near, policy.rules[:position])):
            name = f"preset {rule.preset!r}" if rule.preset else f"rule {rule.name!r}"
            message = f"{name} has no meter, and allows POST to a host of {counted.name!r}: no budget counts that"
            remedy = "expected 'meter', methods without POST, or a deny above"
            yield Fault(
                presets.get(rule.preset or "", rule.location),
                FaultCode.UNCOUNTED,
                f"{message}; {remedy}",
            )


def _beside(
    policy: Policy, rule: Rule, metered: Iterable[Rule], above: Iterable[Rule]
) -> Rule | None:
    """Return the rule with `meter` of which another allows a host, unless a rule above
    decides all its POSTs there.
    """
    if "POST" not in (rule.match.methods or {"POST"}):
        return None
    posts = replace(rule, match=replace(rule.match, methods=frozenset({"POST"})))
    anywhere = replace(posts, match=replace(posts.match, paths=None, query=None))
    for other in metered:
        if overlap(anywhere, other, policy.lists):
            at_host = replace(
                posts,
                match=replace(
                    posts.match, hosts=other.match.hosts, lists=other.match.lists
                ),
            )
            if not any(
                _closes(first, narrow) for first in above for narrow in (posts, at_host)
            ):
                return other
    return None


def _closes(first: Rule, rule: Rule) -> bool:
    """Whether a rule above denies or counts all requests of another one."""
    decides = (
        first.body is None
        and not first.observe
        and (first.action is not Action.ALLOW or first.meter is not None)
    )
    return decides and covers(first, rule)


def shadowed_prices(policy: Policy) -> Iterator[Fault]:
    """Warn about prices that never apply.

    A private character stands for what only a wildcard holds for.
    """
    for position, price in enumerate(policy.prices.entries):
        some = price.model.replace("*", "\ue000")
        first = next(
            (above for above in policy.prices.entries[:position] if above.is_for(some)),
            None,
        )
        if first is not None:
            message = f"the price of {price.model!r} never applies: {first.model!r} above it is for the same models"
            yield Fault(price.location, FaultCode.PRICE_NEVER, message)


def never_used(policy: Policy) -> Iterator[Fault]:
    """Warn about quotas that count nothing: what their rules decide is not what they
    count.
    """
    rules = {rule.name: rule for rule in policy.rules}
    for quota in policy.quotas:
        of_tokens = quota.unit.is_tokens
        names = (
            rules if quota.rules is None and of_tokens else sorted(quota.rules or ())
        )
        if (names or of_tokens) and not any(
            _counts_some(quota.unit, rules.get(name)) for name in names
        ):
            message = (
                f"quota {quota.name!r} counts no {quota.unit}: {_NEVER[quota.unit]}"
            )
            yield Fault(quota.location, FaultCode.QUOTA_NEVER, message)


def _counts_some(unit: QuotaUnit, rule: Rule | None) -> bool:
    if rule is None:
        return not unit.is_tokens
    if unit is QuotaUnit.TICKETS:
        return rule.action is Action.ASK
    if unit.is_tokens:
        return rule.meter is not None
    if rule.passthrough and unit is QuotaUnit.REQUESTS:
        return False
    return rule.action is not Action.DENY


_NEVER = {
    QuotaUnit.REQUESTS: "its rules deny, or pass tunnels through, whose requests are not seen",
    QuotaUnit.TUNNELS: "its rules deny",
    QuotaUnit.TICKETS: "none of its rules asks",
    QuotaUnit.BYTES_OUT: "its rules deny",
    QuotaUnit.BYTES_IN: "its rules deny",
    **dict.fromkeys(
        (QuotaUnit.TOKENS_IN, QuotaUnit.TOKENS_OUT, QuotaUnit.TOKENS, QuotaUnit.COST),
        "no rule of it has meter",
    ),
}
