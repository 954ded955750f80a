"""Counts of several gateways, and what stands in for them while their store is away."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.serving.quotas.counts import CountStore, QuotaCount, Taken
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.store_settings import OnUnavailable, QuotaStoreSettings

AWAY_SECONDS: Final = 5.0  # until a store that fails again and again is asked the next time; after a first failure, 1
_log = logging.getLogger(__name__)


class SharedCounts:
    """Asks the store of all gateways; while that is away, counts here up to this gateway's part, or not at all.

    `report` is called with what is wrong, or with an empty text: each time that the store was asked.
    """

    def __init__(
        self,
        store: CountStore,
        local: LocalCounts,
        settings: QuotaStoreSettings,
        report: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._local = local
        self._settings = settings
        self._report = report
        self._clock = clock
        self._away_until = 0.0
        self._pause = 0.0
        self._problem = ""

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        """Give up to so many units of what is left."""
        if self._clock() >= self._away_until:
            try:
                taken = self._store.take(count, limit, asked)
            except CountsUnavailable as error:
                self._log(str(error))
                self._leave(str(error))
            else:
                self._pause = 0.0
                self._problem = ""
                self._report("")
                return taken
        if self._settings.on_unavailable is OnUnavailable.DENY:
            raise CountsUnavailable(self._problem)
        return self._local.take(count, limit // self._settings.gateways, asked)

    def hold(self, request: str, count: QuotaCount, limit: int, size: int | None) -> Taken:
        """Hold what a request is about to send. Other gateways see it at its end."""
        taken = self.take(count, limit, 0)
        return self._local.hold(request, count, taken.used + taken.left, size, taken.used)

    def release(self, requests: Iterable[str]) -> None:
        """Hold nothing any more for these requests."""
        self._local.release(requests)

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already; `CountsUnavailable` while the store is away."""
        if self._clock() < self._away_until:
            raise CountsUnavailable(self._problem)
        try:
            self._store.add(count, amount)
        except CountsUnavailable as error:
            self._leave(str(error))
            raise

    def _log(self, problem: str) -> None:
        """Log a failure when it begins or changes. Where requests are denied for it, whoever asked logs that."""
        if problem != self._problem and self._settings.on_unavailable is OnUnavailable.LOCAL:
            gateways = self._settings.gateways
            _log.error("quotas are counted on this gateway alone, up to 1/%d of each limit: %s", gateways, problem)

    def _leave(self, problem: str) -> None:
        self._pause = min(2 * self._pause or 1.0, AWAY_SECONDS)
        self._away_until = self._clock() + self._pause
        self._problem = problem
        self._report(problem)
