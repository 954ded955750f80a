"""The audit log: who has changed which session, and what came of it.

A line of JSON for each session that a call changes, or for a call that changes none. It
never holds the value of a secret, or a token.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final

from squidkeeper.base.rotated_logs import next_name, rotated

FILE: Final = "sessions-audit.log"
_BYTES: Final = 16 * 1024 * 1024  # of one file
_FILES: Final = 20  # that were rotated
_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to a file, and rotates it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = Lock()
        self._problem = ""

    def write(self, entries: Iterable[Mapping[str, object]], **facts: object) -> None:
        """Append a line for each entry, with the facts of all; what cannot be written
        is told in the service's log.
        """
        lines = [self._line({**facts, **entry}) for entry in entries]
        try:
            with self._lock:
                self._append("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            if str(error) != self._problem:
                _log.error("%s cannot be written: %s", self._file, error)
            for line in lines:
                _log.error("not in the audit log: %s", line)
            self._problem = str(error)
        else:
            self._problem = ""

    @staticmethod
    def _line(facts: Mapping[str, object]) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        given = {name: fact for name, fact in facts.items() if fact is not None}
        return json.dumps({"time": now, **given}, separators=(",", ":"))

    def _append(self, lines: bytes) -> None:
        descriptor = os.open(
            self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640
        )
        try:
            while lines:
                lines = lines[os.write(descriptor, lines) :]
            length = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if length > _BYTES:
            self._rotate()

    def _rotate(self) -> None:
        self._file.rename(next_name(self._file, datetime.now()))
        for old in rotated(self._file)[:-_FILES]:
            old.unlink(missing_ok=True)
