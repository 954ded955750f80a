"""Which quotas count a request."""

from collections.abc import Iterable

from squidkeeper.policy.language.model import HostFacts, Policy, Rule
from squidkeeper.policy.language.quotas import DEFAULT_RULE, Quota, QuotaUnit

_OF_REQUESTS = (QuotaUnit.REQUESTS, QuotaUnit.BYTES_OUT, QuotaUnit.BYTES_IN)


def quotas_for(
    policy: Policy, facts: HostFacts, rules: Iterable[Rule]
) -> tuple[Quota, ...]:
    """List the quotas that may count a request, whichever of these rules, a grant or
    the default allows it.

    Tickets are counted where they are given, and tokens by `squidkeeper bodies`.
    """
    if not policy.quotas:
        return ()
    names = {DEFAULT_RULE, *(rule.name for rule in rules)}
    return tuple(
        quota
        for quota in policy.quotas
        if quota.unit is not QuotaUnit.TICKETS
        and not quota.unit.is_tokens
        and quota.holds_for(facts.clients)
        and (quota.rules is None or not quota.rules.isdisjoint(names))
        and (facts.method is None or quota.unit in _OF_REQUESTS)
    )


def counts_tunnel(quota: Quota, *, passthrough: bool) -> bool:
    """Whether a quota counts a CONNECT: the bytes of one whose requests are seen are
    those of its requests.
    """
    return quota.unit is QuotaUnit.TUNNELS or (passthrough and quota.unit.is_size)


def counting(
    quotas: Iterable[Quota], rule: str, *, is_tunnel: bool, passthrough: bool
) -> tuple[Quota, ...]:
    """List the quotas that count a request that a rule has allowed, among the ones that
    may.
    """
    of_rule = (quota for quota in quotas if quota.counts(rule))
    if not is_tunnel:
        return tuple(of_rule)
    return tuple(
        quota for quota in of_rule if counts_tunnel(quota, passthrough=passthrough)
    )


def ticket_quotas(
    policy: Policy, clients: tuple[str, ...], rule: str
) -> tuple[Quota, ...]:
    """List the quotas that count a new ticket for what a rule, or the default, asks
    about.
    """
    return tuple(
        quota
        for quota in policy.quotas
        if quota.unit is QuotaUnit.TICKETS
        and quota.holds_for(clients)
        and quota.counts(rule)
    )


def token_quotas(
    policy: Policy, clients: tuple[str, ...], rule: str
) -> tuple[Quota, ...]:
    """List the quotas that count the tokens of a request which a rule with `meter` has
    allowed to these clients.
    """
    return tuple(
        quota
        for quota in policy.quotas
        if quota.unit.is_tokens and quota.holds_for(clients) and quota.counts(rule)
    )
