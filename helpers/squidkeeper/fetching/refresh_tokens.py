"""Refresh tokens that a token endpoint has replaced (floor 5), in files that this process alone can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import msgspec

from squidkeeper.atomic_write import replace

SUFFIX = ".refresh"


@dataclass(frozen=True, slots=True)
class _Rotated:
    """The newest refresh token, and the hash of the policy's own one, which it replaced."""

    of: str
    token: str = field(repr=False)


def current_refresh_token(folder: Path, key: str, initial: str) -> str:
    """Give the newest refresh token of a source; once the policy's own one has changed, that is it."""
    try:
        rotated = msgspec.json.decode((folder / f"{key}{SUFFIX}").read_bytes(), type=_Rotated)
    except (OSError, ValueError):
        return initial
    return rotated.token if rotated.of == _hash(initial) else initial


def keep_refresh_token(folder: Path, key: str, initial: str, token: str) -> None:
    """Keep the refresh token that replaces the one that was used; OSError if it cannot be written."""
    replace(folder / f"{key}{SUFFIX}", msgspec.json.encode(_Rotated(_hash(initial), token)), mode=0o600)


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
