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
    LEASE_AT_MOST,
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
    """What a request is about to send: the request's ID, and its size.

    None: it sends chunks.
    """

    request: str
    size: int | None


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
        self, counts: Iterable[tuple[Quota, str]], body: Announced | None = None
    ) -> Refusal | None:
        """Take a unit of each of these quotas for a holder each, and hold the bytes of
        a body; or do nothing.
        """
        now = self._clock()
        used: list[_Lease] = []
        for quota, holder in counts:
            lease, refusal = self._ask(quota, holder, body, now)
            if refusal is not None:
                for taken in used:
                    taken.left += 1
                self._release(body)
                return refusal
            if lease is not None:
                lease.left -= 1
                used.append(lease)
        return None

    def _ask(
        self, quota: Quota, holder: str, body: Announced | None, now: float
    ) -> tuple[_Lease | None, Refusal | None]:
        try:
            if body and quota.unit is QuotaUnit.BYTES_OUT:
                return None, self._hold(quota, holder, body)
            if quota.unit.is_size:
                return None, self._check_size(quota, holder, now)
            lease = self._lease(quota, holder, now)
        except CountsUnavailable as error:
            busy = isinstance(error, CountsBusy)
            return None, Refusal(
                quota, _AWAY_SECONDS, unavailable=str(error), busy=busy
            )
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

    def _hold(self, quota: Quota, holder: str, body: Announced) -> Refusal | None:
        self._check_counting()
        taken = self._store.hold(
            body.request, QuotaCount.of(quota, holder), quota.limit, body.size
        )
        held = taken.left >= (body.size or 1)
        return (
            None
            if taken.given
            else Refusal(quota, taken.ends_in, left=taken.left, held=held)
        )

    def _release(self, body: Announced | None) -> None:
        if body:
            with suppress(CountsUnavailable):  # then it is held until the window ends
                self._store.release([body.request])

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
