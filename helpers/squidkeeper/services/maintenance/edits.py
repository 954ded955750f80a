"""What an edit of the policy needs beside the helpers: the verdict of a reload gate,
and lines for Squid.

`squidkeeper reload --judge` judges an edit that is held back, in a process: it reads
the record with DuckDB, so it needs more memory than this one. It ends by itself in
time. Root is asked for lines by a file that is there, and takes nothing from it:
`squidkeeper render` reads the policy itself, with the rights of Squid's account.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.policy.policy_store.reload_gate import (
    PATIENCE_SECONDS,
    Edit,
    edit_held,
    read_verdict,
)
from squidkeeper.policy.policy_store.sources import fingerprint
from squidkeeper.serving.quotas.store_settings import quota_store_file

_NO_STATUS: Final = None  # it runs


class ReloadJudge:
    """Has each edit judged that waits for a verdict; `command` is what judges one.

    `revisions` is their folder.
    """

    name = "reload-gate"

    def __init__(
        self, revisions: Path, command: Callable[[Edit], Sequence[str]]
    ) -> None:
        self._revisions = revisions
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: tuple[Edit, float] | None = (
            None  # what the process judges, or has judged
        )
        self._failure = ""

    def check(self) -> None:
        """Start a judge when an edit waits, and again if it was killed; OSError while
        the last one has failed.
        """
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
        if abs(time.time() - since) > PATIENCE_SECONDS or (
            self._asked == (edit, since) and not self._failure
        ):
            return False
        verdict = read_verdict(self._revisions, edit)
        return verdict is None or verdict.judged < since

    def stop(self) -> None:
        """End the judge."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


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
