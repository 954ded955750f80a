"""Starts the judge of an edit that a reload gate holds back: `squidkeeper reload --judge`, in a process.

The judge reads the record with DuckDB, so it needs more memory than this process. It ends by itself in time.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from squidkeeper.policy.policy_store.reload_gate import PATIENCE_SECONDS, Edit, edit_held, read_verdict

_NO_STATUS: Final = None  # it runs


class ReloadJudge:
    """Has each edit judged that waits for a verdict; `command` is what judges one. `revisions` is their folder."""

    name = "reload-gate"

    def __init__(self, revisions: Path, command: Callable[[Edit], Sequence[str]]) -> None:
        self._revisions = revisions
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: tuple[Edit, float] | None = None  # what the process judges, or has judged
        self._failure = ""

    def check(self) -> None:
        """Start a judge when an edit waits, and again if it was killed; OSError while the last one has failed."""
        asked = edit_held(self._revisions)
        if self._process and asked != self._asked:
            self.stop()
        if self._process and (status := self._process.poll()) is not _NO_STATUS:
            self._process = None
            failure = f"the judge of edit {self._asked[0] if self._asked else ''} ended with status {status}"
            self._failure = failure if status else ""
        if self._process is None and asked and self._is_due(*asked):
            self._failure = self._failure if asked == self._asked else ""
            self._asked = asked
            self._process = subprocess.Popen(  # noqa: S603 - our own program, and two revisions
                self._command(asked[0]), stdin=subprocess.DEVNULL
            )
        if self._failure:
            raise OSError(self._failure)

    def _is_due(self, edit: Edit, since: float) -> bool:
        if abs(time.time() - since) > PATIENCE_SECONDS or (self._asked == (edit, since) and not self._failure):
            return False
        verdict = read_verdict(self._revisions, edit)
        return verdict is None or verdict.judged < since

    def stop(self) -> None:
        """End the judge."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
