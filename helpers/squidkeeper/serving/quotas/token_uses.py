"""How much of the quotas of tokens and cost is used, and by whom."""

from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.base.layout import BODIES_FOLDER
from squidkeeper.policy.language.quotas import Quota, shown_amount
from squidkeeper.serving.quotas.counts import QuotaUse
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.opening import GatewayCounts

NEARLY: Final = 0.8  # of a limit


@dataclass(frozen=True, slots=True)
class TokenUse:
    """What one holder has used of a quota, with what its requests under way have reserved. `ends_in` is in seconds."""

    quota: Quota
    holder: str
    used: int
    ends_in: float

    @property
    def ratio(self) -> float:
        """The used part of the limit."""
        return self.used / self.quota.limit

    @property
    def text(self) -> str:
        """What is used, and of what."""
        used, quota = shown_amount(self.quota.unit, self.used), self.quota
        return f"{quota.name} ({quota.text}): {self.holder} has used {used}, which is {self.ratio:.0%}"


def token_uses(quotas: Collection[Quota], state: Path, counts: GatewayCounts) -> list[TokenUse]:
    """List what is used by those who use something on this gateway; nothing where that cannot be read.

    `counts` say what all gateways have used, where they share a store.
    """
    of_tokens = {(quota.name, quota.unit, quota.window): quota for quota in quotas if quota.unit.is_tokens}
    if not of_tokens:
        return []
    try:
        with closing(LocalCounts(state / BODIES_FOLDER)) as local:
            uses = [(of_tokens.get((use.count.quota, use.count.unit, use.count.window)), use) for use in local.uses()]
        return [_of_all_gateways(quota, use, counts) for quota, use in uses if quota]
    except (CountsUnavailable, OSError):
        return []


def _of_all_gateways(quota: Quota, use: QuotaUse, counts: GatewayCounts) -> TokenUse:
    used = use.used if counts.are_local else max(use.used, counts.take(use.count, quota.limit, 0).used)
    return TokenUse(quota, use.count.holder, used, use.ends_in)
