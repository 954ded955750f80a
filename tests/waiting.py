"""The one way in which tests wait: until something holds, not for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAIT_SECONDS = 60  # a loaded machine needs it; a wait ends as soon as the condition holds


def wait_for(
    condition: Callable[[], T | None],
    what: str | Callable[[], str] = "the condition",
    seconds: float = WAIT_SECONDS,
) -> T:
    """Return the condition's first true value. Fail after `seconds`, naming `what` the test waited for.

    The longer it has waited, the less often it asks: to ask costs processor time that what it waits for needs.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > seconds:
            raise AssertionError(f"waited {seconds} s for {what() if callable(what) else what}")
        time.sleep(min(max(0.02, waited / 20), 0.5))
