"""Pulls, once or again and again: fetch, verify, judge, put in place.

What is in place stays, whatever becomes of the source.
"""

import fcntl
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import PullFailed, PullRefused
from squidkeeper.policy.policy_store.sources import Fingerprint, fingerprint
from squidkeeper.services.pulling.reading import (
    Source,
    VersionToRead,
    failed_on_it,
    read_version_apart,
    reason,
    source_of,
)
from squidkeeper.services.pulling.settings import (
    EVERY_SECONDS,
    PullSettings,
    PullStatus,
    read_pull_settings,
    read_pull_status,
    write_pull_status,
)
from squidkeeper.services.pulling.versions import Versions

_KEPT_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class WhatCounts:
    """What the verdict about a version depends on: the version before it, and files of
    the gateway.
    """

    tip: str
    before: str
    files: Fingerprint


def what_counts(
    tip: str, before: str, settings: PullSettings, settings_file: Path, policy: Path
) -> WhatCounts:
    """Return what counts now: also local setup and grants, which are beside the policy,
    and all below the ceiling.
    """
    ceiling = (
        [settings.ceiling, *sorted(settings.ceiling.rglob("*"))]
        if settings.ceiling
        else []
    )
    return WhatCounts(
        tip,
        before,
        fingerprint(policy, (settings_file, settings.allowed_signers, *ceiling)),
    )


class Refusals:
    """Remembers the last refusal, as long as this process lives."""

    def __init__(self) -> None:
        self._last: tuple[WhatCounts, str, float] | None = None

    def check(self, now: WhatCounts) -> None:
        """Refuse again what was refused, if nothing has changed since."""
        if self._last is None:
            return
        counted, reason, until = self._last
        if counted == now and time.monotonic() < until:
            raise PullRefused(reason)

    def keep(self, counted: WhatCounts, refusal: PullRefused) -> None:
        """Remember a refusal."""
        self._last = (counted, str(refusal), time.monotonic() + _KEPT_SECONDS)


_WAITING: Final = (
    "another process pulls into %s: the service squidkeeper-pull, or a `squidkeeper pull --once`. Waiting until it has"
    " ended. Its time is bounded; if it is stopped or hangs, restart the service, or end the other command."
)
_log = logging.getLogger(__name__)


class Puller:
    """Pulls the policy of one gateway.

    `policy` is what the gateway reads, `folder` is where versions are.
    """

    def __init__(self, settings_file: Path, folder: Path, policy: Path) -> None:
        self._settings_file = settings_file
        self._folder = folder
        self._policy = policy
        self._versions = Versions(folder)
        self._refusals = Refusals()

    def pull(self, accepted: str = "") -> PullStatus:
        """Pull once, and leave the report; OSError if not even that can be written.

        `accepted` is a tip that need not come after what is in place, as a person has
        said.
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
            return replace(before, failure=reason(error))
        status = replace(
            before,
            source=str(settings.source),
            every_seconds=settings.every_seconds,
            has_ceiling=settings.ceiling is not None,
            altered=bool(before.version)
            and not self._versions.is_as_read(str(settings.source)),
        )
        source, tip = source_of(settings, self._folder), ""
        try:
            tip = source.tip()
            status = replace(status, succeeded=time.time())
            return self._taken(source, settings, status, tip, rewound=tip == accepted)
        except PullFailed as error:
            return replace(status, failure=reason(error))
        except OSError as error:
            return replace(
                status, failure=f"{self._folder} cannot be written: {error.strerror}"
            )
        except PullRefused as error:
            return replace(status, refused=tip, reason=reason(error))
        except Exception as error:  # noqa: BLE001 - a version that we fail on must not end the process
            return replace(status, refused=tip, reason=failed_on_it(error))

    def _before(self) -> PullStatus:
        last, in_place = (
            read_pull_status(self._folder) or PullStatus(),
            self._versions.in_place,
        )
        if last.version != in_place:
            last = replace(last, version=in_place, signer="", placed=None)
        return replace(last, ended=time.time(), refused="", reason="", failure="")

    def _taken(
        self,
        source: Source,
        settings: PullSettings,
        status: PullStatus,
        tip: str,
        *,
        rewound: bool,
    ) -> PullStatus:
        # a bundle's tip is the end of its name
        is_in_place = bool(status.version) and status.version.endswith(tip)
        if is_in_place and not status.altered:
            return status
        signer = source.signer(tip)
        try:
            name = self._read(
                tip, settings, status.version, rewound=rewound or is_in_place
            )
            self._versions.put(name)
        finally:
            self._versions.discard()
        if status.altered:
            _log.warning(
                "%s had other files than the source has: they were edited, or pull.yaml was",
                status.version,
            )
        return replace(
            status, version=name, signer=signer, placed=time.time(), altered=False
        )

    def _read(
        self, tip: str, settings: PullSettings, before: str, *, rewound: bool
    ) -> str:
        """Read and judge a version, unless it was refused and is judged by the same
        again.
        """
        judged_by = what_counts(
            tip, before, settings, self._settings_file, self._policy
        )
        self._refusals.check(judged_by)
        settings_file, folder, policy = map(
            str, (self._settings_file, self._folder, self._policy)
        )
        try:
            return read_version_apart(
                VersionToRead(settings_file, folder, policy, tip, before, rewound)
            )
        except PullRefused as error:
            self._refusals.keep(judged_by, error)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a run by hand and the service apart: wait for the other, and say so."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning(_WAITING, folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


_SPREAD = 0.2  # of the interval: gateways that start together do not ask together


def run_pulling(puller: Puller) -> None:
    """Pull until SIGTERM. What changes is logged: a version that is put in place, a
    refusal, a failure.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    told = ""
    while True:
        seconds = EVERY_SECONDS
        try:
            status = puller.pull()
            seconds, text = status.every_seconds or EVERY_SECONDS, outcome(status)
        except OSError as error:
            text = f"the report cannot be written: {error.strerror}"
        if text != told:
            _log.info("%s", text)
        told = text
        time.sleep(seconds * random.uniform(1 - _SPREAD, 1))  # noqa: S311 - no secret


def outcome(status: PullStatus, *, is_in_force: bool = True) -> str:
    """Tell in one line what a pull has come to."""
    altered = ", with other files than the source has" if status.altered else ""
    not_in_force = "" if is_in_force else ", not in force"
    in_place = (
        f"{status.version} is in place{not_in_force}{altered}"
        if status.version
        else "nothing is in place"
    )
    if status.failure:
        return f"the source cannot be pulled from, {in_place}: {status.failure}"
    if status.refused:
        return f"{status.refused} is refused, {in_place}: {status.reason}"
    return f"{in_place}, signed by {status.signer}" if status.signer else in_place
