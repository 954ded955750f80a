"""Refresh tokens that a token endpoint has replaced, in files that this process alone can read."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.atomic_write import replace

SUFFIX: Final = ".refresh"


@dataclass(frozen=True, slots=True)
class _Rotated:
    """The newest refresh token, and the hash of the policy's own one, which it replaced."""

    of: str
    token: str = field(repr=False)


class RefreshTokens:
    """The newest refresh token of one source, in memory too: its server takes none of the former ones any more.

    `problem` says why it is not in its file; an empty text: it is.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._file = folder / f"{key}{SUFFIX}"
        self._newest: _Rotated | None = None
        self._stored = True
        self.problem = ""

    def current(self, initial: str) -> str:
        """Give the newest refresh token; once the policy's own one has changed, that is it."""
        newest = self._newest or self._read()
        return newest.token if newest and newest.of == _hash(initial) else initial

    def keep(self, initial: str, token: str) -> None:
        """Keep the refresh token that replaces the one that was used; `store` writes it."""
        self._newest, self._stored = _Rotated(_hash(initial), token), False

    def store(self) -> None:
        """Write what is not in the file yet."""
        if self._newest is None or self._stored:
            return
        try:
            replace(self._file, msgspec.json.encode(self._newest), mode=0o600)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            self.problem = f"the new refresh token cannot be stored, and is lost when this process ends: {reason}"
        else:
            self._stored, self.problem = True, ""

    def _read(self) -> _Rotated | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Rotated)
        except (OSError, ValueError):
            return None


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
