"""The values of sessions' secrets: a file for each session, in memory, by its number.

They are gone after a reboot. The Injector reads them as Squid's account.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace

_MODE: Final = 0o640  # Squid's group reads it


class SessionSecrets:
    """The folder of the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, number: int, values: Mapping[str, str]) -> None:
        """Write the values of a new session, and no others; OSError as from `put`."""
        self.remove(number)  # of a session that was not finished
        if values:
            self._write(number, values)

    def put(self, number: int, values: Mapping[str, str]) -> None:
        """Add values to those of a session; OSError where they cannot be written."""
        if values:
            self._write(number, {**self.of(number), **values})

    def restore(self, number: int, values: Mapping[str, str]) -> None:
        """Put back the values that a session had, as far as they can be written."""
        if not values:
            return self.remove(number)
        with suppress(OSError):
            self._write(number, values)
        return None

    def missing(self, number: int, names: Collection[str]) -> list[str]:
        """List the names whose values are not here, such as after a reboot."""
        return sorted(set(names) - self.of(number).keys()) if names else []

    def remove(self, number: int) -> None:
        """Remove the values of a session that has ended."""
        with suppress(OSError):
            self._file(number).unlink()

    def keep(self, numbers: Collection[int]) -> None:
        """Remove what belongs to no session, such as of one that was not finished."""
        known = {str(number) for number in numbers}
        for file in self._folder.iterdir():
            if file.name not in known:
                file.unlink(missing_ok=True)

    def of(self, number: int) -> dict[str, str]:
        """Read the values of a session."""
        try:
            found = json.loads(self._file(number).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, number: int, values: Mapping[str, str]) -> None:
        replace(self._file(number), json.dumps(values).encode(), _MODE)

    def _file(self, number: int) -> Path:
        return self._folder / str(number)
