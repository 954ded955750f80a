"""What was worked out before, in a bounded room (floor 3)."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(dict[K, V]):
    """Keeps what was worked out before, and forgets all of it when there is too much: nobody can make it grow.

    Cheaper than to know what was used last: an access costs what that of a dict does.
    """

    def __init__(self, bytes_at_most: int) -> None:
        super().__init__()
        self._bytes_at_most = bytes_at_most
        self._bytes = 0

    def keep(self, key: K, value: V, size: int) -> None:
        """Keep a value that takes so many bytes, the key included; not one that is too large."""
        if size > self._bytes_at_most:
            return
        if self._bytes + size > self._bytes_at_most:
            self.forget()
        self[key] = value
        self._bytes += size

    def forget(self) -> None:
        """Forget everything."""
        self.clear()
        self._bytes = 0
