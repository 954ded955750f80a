"""A limit on signals to Squid: each one makes it replace its helpers, and deny their lookups in flight."""

import time
from collections import deque
from collections.abc import Callable


class RateLimit:
    """Allows at most `events` within `seconds`, for each pair (seconds, events)."""

    def __init__(self, *bounds: tuple[float, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds = bounds
        self._clock = clock
        self._events: deque[float] = deque(maxlen=max(events for _, events in bounds))

    def allows(self) -> bool:
        """Tell whether another event is allowed now."""
        now = self._clock()
        return all(sum(now - event < seconds for event in self._events) < events for seconds, events in self._bounds)

    def count(self) -> None:
        """Count an event."""
        self._events.append(self._clock())
