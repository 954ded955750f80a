"""How tests wait: for a condition, or for a fixed time that says why.

`sleep` stands here alone.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAIT_SECONDS = (
    60  # a loaded machine needs it; a wait ends as soon as the condition holds
)


def wait_for(
    condition: Callable[[], T | None],
    what: str | Callable[[], str] = "the condition",
    seconds: float = WAIT_SECONDS,
) -> T:
    """Return the condition's first true value.

    Fail after `seconds`, naming `what` the test waited for.

    The longer it has waited, the less often it asks: to ask costs processor time that
    what it waits for needs.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > seconds:
            raise AssertionError(
                f"waited {seconds} s for {what() if callable(what) else what}"
            )
        time.sleep(min(max(0.02, waited / 20), 0.5))


def stays(
    condition: Callable[[], object],
    seconds: float,
    what: str | Callable[[], str] = "the condition",
) -> None:
    """Fail unless the condition holds all the time for `seconds`: a quiet period."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        assert condition(), (
            f"{what() if callable(what) else what} ended after {time.monotonic() - began:.1f} s"
        )
        time.sleep(0.05)
    assert condition(), what() if callable(what) else what


def pause(seconds: float, why: str) -> None:
    """Wait for a fixed time.

    Only for a pace, a slow peer, or a clock: what a test waits for is a condition.
    """
    assert why
    time.sleep(seconds)


async def pause_between(seconds: float) -> None:
    """Wait as a slow peer does, while others go on."""
    await asyncio.sleep(seconds)


def files_at_rest() -> None:
    """Wait until no file counts as changing still: file times advance by steps of some
    milliseconds.
    """
    time.sleep(0.05)
