"""Which counts a gateway uses: its own, or those of all gateways."""

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.policy.language.quotas import QuotaUnit, Window
from squidkeeper.serving.quotas.counts import HoldingStore, QuotaCount, Taken
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.log_heartbeat import are_bytes_counted
from squidkeeper.serving.quotas.meter import Meter
from squidkeeper.serving.quotas.shared_counts import SharedCounts
from squidkeeper.serving.quotas.store_problem import StoreProblem
from squidkeeper.serving.quotas.store_settings import QuotaStoreSettings, quota_store_file, read_quota_store
from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts

_AGAIN_SECONDS: Final = 1.0
_ASKED: Final = QuotaCount("doctor", QuotaUnit.REQUESTS, Window.DAY, "doctor")


class GatewayCounts:
    """The counts of a gateway with its policy in one folder and its state in another, as quota-store.yaml says now.

    The file is read again at most once a second, when a count is needed. One that cannot be used leaves the last good
    one in force. Without a good one no count is available: else each gateway would give the whole limit.
    """

    def __init__(self, directory: Path, state: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = quota_store_file(directory)
        self._local = LocalCounts(state)
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
        """Give up to so many units of what is left."""
        return self._current().take(count, limit, asked)

    def add(self, count: QuotaCount, amount: int) -> None:
        """Add what was used already."""
        self._current().add(count, amount)

    def hold(self, request: str, count: QuotaCount, limit: int, size: int | None) -> Taken:
        """Hold what a request is about to send."""
        return self._current().hold(request, count, limit, size)

    def release(self, requests: Iterable[str]) -> None:
        """Hold nothing any more for these requests."""
        self._local.release(requests)

    def close(self) -> None:
        """Close this gateway's own counts, and the connection to the store of all gateways."""
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
        self._settings, self._store = settings, ValkeyCounts(settings) if settings else None
        self._note("")
        if settings is None or self._store is None:
            self._counts = self._local
        else:
            self._counts = SharedCounts(self._store, self._local, settings, self._note)

    def _note(self, problem: str) -> None:
        self._problem.note(problem or self._fault)


def open_meter(directory: Path, state: Path) -> Meter:
    """Make the meter of a helper."""
    return Meter(GatewayCounts(directory, state), counts_bytes=partial(are_bytes_counted, state))


def try_quota_store(settings: QuotaStoreSettings | None) -> None:
    """Ask the store of all gateways for a count, and use nothing of it; `CountsUnavailable` says what is wrong."""
    if settings is not None:
        with closing(ValkeyCounts(settings)) as counts:
            counts.take(_ASKED, limit=1, asked=0)
