"""What `squidkeeper secrets` reports: a small file in its folder, without values.

Its modification time is the time of the heartbeat.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from squidkeeper.base.status_file import StatusFile

FILE: Final = "status.json"
PATIENCE_SECONDS: Final = 10.0  # it is written once a second
_LONGEST: Final = 16 * 1024 * 1024  # bytes: thousands of secrets


@dataclass(frozen=True, slots=True)
class SecretStatus:
    """One secret that is fetched; times are in seconds since 1970, None: never, or not
    known.

    `failure` says why the last fetch failed, or why its refresh token cannot be stored,
    without a word of the source's answer; an empty text: neither, or none has ended
    yet. `failures` counts those in a row, `fetches` the values that this process has
    fetched, and `failed` the fetches that gave none.
    """

    source: (
        str  # the kind and the address, such as `oauth2 https://login.example/token`
    )
    last_success: float | None = None
    next_fetch: float | None = None
    expires_at: float | None = None
    failure: str = ""
    failures: int = 0
    fetches: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class FetchStatus:
    """Whether the process runs, and its secrets by name.

    `problem` is what concerns all of them, such as the folder.
    """

    runs: bool
    secrets: Mapping[str, SecretStatus] = field(default_factory=dict)
    problem: str = ""

    @property
    def has_tried(self) -> bool:
        """Whether it runs and has fetched each secret, or failed to."""
        tried = (
            secret.last_success is not None or secret.failures
            for secret in self.secrets.values()
        )
        return self.runs and (bool(self.problem) or (bool(self.secrets) and all(tried)))


@dataclass(frozen=True, slots=True)
class FetchReport:
    """The content of the file."""

    secrets: dict[str, SecretStatus]
    problem: str = ""


def fetch_status_file(folder: Path) -> StatusFile[FetchReport]:
    """Return the file in the folder `secrets` of the run folder."""
    return StatusFile(
        folder / FILE,
        FetchReport,
        patience_seconds=PATIENCE_SECONDS,
        longest=_LONGEST,
    )


def read_fetch_status(folder: Path, now: float) -> FetchStatus:
    """Read the file; without one, the process does not run."""
    file = fetch_status_file(folder)
    report = file.read()
    if report is None:
        return FetchStatus(runs=False)
    return FetchStatus(file.is_alive(now), report.secrets, report.problem)
