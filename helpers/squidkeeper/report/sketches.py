"""Counters that stay small whatever is counted (floor 5): the record is written by whoever asks, and has no end."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from heapq import nlargest
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# --- The heaviest of very many --------------------------------------------------------------------------------------


class Heaviest(Generic[K, V]):
    """A table of at most twice `limit` keys: when it is full, the lightest half is forgotten.

    What is heavy enough to be shown is never among the lightest for long, so its value is exact, or lacks the little
    that it had when it was last forgotten. `forgotten` says how often a key was; 0: every value is exact.
    """

    def __init__(self, limit: int, make: Callable[[], V], weight: Callable[[V], int]) -> None:
        self.forgotten = 0
        self._limit = limit
        self._make = make
        self._weight = weight
        self._values: dict[K, V] = {}

    def __getitem__(self, key: K) -> V:
        """Give a key's value to count on; a new one where there is none."""
        value = self._values.get(key)
        if value is None:
            if len(self._values) >= 2 * self._limit:
                self._forget()
            value = self._values[key] = self._make()
        return value

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def items(self) -> Iterator[tuple[K, V]]:
        """Give each key that is not forgotten, with its value."""
        return iter(self._values.items())

    def heaviest(self, number: int) -> list[tuple[K, V]]:
        """List the heaviest keys, the heaviest first; of two that weigh the same, the one that came first."""
        return nlargest(number, self._values.items(), key=lambda item: self._weight(item[1]))

    def _forget(self) -> None:
        kept = dict(self.heaviest(self._limit))
        self.forgotten += len(self._values) - len(kept)
        self._values = kept


# --- Quantiles ------------------------------------------------------------------------------------------------------

_GROWTH = 1.1
_BOUNDS_MS: Final = tuple(_GROWTH**power for power in range(160))  # 1 ms to an hour


class Durations:
    """Lengths of time in milliseconds, as numbers in classes that are a tenth wider each: a quantile is within 5 %."""

    __slots__ = ("_classes", "count", "longest")

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0
        self._classes: Counter[int] = Counter()

    def add(self, milliseconds: int) -> None:
        """Take one."""
        self.count += 1
        self.longest = max(self.longest, milliseconds)
        self._classes[bisect_left(_BOUNDS_MS, milliseconds)] += 1

    def quantile(self, share: float) -> int | None:
        """Give the length that this share of all is not longer than; None of none."""
        wanted, so_far = share * self.count, 0
        for place in sorted(self._classes):
            so_far += self._classes[place]
            if so_far >= wanted:
                return min(self.longest, round(_middle(place)))
        return None


def _middle(place: int) -> float:
    return _BOUNDS_MS[min(place, len(_BOUNDS_MS) - 1)] / _GROWTH**0.5 if place else _BOUNDS_MS[0]


# --- Numbers over time ----------------------------------------------------------------------------------------------

_M, _H, _D = 60, 3600, 86400
STEPS_SECONDS: Final = (
    *(1, 5, 15, 30, _M, 5 * _M, 15 * _M, 30 * _M),
    *(_H, 3 * _H, 6 * _H, 12 * _H, _D, 7 * _D, 28 * _D, 364 * _D),
)
_MOST_STEPS = 4096


class Timeline(Generic[K]):
    """Numbers of several series over time, in steps that grow with the span that they have to cover."""

    def __init__(self) -> None:
        self.step_seconds = STEPS_SECONDS[0]
        self._steps: dict[int, Counter[K]] = {}

    def add(self, at: float, series: K) -> None:
        """Count one at a time, in seconds since 1970."""
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
        """Take the next longer step."""
        self.step_seconds = STEPS_SECONDS[STEPS_SECONDS.index(self.step_seconds) + 1]
        before, self._steps = self._steps, {}
        for start, step in before.items():
            self._steps.setdefault(start // self.step_seconds * self.step_seconds, Counter()).update(step)

    def steps(self, most: int, since: float, until: float) -> list[tuple[int, Counter[K]]]:
        """List the steps from a time until another, at most about so many, those in which nothing was among them."""
        while (until - since) / self.step_seconds > most and self.step_seconds != STEPS_SECONDS[-1]:
            self.coarsen()
        first = int(since) // self.step_seconds * self.step_seconds
        return [(start, self._steps.get(start, Counter())) for start in range(first, int(until) + 1, self.step_seconds)]
