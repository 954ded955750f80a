"""Which counts a gateway uses (floor 4): its own, or those of all gateways."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from squidkeeper.errors import CountsUnavailable
from squidkeeper.policy.quotas import QuotaUnit, Window
from squidkeeper.quotas.counts import CountStore, QuotaCount, Taken
from squidkeeper.quotas.local_counts import LocalCounts
from squidkeeper.quotas.log_heartbeat import are_bytes_counted
from squidkeeper.quotas.meter import Meter
from squidkeeper.quotas.shared_counts import SharedCounts
from squidkeeper.quotas.store_problem import StoreProblem
from squidkeeper.quotas.store_settings import QuotaStoreSettings, quota_store_file, read_quota_store
from squidkeeper.quotas.valkey_counts import ValkeyCounts

_ASKED: Final = QuotaCount("doctor", QuotaUnit.REQUESTS, Window.DAY, "doctor")


def open_counts(directory: Path, state: Path) -> CountStore:
    """Open the counts of a gateway with its policy in one folder and its state in another.

    Settings that cannot be read make every count unavailable: else each gateway would give the whole limit.
    """
    problem = StoreProblem(state)
    try:
        settings = read_quota_store(quota_store_file(directory))
    except CountsUnavailable as error:
        problem.note(str(error))
        return UnusableCounts(str(error))
    local = LocalCounts(state)
    return local if settings is None else SharedCounts(ValkeyCounts(settings), local, settings, problem.note)


def open_meter(directory: Path, state: Path) -> Meter:
    """Make the meter of a helper."""
    return Meter(open_counts(directory, state), counts_bytes=partial(are_bytes_counted, state))


def try_quota_store(settings: QuotaStoreSettings | None) -> None:
    """Ask the store of all gateways for a count, and use nothing of it; `CountsUnavailable` says what is wrong."""
    if settings is not None:
        with closing(ValkeyCounts(settings)) as counts:
            counts.take(_ASKED, limit=1, asked=0)


class UnusableCounts:
    """Counts of a gateway whose settings are wrong: none is available."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:  # noqa: ARG002 - as every store
        """Give nothing."""
        self._refuse()

    def add(self, count: QuotaCount, amount: int) -> None:  # noqa: ARG002 - as above
        """Add nothing."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CountsUnavailable(self._problem)
