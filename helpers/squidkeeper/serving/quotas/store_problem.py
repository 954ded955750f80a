"""That the store of all gateways is away: a file in the state folder, which the exporter reads."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.serving.quotas.local_counts import FOLDER

_NAME: Final = "store-away"
_LATEST_SECONDS: Final = 30.0  # it is asked every five seconds while requests need it
_LONGEST: Final = 500  # bytes


class StoreProblem:
    """Notes for one process what is wrong with the store, and that it answers again."""

    def __init__(self, state: Path) -> None:
        self._file = state / FOLDER / _NAME
        self._problem = ""

    def note(self, problem: str) -> None:
        """Note what is wrong; an empty text: nothing. A disk that cannot be written changes no decision."""
        with suppress(OSError):
            if problem:
                self._write(problem.encode("utf-8", "replace")[:_LONGEST])
            elif self._problem:
                self._file.unlink(missing_ok=True)
        self._problem = problem

    def _write(self, content: bytes) -> None:
        self._file.parent.mkdir(mode=0o750, exist_ok=True)
        new = self._file.with_name(f"{_NAME}.{os.getpid()}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640), "wb") as opened:
            opened.write(content)
        new.rename(self._file)


def read_store_problem(state: Path, now: float) -> str:
    """Tell what a process has found wrong with the store not long ago; empty: nothing."""
    try:
        with open_untrusted(state / FOLDER / _NAME) as file:
            if abs(now - os.fstat(file.fileno()).st_mtime) > _LATEST_SECONDS:
                return ""
            return file.read(_LONGEST).decode("utf-8", "replace") or "unknown"
    except OSError:
        return ""
