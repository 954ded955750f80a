"""Counters of bounded size (floor 7): clients choose what the access log contains, and how long it is."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from heapq import nlargest
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# --- Heavy hitters --------------------------------------------------------------------------------------------------


class HeavyHitters(Generic[K, V]):
    """A table of at most twice `limit` keys: when it is full, the lightest half is removed.

    A heavy key is never among the lightest for long, so its value is exact, or lacks the little that it had when it was
    removed. `removed` counts removed keys; 0 means that every value is exact.
    """

    def __init__(self, limit: int, make: Callable[[], V], weight: Callable[[V], int]) -> None:
        self.removed = 0
        self._limit = limit
        self._make = make
        self._weight = weight
        self._values: dict[K, V] = {}

    def __getitem__(self, key: K) -> V:
        """Return the value of a key, a new one if it is missing."""
        value = self._values.get(key)
        if value is None:
            if len(self._values) >= 2 * self._limit:
                self._remove_lightest()
            value = self._values[key] = self._make()
        return value

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def items(self) -> Iterator[tuple[K, V]]:
        """Iterate over keys and values."""
        return iter(self._values.items())

    def heaviest(self, number: int) -> list[tuple[K, V]]:
        """List the heaviest keys, the heaviest first; of equal keys, the older first."""
        return nlargest(number, self._values.items(), key=lambda item: self._weight(item[1]))

    def _remove_lightest(self) -> None:
        heaviest = dict(self.heaviest(self._limit))
        self.removed += len(self._values) - len(heaviest)
        self._values = heaviest


# --- Quantiles ------------------------------------------------------------------------------------------------------

_GROWTH = 1.1
_BOUNDS_MS: Final = tuple(_GROWTH**power for power in range(160))  # 1 ms to an hour


class DurationHistogram:
    """A histogram of milliseconds; each class is a tenth wider than the one before, so a quantile is within 5 %."""

    __slots__ = ("_classes", "count", "longest")

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0
        self._classes: Counter[int] = Counter()

    def add(self, milliseconds: int) -> None:
        """Add a duration."""
        self.count += 1
        self.longest = max(self.longest, milliseconds)
        self._classes[bisect_left(_BOUNDS_MS, milliseconds)] += 1

    def quantile(self, share: float) -> int | None:
        """Return the duration that this share of all does not exceed; None if there are none."""
        wanted, seen = share * self.count, 0
        for place in sorted(self._classes):
            seen += self._classes[place]
            if seen >= wanted:
                return min(self.longest, round(_middle(place)))
        return None


def _middle(place: int) -> float:
    return _BOUNDS_MS[min(place, len(_BOUNDS_MS) - 1)] / _GROWTH**0.5 if place else _BOUNDS_MS[0]


# --- Counts over time -----------------------------------------------------------------------------------------------

_M, _H, _D = 60, 3600, 86400
STEPS_SECONDS: Final = (
    *(1, 5, 15, 30, _M, 5 * _M, 15 * _M, 30 * _M),
    *(_H, 3 * _H, 6 * _H, 12 * _H, _D, 7 * _D, 28 * _D, 364 * _D),
)
_MOST_STEPS = 4096


class Timeline(Generic[K]):
    """Counts of several series over time, in steps that grow with the period."""

    def __init__(self) -> None:
        self.step_seconds = STEPS_SECONDS[0]
        self._steps: dict[int, Counter[K]] = {}

    def add(self, at: float, series: K) -> None:
        """Count one event at a time in seconds since 1970."""
        start = int(at) // self.step_seconds * self.step_seconds
        step = self._steps.get(start)
        if step is None:
            if len(self._steps) >= _MOST_STEPS and self.step_seconds != STEPS_SECONDS[-1]:
                self.coarsen()
                return self.add(at, series)
            step = self._steps[start] = Counter()
        step[series] += 1
        return None

    def coarsen(self) -> None:
        """Change to the next longer step."""
        self.step_seconds = STEPS_SECONDS[STEPS_SECONDS.index(self.step_seconds) + 1]
        before, self._steps = self._steps, {}
        for start, step in before.items():
            self._steps.setdefault(start // self.step_seconds * self.step_seconds, Counter()).update(step)

    def steps(self, most: int, since: float, until: float) -> list[tuple[int, Counter[K]]]:
        """List the steps of a period, empty ones included, about `most` at most."""
        while (until - since) / self.step_seconds > most and self.step_seconds != STEPS_SECONDS[-1]:
            self.coarsen()
        first = int(since) // self.step_seconds * self.step_seconds
        return [(start, self._steps.get(start, Counter())) for start in range(first, int(until) + 1, self.step_seconds)]
