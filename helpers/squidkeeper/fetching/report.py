"""Writes the report of `squidkeeper secrets` (floor 5)."""

import os
from collections.abc import Mapping
from pathlib import Path

from squidkeeper.atomic_write import replace
from squidkeeper.credentials.fetch_status import FILE, SecretStatus, format_fetch_report


class FetchReport:
    """Writes the file: whole when something has changed, else only its modification time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._written = b""

    def write(self, secrets: Mapping[str, SecretStatus], problem: str = "") -> None:
        """Write the heartbeat and the report; OSError if the file cannot be written."""
        content = format_fetch_report(secrets, problem)
        if content == self._written and self._file.exists():
            os.utime(self._file)
            return
        replace(self._file, content)
        self._written = content
