"""What a session was asked with and its row does not have: to tell the same call again
from another one.

The values of its secrets are there as keyed hashes: Squid's group reads the store, and
not the key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from squidkeeper.base.atomic_write import replace

_FILE: Final = "content.key"
_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Content:
    """The time to live as it was asked for, whether the token was made here, hashes of
    secrets by their names, and when the signed token ends that it was exchanged for.
    """

    ttl: int | None
    made_token: bool
    secrets: Mapping[str, str] = field(default_factory=dict)
    until: float | None = None

    def text(self) -> str:
        """Write it for the store."""
        return json.dumps([self.ttl, self.made_token, dict(self.secrets), self.until])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it from the store."""
        return cls(*json.loads(text))


class ContentKey:
    """The key of the hashes, made once; OSError where its file cannot be read."""

    def __init__(self, folder: Path) -> None:
        file = folder / _FILE
        if not file.exists():
            replace(file, os.urandom(_BYTES), 0o600)
        self._key = file.read_bytes()

    def hashes(self, values: Mapping[str, str]) -> dict[str, str]:
        """Hash values, by their names."""
        return {
            name: blake2b(value.encode(), key=self._key, digest_size=16).hexdigest()
            for name, value in values.items()
        }
