"""When a fetched value expires, as its source says it."""

import math
from datetime import datetime
from typing import Final, TypeGuard

from squidkeeper.base.errors import SourceFailed

_YEARS_100_SECONDS: Final = 100 * 365 * 86400.0


def parse_expires_in(value: object, asked: float) -> float | None:
    """Parse `expires_in`, a number of seconds that some servers send as text; None: the answer has none."""
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len("3153600000"):
        value = int(value)
    if not _is_number(value) or not 0 < value <= _YEARS_100_SECONDS:
        raise SourceFailed("expires_in is not a number of seconds to come")
    return asked + value


def parse_expires_at(value: object, now: float) -> float | None:
    """Parse `expires_at`: a time with its zone such as 2026-12-01T18:00:00Z, or seconds since 1970.

    None: there is none. A time that has passed is an error.
    """
    if value is None:
        return None
    expires = _timestamp(value)
    if expires is None or not now - _YEARS_100_SECONDS < expires < now + _YEARS_100_SECONDS:
        raise SourceFailed("expires_at is not a time, expected one such as 2026-12-01T18:00:00Z or seconds since 1970")
    if expires <= now:
        raise SourceFailed("the value has expired already: is the clock of this machine right?")
    return float(expires)


def _timestamp(value: object) -> float | None:
    if _is_number(value):
        return value
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time.timestamp() if time and time.tzinfo else None


def _is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether it is a number; JSON has integers that no float can hold."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )
