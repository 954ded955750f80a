"""One pull (floor 7): fetch, verify, judge, put in place. What is in place stays, whatever becomes of the source."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from squidkeeper.errors import PullFailed, PullRefused, describe
from squidkeeper.formatting import printable
from squidkeeper.pull_settings import GitSource, PullSettings, read_pull_settings
from squidkeeper.pull_status import PullStatus, read_pull_status, write_pull_status
from squidkeeper.pulling.bundle import BundleServer
from squidkeeper.pulling.git_repository import GitRepository
from squidkeeper.pulling.judgement import judge
from squidkeeper.pulling.policy_files import Version
from squidkeeper.pulling.versions import Versions

_REPOSITORY: Final = "repository"
_LONGEST_REASON: Final = 2000


class _Source(Protocol):
    def tip(self) -> str: ...

    def version(self, tip: str, before: str, *, rewound: bool = False) -> Version: ...


class Puller:
    """Pulls the policy of one gateway. `policy` is what the gateway reads, `folder` is where versions are."""

    def __init__(self, settings_file: Path, folder: Path, policy: Path) -> None:
        self._settings_file = settings_file
        self._folder = folder
        self._policy = policy
        self._versions = Versions(folder)

    def pull(self, accepted: str = "") -> PullStatus:
        """Pull once, and leave the report; OSError if not even that can be written.

        `accepted` is a tip that need not come after what is in place, as a person has said.
        """
        with _locked(self._folder):
            status = self._pulled(accepted)
            write_pull_status(self._folder, status)
            return status

    def _pulled(self, accepted: str) -> PullStatus:
        before = self._before()
        try:
            settings = read_pull_settings(self._settings_file)
        except PullFailed as error:
            return replace(before, failure=_shown(error))
        status = replace(
            before,
            source=str(settings.source),
            every_seconds=settings.every_seconds,
            has_ceiling=settings.ceiling is not None,
        )
        source, tip = self._source(settings), ""
        try:
            tip = source.tip()
            status = replace(status, succeeded=time.time())
            return self._taken(source, settings, status, tip, rewound=tip == accepted)
        except PullFailed as error:
            return replace(status, failure=_shown(error))
        except OSError as error:
            return replace(status, failure=f"{self._folder} cannot be written: {error.strerror}")
        except PullRefused as error:
            return replace(status, refused=tip, reason=_shown(error))
        except Exception as error:  # noqa: BLE001 - a version that we fail on must not end the process
            return replace(status, refused=tip, reason=f"squidkeeper itself failed on it: {describe(error)}")

    def _before(self) -> PullStatus:
        """Give the report as it was, without what the last run has found."""
        last, in_place = read_pull_status(self._folder) or PullStatus(), self._versions.in_place
        if last.version != in_place:
            last = replace(last, version=in_place, signer="", placed=None)
        return replace(last, ended=time.time(), refused="", reason="", failure="")

    def _source(self, settings: PullSettings) -> _Source:
        source, signers = settings.source, settings.allowed_signers
        if isinstance(source, GitSource):
            return GitRepository(source, self._folder / _REPOSITORY, signers)
        return BundleServer(source, signers)

    def _taken(
        self, source: _Source, settings: PullSettings, status: PullStatus, tip: str, *, rewound: bool
    ) -> PullStatus:
        if status.version and status.version.endswith(tip):  # a bundle's tip is the end of its name
            return status
        version = source.version(tip, status.version, rewound=rewound)
        with self._versions.written(version) as written:
            judge(written, self._policy, settings.ceiling)
            self._versions.put(version, written)
        return replace(status, version=version.name, signer=version.signer, placed=time.time())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a run by hand and the service apart."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _shown(error: Exception) -> str:
    """Write what a stranger may have worded in one line that is safe to print."""
    text = " ".join(str(error).split("\n"))
    return printable(text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…")
