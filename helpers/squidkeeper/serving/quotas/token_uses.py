"""How much of the quotas of tokens and cost is used, and by whom."""

from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import CountsUnavailable, PolicyError
from squidkeeper.base.places import BODIES_FOLDER, revisions_folder
from squidkeeper.policy.language.quotas import Quota, shown_amount
from squidkeeper.policy.policy_store.loading import load_stored_revision
from squidkeeper.policy.policy_store.revisions import revision_in_force
from squidkeeper.serving.quotas.counts import QuotaUse
from squidkeeper.serving.quotas.local_counts import FOLDER, LocalCounts
from squidkeeper.serving.quotas.opening import GatewayCounts

NEARLY: Final = 0.8  # of a limit
_EVERY_SECONDS: Final = 10.0  # a thousand holders take 6 ms


@dataclass(frozen=True, slots=True)
class TokenUse:
    """What one holder has used of a quota, with what its requests under way have
    reserved.

    `ends_in` is in seconds.
    """

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


def token_uses(
    quotas: Collection[Quota], state: Path, counts: GatewayCounts
) -> list[TokenUse]:
    """List what is used by those who use something on this gateway; nothing where that
    cannot be read.

    `counts` say what all gateways have used, where they share a store.
    """
    of_tokens = {
        (quota.name, quota.unit, quota.window): quota
        for quota in quotas
        if quota.unit.is_tokens
    }
    if not of_tokens:
        return []
    try:
        with closing(LocalCounts(state / BODIES_FOLDER)) as local:
            uses = [
                (
                    of_tokens.get((use.count.quota, use.count.unit, use.count.window)),
                    use,
                )
                for use in local.uses()
            ]
        return [_of_all_gateways(quota, use, counts) for quota, use in uses if quota]
    except (CountsUnavailable, OSError):
        return []


def _of_all_gateways(quota: Quota, use: QuotaUse, counts: GatewayCounts) -> TokenUse:
    used = (
        use.used
        if counts.are_local
        else max(use.used, counts.take(use.count, quota.limit, 0).used)
    )
    return TokenUse(quota, use.count.holder, used, use.ends_in)


class NearlyUsed:
    """Finds quotas of tokens that are nearly used, of the policy in force, each once
    for each holder and window.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._revision = ""
        self._quotas: Collection[Quota] = ()
        self._counts: GatewayCounts | None = None
        self._told: dict[tuple[str, str], float] = {}  # until when
        self._next = 0.0

    def new(self, now: float) -> list[TokenUse]:
        """List those that `tell` was not called for, the most used first."""
        if now < self._next or not (self._state / BODIES_FOLDER / FOLDER).exists():
            return []
        self._next = now + _EVERY_SECONDS
        self._follow()
        found = (
            token_uses(self._quotas, self._state, self._counts) if self._counts else []
        )
        new = (
            use
            for use in found
            if use.ratio >= NEARLY
            and self._told.get((use.quota.name, use.holder), 0) <= now
        )
        return sorted(new, key=lambda use: (-use.ratio, use.quota.name, use.holder))

    def tell(self, uses: Collection[TokenUse], now: float) -> None:
        """Note that people were told, so that they are told again in the next window at
        the earliest.
        """
        self._told = {key: until for key, until in self._told.items() if until > now}
        self._told |= {(use.quota.name, use.holder): now + use.ends_in for use in uses}

    def _follow(self) -> None:
        """Read the quotas of the policy in force, where it is another one now.

        One that does not load has none.
        """
        revisions = revisions_folder(self._state)
        in_force = revision_in_force(revisions)
        if in_force is None or in_force.revision == self._revision:
            return
        self._revision, self._quotas = in_force.revision, ()
        self._counts = GatewayCounts(in_force.directory, self._state)
        with suppress(PolicyError, OSError):
            self._quotas = load_stored_revision(
                revisions, in_force.revision
            ).source.quotas
