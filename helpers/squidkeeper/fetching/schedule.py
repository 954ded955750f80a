"""When a secret is fetched again (floor 5). `chance` is from 0 to 1, so that many gateways do not ask at once."""

from typing import Final

_EARLIEST, _LATEST = 0.6, 0.8  # of the lifetime of a value
_SHORTEST_SECONDS: Final = 1.0
_LONGEST_RETRY_SECONDS: Final = 60.0
_DOUBLINGS_AT_MOST: Final = 10


def renewal_seconds(lifetime: float | None, refresh: float, chance: float) -> float:
    """Tell in how many seconds to renew a value that was just fetched.

    `lifetime` is what its source says; without one, the source is asked again after `refresh`.
    """
    share = _EARLIEST + (_LATEST - _EARLIEST) * chance
    return max(_SHORTEST_SECONDS, refresh * (0.9 + 0.1 * chance) if lifetime is None else lifetime * share)


def retry_seconds(failures: int, chance: float) -> float:
    """Tell in how many seconds to try again after so many failures in a row: 1, 2, 4 … 60, or down to half of that."""
    doubled = 2.0 ** min(failures - 1, _DOUBLINGS_AT_MOST)
    return min(_LONGEST_RETRY_SECONDS, doubled) * (0.5 + 0.5 * chance)
