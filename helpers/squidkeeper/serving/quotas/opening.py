"""Which counts a gateway uses: its own, or those of all gateways, and what stands in
while their store is away.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.policy.language.quotas import QuotaUnit, Window
from squidkeeper.serving.quotas.counts import (
    Choice,
    CountStore,
    HoldingStore,
    QuotaCount,
    Taken,
)
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.quotas.notices import StoreProblem, are_bytes_counted
from squidkeeper.serving.quotas.store_settings import (
    OnUnavailable,
    QuotaStoreSettings,
    quota_store_file,
    read_quota_store,
)
from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts

# until a store that fails again and again is asked the next time; after a first
# failure, 1
AWAY_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)


class SharedCounts:
    """Asks the store of all gateways; while that is away, counts here up to this
    gateway's part, or not at all.

    `report` is called with what is wrong, or with an empty text: each time that the
    store was asked.
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
        """Hand out up to so many units of what is left."""
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

    def hold(
        self, request: str, count: QuotaCount, limit: int, choose: Choice
    ) -> Taken:
        """Hold what a request is about to send or to get.

        Other gateways see it at its end.
        """
        taken = self.take(count, limit, 0)
        return self._local.hold(
            request, count, taken.used + taken.left, choose, taken.used
        )

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
        """Log a failure when it begins or changes.

        Where requests are denied for it, whoever asked logs that.
        """
        if (
            problem != self._problem
            and self._settings.on_unavailable is OnUnavailable.LOCAL
        ):
            gateways = self._settings.gateways
            _log.error(
                "quotas are counted on this gateway alone, up to 1/%d of each limit: %s",
                gateways,
                problem,
            )

    def _leave(self, problem: str) -> None:
        self._pause = min(2 * self._pause or 1.0, AWAY_SECONDS)
        self._away_until = self._clock() + self._pause
        self._problem = problem
        self._report(problem)


_AGAIN_SECONDS: Final = 1.0
_ASKED: Final = QuotaCount("doctor", QuotaUnit.REQUESTS, Window.DAY, "doctor")


class GatewayCounts:
    """The counts of a gateway with its policy in one folder and its state in another,
    as quota-store.yaml says now.

    The file is read again at most once a second, when a count is needed. One that
    cannot be used leaves the last good one in force. Without a good one no count is
    available: else each gateway would give the whole limit.
    """

    def __init__(
        self,
        directory: Path,
        state: Path,
        clock: Callable[[], float] = time.monotonic,
        local: LocalCounts | None = None,
    ) -> None:
        self._file = quota_store_file(directory)
        self._local = local or LocalCounts(state)
        self._problem = StoreProblem(state)
        self._clock = clock
        self._read_at = float("-inf")
        self._fault = ""  # of the file
        self._settings: QuotaStoreSettings | None = None
        self._store: ValkeyCounts | None = None
        self._counts: HoldingStore | None = None

    @property
    def are_local(self) -> bool:
        """Whether this gateway counts by itself."""
        return self._current() is self._local

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        """Hand out up to so many units of what is left."""
        return self._current().take(count, limit, asked)

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already."""
        self._current().add(count, amount)

    def hold(
        self, request: str, count: QuotaCount, limit: int, choose: Choice
    ) -> Taken:
        """Hold what a request is about to send or to get."""
        return self._current().hold(request, count, limit, choose)

    def release(self, requests: Iterable[str]) -> None:
        """Hold nothing any more for these requests."""
        self._local.release(requests)

    def close(self) -> None:
        """Close this gateway's own counts, and the connection to the store of all
        gateways.
        """
        self._local.close()
        self._leave()

    def _leave(self) -> None:
        if self._store is not None:
            self._store.close()

    def _current(self) -> HoldingStore:
        if self._clock() - self._read_at >= _AGAIN_SECONDS:
            self._read_at = self._clock()
            self._read()
        if self._counts is None:
            raise CountsUnavailable(self._fault)
        return self._counts

    def _read(self) -> None:
        try:
            settings = read_quota_store(self._file)
        except CountsUnavailable as error:
            self._fault = str(error)
            self._note("")
            return
        self._fault = ""
        if self._counts is None or settings != self._settings:
            self._use(settings)

    def _use(self, settings: QuotaStoreSettings | None) -> None:
        self._leave()
        self._settings, self._store = (
            settings,
            ValkeyCounts(settings) if settings else None,
        )
        self._note("")
        if settings is None or self._store is None:
            self._counts = self._local
        else:
            self._counts = SharedCounts(self._store, self._local, settings, self._note)

    def _note(self, problem: str) -> None:
        self._problem.note(problem or self._fault)


def open_meter(directory: Path, state: Path) -> Meter:
    """Make the meter of a helper."""
    return Meter(
        GatewayCounts(directory, state), counts_bytes=partial(are_bytes_counted, state)
    )


def try_quota_store(settings: QuotaStoreSettings | None) -> None:
    """Ask the store of all gateways for a count, and use nothing of it;
    `CountsUnavailable` says what is wrong.
    """
    if settings is not None:
        with closing(ValkeyCounts(settings)) as counts:
            counts.take(_ASKED, limit=1, asked=0)
