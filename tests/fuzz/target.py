"""What a fuzz target is: a check that any bytes pass, and what to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A property of bytes: `check` raises where they show it to be broken.

    `words` are what a mutation puts in besides random bytes. `mutate`, where there is
    one, makes of an input another of the same kind (data, seed → data).
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...]
    longest_bytes: int = 4096
    mutate: Callable[[bytes, int], bytes] | None = None
