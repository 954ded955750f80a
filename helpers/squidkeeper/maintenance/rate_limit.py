"""Limits how often Squid is signalled (floor 5): each time it replaces its helpers, and denies what they were asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class RateLimit:
    """Allows at most so many events within so many seconds, for each pair of (seconds, events)."""

    def __init__(self, *bounds: tuple[float, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds = bounds
        self._clock = clock
        self._events: deque[float] = deque(maxlen=max(events for _, events in bounds))

    def allows(self) -> bool:
        """Tell whether there may be another event now."""
        now = self._clock()
        return all(sum(now - event < seconds for event in self._events) < events for seconds, events in self._bounds)

    def count(self) -> None:
        """Count an event."""
        self._events.append(self._clock())
