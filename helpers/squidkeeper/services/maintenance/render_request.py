"""Asks root to add what an edit of the policy needs to Squid's configuration: by a file that is there.

Root takes nothing from the file. `squidkeeper render` reads the policy itself, with the rights of Squid's account.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from squidkeeper.policy.policy_store.sources import fingerprint


class _Named(msgspec.Struct):
    password_files: tuple[str, ...] = ()


class RenderRequest:
    """Makes the file when a file of the policy has changed, or of a parent's password. Once at its start, too.

    `values` is the file of what Squid's configuration was rendered with.
    """

    name = "render"

    def __init__(self, directory: Path, request: Path, values: Path) -> None:
        self._directory = directory
        self._request = request
        self._values = values
        self._seen: object = None

    def check(self) -> None:
        """Ask where something has changed; OSError if the file cannot be made."""
        seen = fingerprint(self._directory, self._password_files())
        if seen != self._seen:
            os.close(os.open(self._request, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o640))
            self._seen = seen

    def _password_files(self) -> Iterator[Path]:
        try:
            values = msgspec.json.decode(self._values.read_bytes(), type=_Named)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return
        yield from map(Path, values.password_files)
