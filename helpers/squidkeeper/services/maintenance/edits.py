"""What an edit of the policy needs beside the helpers: lines for Squid.

Root is asked for them by a file that is there, and takes nothing from it: `squidkeeper
render` reads the policy itself, with the rights of Squid's account.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from squidkeeper.policy.policy_store.sources import fingerprint
from squidkeeper.serving.quotas.store_settings import quota_store_file


class _Named(msgspec.Struct):
    password_files: tuple[str, ...] = ()


class RenderRequest:
    """Makes the file when a file of the policy has changed, of a parent's password or
    of the quota store.

    It also makes the file once at its start.

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
        seen = fingerprint(
            self._directory,
            (quota_store_file(self._directory), *self._password_files()),
        )
        if seen != self._seen:
            os.close(
                os.open(self._request, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o640)
            )
            self._seen = seen

    def _password_files(self) -> Iterator[Path]:
        try:
            values = msgspec.json.decode(self._values.read_bytes(), type=_Named)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return
        yield from map(Path, values.password_files)
