"""Whose counts a policy names.

A gateway that shares its counts with others asks for these. It cannot list the counts.
"""

from collections.abc import Iterable
from urllib.parse import quote

from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.quotas import DEFAULT_RULE, Counted, Quota
from squidkeeper.serving.quotas.counts import holder


def named_holders(quota: Quota, policy: Policy) -> set[str]:
    """Name the holders of a quota: its rules, or clients with a login or an address.

    An address within a larger network is not named, and no session.
    """
    if quota.per.is_of_sessions:
        return set()
    if quota.per is not Counted.CLIENT:
        rules = quota.rules or {DEFAULT_RULE, *(rule.name for rule in policy.rules)}
        return _named(holder(quota, "", None, rule) for rule in rules)
    named: set[str | None] = set()
    for client in policy.clients:
        users = client.users or ([client.name] if client.tokens else [])
        named |= {holder(quota, "", quote(user, safe=""), "") for user in users}
        for network in client.single_addresses:
            named.add(holder(quota, str(network.network_address), None, ""))
    return _named(named)


def _named(holders: Iterable[str | None]) -> set[str]:
    return {name for name in holders if name is not None}
