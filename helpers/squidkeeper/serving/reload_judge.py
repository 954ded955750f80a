"""Has an edit of the policy judged by a process: it reads the record with DuckDB, so it
needs more memory than the one that publishes.

The process is `squidkeeper reload --judge`. It ends by itself in time, and leaves its
verdict beside the revisions.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from squidkeeper.policy.policy_store.reload_gate import Edit

_AGAIN_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


class ReloadJudge:
    """Has one edit judged at a time; `command` is what judges one."""

    def __init__(self, command: Callable[[Edit], Sequence[str]]) -> None:
        self._command = command
        self._edit: Edit | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0  # by the monotonic clock
        self._failure = ""

    def begin(self, edit: Edit) -> None:
        """Judge an edit, and no other any more; OSError where that is not possible."""
        self.end()
        self._edit = edit
        self._again_at = time.monotonic() + _AGAIN_SECONDS
        self._process = subprocess.Popen(  # noqa: S603 - our own program, and two revisions
            self._command(edit), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def check(self) -> None:
        """Begin again where the process has failed, such as one that was killed."""
        status = self._process.poll() if self._process else None
        if status is None or self._edit is None or time.monotonic() < self._again_at:
            return
        if status == 0:
            self._process = None
            return
        failure = f"the judge of edit {self._edit} ended with status {status}"
        if failure != self._failure:
            _log.warning("%s: it is started again", failure)
        self._failure = failure
        with suppress(OSError):  # no memory: tried again
            self.begin(self._edit)

    def end(self) -> None:
        """Judge nothing any more."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = self._edit = None


def judging(
    directory: Path, state: Path, access_log: Path, archive: Path, edit: Edit
) -> list[str]:
    """Return the command that judges an edit."""
    return [
        sys.executable,
        *("-P", "-m", "squidkeeper", "reload"),
        *("--judge", str(edit)),
        *("--policy", str(directory)),
        *("--state", str(state)),
        *("--access-log", str(access_log)),
        *("--archive", str(archive)),
    ]
