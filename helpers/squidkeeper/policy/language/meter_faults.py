"""`meter`, quotas of tokens and prices: what cannot stand beside each other, and a budget that a reserve is above."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document, entries
from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.prices import MILLIONTHS
from squidkeeper.policy.language.quotas import Quota, QuotaUnit

_OF_METER = ("reserve", "ask_usage")


def entry_faults(documents: Iterable[Document]) -> Iterator[Fault]:
    """Find what a rule cannot have beside `meter`, or without it."""
    for document in documents:
        for _, entry, steps in entries(document, "rules"):
            for key in _OF_METER if "meter" not in entry else ():
                if key in entry:
                    message = f"{key!r} is for 'meter', expected both, or {key!r} left out"
                    yield Fault(document.locate((*steps, key), key=True), FaultCode.KEY_CHOICE, message)
            if "meter" in entry and entry.get("websocket") is True:
                message = (
                    "'websocket' beside 'meter': no frame of a WebSocket is read; expected a rule of its own for it"
                )
                yield Fault(document.locate((*steps, "websocket"), key=True), FaultCode.METER_CONFLICT, message)


def conflicts(policy: Policy) -> Iterator[Fault]:
    """Find quotas of a cost without prices."""
    for quota in policy.quotas if not policy.prices.entries else ():
        if quota.unit is QuotaUnit.COST:
            message = f"quota {quota.name!r} counts a cost, and the policy has no prices; expected the section 'prices'"
            yield Fault(quota.location, FaultCode.METER_CONFLICT, message)


def below_a_reserve(policy: Policy) -> Iterator[Fault]:
    """Warn about budgets that are less than one reserve: each request without a limit of its own is denied."""
    metered = [(rule, rule.meter) for rule in policy.rules if rule.meter is not None]
    for quota in policy.quotas:
        for rule, meter in metered:
            if quota.counts(rule.name) and _taken(policy, quota, meter.reserve) > quota.limit:
                message = f"quota {quota.name!r} is less than the reserve of {rule.name!r} ({meter.reserve:,} tokens)"
                denied = "each request is denied that names no limit of its own; expected a smaller reserve"
                yield Fault(quota.location, FaultCode.QUOTA_BELOW_RESERVE, f"{message}, so {denied}")


def _taken(policy: Policy, quota: Quota, reserve: int) -> int:
    """Return how much of a quota a reserve takes, without the prompt."""
    if quota.unit is QuotaUnit.COST:
        return reserve * policy.prices.dearest.tokens_out // MILLIONTHS
    return reserve if quota.unit in (QuotaUnit.TOKENS, QuotaUnit.TOKENS_OUT) else 0
