"""How long to wait for a receiver that does not take records."""

import random
from typing import Final

FIRST_SECONDS: Final = 1.0
LAST_SECONDS: Final = 60.0
_ASKED_SECONDS: Final = 600.0  # a receiver that asks for more is tried again after this time


class Backoff:
    """The times between attempts: doubled from one second to a minute, and random in part.

    So many gateways do not try again at the same moment.
    """

    def __init__(self) -> None:
        self._next = FIRST_SECONDS

    def seconds(self, asked: float | None = None) -> float:
        """Return the seconds to wait now; `asked` is what the receiver asks for."""
        ours = self._next * random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
        self._next = min(LAST_SECONDS, self._next * 2)
        return ours if asked is None else max(ours, min(_ASKED_SECONDS, asked))

    def reset(self) -> None:
        """Begin again: the receiver has taken something."""
        self._next = FIRST_SECONDS
