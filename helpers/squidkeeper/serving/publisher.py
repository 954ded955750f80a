"""The process that reads the files of a policy, and publishes what helpers decide by.

One process of a gateway does so: the one that holds a lock in the folder of revisions.
A gateway that was installed by root has a service for it, whose account alone writes
there. Elsewhere a helper that finds the lock free starts one, as its child. The child
ends with it, and another helper starts the next.
"""

import os
import select
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import StateInUse
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.base.places import lists_folder
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.published.places import published_folder
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.policy.published.publication import write_publication
from squidkeeper.policy.published.state_file import StateWriter
from squidkeeper.serving.helpers.publisher_child import (
    name_publisher,
    named_publisher,
    taken_publisher_lock,
)
from squidkeeper.serving.parts import needed_keys
from squidkeeper.serving.reload_judge import ReloadJudge, judging

_CHECK_EVERY_SECONDS: Final = 0.2
_BEAT_EVERY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """The options of the command."""

    directory: Path
    state: Path
    access_log: Path  # what the reload gate counts by
    archive: Path  # likewise


def run_publisher(options: PublisherOptions) -> None:
    """Publish the policy until standard input ends; return at once where another
    process publishes it. `StateInUse` where that publishes another policy.
    """
    directory, state = options.directory, options.state
    folder = published_folder(directory, state)
    lock = taken_publisher_lock(folder)
    if lock is None:
        _ensure_same(directory, folder)
        return
    name_publisher(lock, directory)
    judge = ReloadJudge(
        partial(judging, directory, state, options.access_log, options.archive)
    )
    watcher = PolicyWatcher(
        directory,
        lists_folder(state),
        lambda policy: policy,
        folder,
        logs=False,
        published=lambda policy: write_publication(
            policy, needed_keys(policy.source), directory
        ),
        judge=judge,
    )
    try:
        _publish(watcher, folder)
    finally:
        judge.end()
        os.close(lock)


def _publish(watcher: PolicyWatcher[CompiledPolicy], folder: Path) -> None:
    writer = StateWriter(folder)
    due = 0.0
    while not _has_ended():
        before = watcher.state
        watcher.check()
        watcher.store()
        if watcher.state is not before or time.monotonic() >= due:
            with suppress(OSError):  # a full disk: readers go on with what is in force
                writer.write(_state(watcher, folder))
            due = time.monotonic() + _BEAT_EVERY_SECONDS


def _state(watcher: PolicyWatcher[CompiledPolicy], folder: Path) -> PolicyState:
    """Return how the files are; a revision that cannot be published is not in force."""
    if not watcher.store_problem:
        return watcher.state
    message = (
        f"revision {watcher.state.revision} cannot be published: "
        f"{watcher.store_problem}: make room, or let Squid's account write there"
    )
    fault = Fault(Location(str(folder)), FaultCode.NOT_PUBLISHED, message)
    return replace(watcher.state, ok=False, faults=(fault,))


def _ensure_same(directory: Path, folder: Path) -> None:
    other = named_publisher(folder)
    if other not in ("", str(directory.absolute())):
        raise StateInUse(
            f"{folder}: another process publishes {other} there, so {directory} cannot"
            " be published: give each policy a state folder of its own (--state)"
        )


def _has_ended() -> bool:
    """Wait for the next check; return whether standard input has ended."""
    readable, _, _ = select.select([sys.stdin], [], [], _CHECK_EVERY_SECONDS)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)
