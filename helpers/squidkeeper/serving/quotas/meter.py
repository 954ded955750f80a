"""Takes units of quotas for requests, a few ahead of their use, and holds the bytes
that they announce.

A lease is what the store has given to this process and nobody else, so what all
processes and gateways together let pass is never over the limit. Leases grow while they
are used up, and shrink to one unit where little is left. A process that ends takes its
leases with it: `LEASE_AT_MOST` units of a count at most, and at most a `SHARE`th of the
limit.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from squidkeeper.base.errors import CountsBusy, CountsUnavailable
from squidkeeper.policy.language.quotas import Quota, QuotaUnit
from squidkeeper.serving.quotas.counts import (
    LARGEST,
    LEASE_AT_MOST,
    Choice,
    HoldingStore,
    QuotaCount,
    Taken,
)

_COUNTS_AT_MOST: Final = (
    50_000  # in memory; leases that are dropped are units that nobody gets
)
_ASK_AGAIN_SECONDS: Final = (
    1.0  # about a count that is used up: somebody may have reset it
)
_SIZE_KNOWN_SECONDS: Final = 0.25  # as often as the exporter reads the access log
_AWAY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Announced:
    """What a request is about to send, or to get: the request's ID, of what, and how
    much is held of what is left.
    """

    request: str
    unit: QuotaUnit
    choose: Choice
    least: int = 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """A quota that refuses a request, and in how many seconds its count begins again.

    `unavailable` says why the count cannot be read, where that is why. `left` is how
    much is left, where a request is larger than that. `held`: it would be enough, if
    requests that have not ended did not hold it. `busy`: other processes write the
    counts.
    """

    quota: Quota
    ends_in: float
    unavailable: str = ""
    left: int = 0
    held: bool = False
    busy: bool = False

    @property
    def passes_soon(self) -> bool:
        """Whether the same request can pass within a moment."""
        return self.held or self.busy


@dataclass(slots=True)
class _Lease:
    """Units that this process has, until a time of the monotonic clock.

    Of sizes: how much is left, and `size` is 0.
    """

    left: int
    until: float
    size: int
    ends_at: float


class Meter:
    """Takes units for one process.

    `counts_bytes` tells whether those of requests that have ended are counted.
    """

    def __init__(
        self,
        store: HoldingStore,
        clock: Callable[[], float] = time.monotonic,
        counts_bytes: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._counts_bytes = counts_bytes
        self._clock = clock
        self._leases: dict[QuotaCount, _Lease] = {}

    def take(
        self, counts: Iterable[tuple[Quota, str]], *announced: Announced
    ) -> Refusal | None:
        """Take a unit of each of these quotas for a holder each, and hold the bytes
        that are announced; or do nothing.
        """
        now = self._clock()
        used: list[_Lease] = []
        for quota, holder in counts:
            lease, refusal = self._ask(quota, holder, announced, now)
            if refusal is not None:
                for taken in used:
                    taken.left += 1
                self._release(announced)
                return refusal
            if lease is not None:
                lease.left -= 1
                used.append(lease)
        return None

    def hold(
        self, counts: Iterable[tuple[Quota, str]], announced: Announced
    ) -> int | Refusal:
        """Hold what is announced of each of these quotas; return the least that is
        held.
        """
        least = LARGEST
        for quota, holder in counts:
            try:
                taken = self._hold(quota, holder, announced)
            except CountsUnavailable as error:
                return _unavailable(quota, error)
            if not taken.given:
                return _refusal(quota, taken, announced)
            least = min(least, taken.given)
        return least

    def _ask(
        self, quota: Quota, holder: str, announced: Iterable[Announced], now: float
    ) -> tuple[_Lease | None, Refusal | None]:
        try:
            for size in announced:
                if size.unit is quota.unit:
                    taken = self._hold(quota, holder, size)
                    return None, None if taken.given else _refusal(quota, taken, size)
            if quota.unit.is_size:
                return None, self._check_size(quota, holder, now)
            lease = self._lease(quota, holder, now)
        except CountsUnavailable as error:
            return None, _unavailable(quota, error)
        return (
            (lease, None) if lease.left else (None, Refusal(quota, lease.ends_at - now))
        )

    def _lease(self, quota: Quota, holder: str, now: float) -> _Lease:
        count = QuotaCount.of(quota, holder)
        lease = self._leases.get(count)
        if lease is not None and now < lease.until and (lease.left or not lease.size):
            return lease
        asked = (
            min(2 * lease.size, LEASE_AT_MOST)
            if lease is not None and now < lease.ends_at
            else 1
        )
        taken = self._store.take(count, quota.limit, max(1, asked))
        until = now + (
            taken.ends_in if taken.given else min(taken.ends_in, _ASK_AGAIN_SECONDS)
        )
        return self._keep(
            count, _Lease(taken.given, until, taken.given, now + taken.ends_in)
        )

    def _hold(self, quota: Quota, holder: str, announced: Announced) -> Taken:
        self._check_counting()
        count = QuotaCount.of(quota, holder)
        return self._store.hold(announced.request, count, quota.limit, announced.choose)

    def _release(self, announced: Iterable[Announced]) -> None:
        requests = {size.request for size in announced}
        if requests:
            with suppress(CountsUnavailable):  # then it is held until the window ends
                self._store.release(requests)

    def _check_counting(self) -> None:
        if not self._counts_bytes():
            raise CountsUnavailable(
                "the exporter, which counts bytes, does not read the access log"
            )

    def _check_size(self, quota: Quota, holder: str, now: float) -> Refusal | None:
        count = QuotaCount.of(quota, holder)
        known = self._leases.get(count)
        if known is None or now >= known.until:
            self._check_counting()
            taken: Taken = self._store.take(count, quota.limit, 0)
            until = now + min(taken.ends_in, _SIZE_KNOWN_SECONDS)
            known = self._keep(count, _Lease(taken.left, until, 0, now + taken.ends_in))
        return None if known.left > 0 else Refusal(quota, known.ends_at - now)

    def _keep(self, count: QuotaCount, lease: _Lease) -> _Lease:
        if len(self._leases) >= _COUNTS_AT_MOST:
            now = self._clock()
            self._leases = {
                count: kept
                for count, kept in self._leases.items()
                if now < kept.ends_at
            }
            if len(self._leases) >= _COUNTS_AT_MOST:
                self._leases.clear()
        self._leases[count] = lease
        return lease


def _unavailable(quota: Quota, error: CountsUnavailable) -> Refusal:
    busy = isinstance(error, CountsBusy)
    return Refusal(quota, _AWAY_SECONDS, unavailable=str(error), busy=busy)


def _refusal(quota: Quota, taken: Taken, announced: Announced) -> Refusal:
    held = taken.left >= announced.least
    return Refusal(quota, taken.ends_in, left=taken.left, held=held)
