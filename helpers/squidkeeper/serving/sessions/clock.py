"""When a session ends: by the clock of the wall, and by the time since the start of the
machine, which nobody sets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Self

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class TimeNow:
    """A time: `wall` in seconds since 1970, `since_boot` in seconds since the start of
    the machine, with the time it slept. `boot` names that start.
    """

    wall: float
    since_boot: float
    boot: str

    @classmethod
    def now(cls) -> Self:
        """Return the time now."""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id())


@cache
def boot_id() -> str:
    """Return the kernel's name of this start of the machine."""
    return _BOOT_ID.read_text().strip()
