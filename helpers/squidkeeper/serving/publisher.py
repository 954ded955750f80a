"""The process that reads the files of a policy, and publishes what helpers decide by.

One process of a gateway does so: the one that holds a lock in the folder of revisions.
A gateway that root has installed has a service for it, whose account alone writes
there. Elsewhere a helper that finds the lock free starts one, as its child. The child
ends with it, and another helper starts the next.
"""

import os
import select
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import PolicyError, StateInUse
from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.base.places import lists_folder, publisher_folder
from squidkeeper.base.service_notify import ALIVE, READY, notify
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.policy_store.loading import load_stored_revision
from squidkeeper.policy.policy_store.policy_watcher import PolicyWatcher
from squidkeeper.policy.policy_store.revisions import publish_again, take_over
from squidkeeper.policy.published.places import (
    marked_in_force,
    publication_file,
    published_folder,
)
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
_ALIVE_EVERY_SECONDS: Final = 5.0  # WatchdogSec= of the unit is longer
_FORMER: Final = "revisions"  # in the state folder, of who has no such account


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """The options of the command."""

    directory: Path
    state: Path
    access_log: Path  # what the reload gate counts by
    archive: Path  # likewise


def run_as_child(options: PublisherOptions) -> None:
    """Publish the policy until standard input ends; return at once where another
    process publishes it. `StateInUse` where that publishes another policy.
    """
    folder = published_folder(options.directory, options.state)
    lock = taken_publisher_lock(folder)
    if lock is None:
        _ensure_same(options.directory, folder)
        return
    name_publisher(lock, options.directory)
    publisher = _Publisher(options, folder)
    while not _input_ends():
        publisher.check()
    publisher.end()
    os.close(lock)


def run_as_service(options: PublisherOptions) -> None:
    """Publish the policy until a signal ends the process; `StateInUse` where it cannot,
    or another process does.
    """
    folder = publisher_folder(options.state)
    if published_folder(options.directory, options.state) != folder:
        raise StateInUse(
            f"{folder}: expected a folder of this account, beside {options.state}"
        )
    lock = taken_publisher_lock(folder)
    if lock is None:
        raise StateInUse(
            f"{folder}: another process publishes there, or this account cannot write"
        )
    name_publisher(lock, options.directory)
    threading.Thread(target=_live, name="watchdog", daemon=True).start()
    is_first = marked_in_force(folder) is None
    publisher = _Publisher(options, folder, logs=True)
    publisher.publish_in_this_format()
    publisher.check()
    while not publisher.is_settled:
        time.sleep(_CHECK_EVERY_SECONDS)
        publisher.check()
    notify(READY)
    if is_first:
        take_over(options.state / _FORMER, folder)
    while True:
        time.sleep(_CHECK_EVERY_SECONDS)
        publisher.check()


def _live() -> None:
    """Tell that this process lives, in a thread: a long list may take a while."""
    while True:
        notify(ALIVE)
        time.sleep(_ALIVE_EVERY_SECONDS)


class _Publisher:
    """Publishes one policy; `check` is called a few times a second."""

    def __init__(
        self, options: PublisherOptions, folder: Path, *, logs: bool = False
    ) -> None:
        judge = partial(
            judging,
            options.directory,
            options.state,
            options.access_log,
            options.archive,
        )
        self._directory = options.directory
        self._folder = folder
        self._judge = ReloadJudge(judge)
        self._watcher = PolicyWatcher(
            options.directory,
            lists_folder(options.state),
            lambda policy: policy,
            folder,
            logs=logs,
            published=self._written,
            judge=self._judge,
        )
        self._writer = StateWriter(folder)
        self._due = 0.0

    def publish_in_this_format(self) -> None:
        """Publish what is in force again, where another release has published it:
        helpers of this one cannot read that, and the files may not load.
        """
        marked = marked_in_force(self._folder)
        if marked is None or publication_file(self._folder, marked[0]).exists():
            return
        with suppress(OSError, PolicyError):
            policy = load_stored_revision(self._folder, marked[0])
            publish_again(self._folder, marked[0], self._written(policy))

    def _written(self, policy: CompiledPolicy) -> bytes:
        return write_publication(policy, needed_keys(policy.source), self._directory)

    @property
    def is_settled(self) -> bool:
        """Whether a policy is in force, or waiting helps nothing."""
        codes = {fault.code for fault in self._watcher.state.faults}
        loads = FaultCode.NOT_READ in codes or self._watcher.state.ok
        return not loads or marked_in_force(self._folder) is not None

    def check(self) -> None:
        """Publish what the files hold, where they have changed, and tell how they
        are.
        """
        watcher = self._watcher
        before = watcher.state
        watcher.check()
        watcher.store()
        if watcher.state is not before or time.monotonic() >= self._due:
            with suppress(OSError):  # a full disk: readers go on with what is in force
                self._writer.write(_state(watcher, self._folder))
            self._due = time.monotonic() + _BEAT_EVERY_SECONDS

    def end(self) -> None:
        """End the judge of an edit."""
        self._judge.end()


def _state(watcher: PolicyWatcher[CompiledPolicy], folder: Path) -> PolicyState:
    """Return how the files are; a revision that cannot be published is not in force."""
    if not watcher.store_problem:
        return watcher.state
    message = (
        f"revision {watcher.state.revision} cannot be published: "
        f"{watcher.store_problem}: make room, or let its account write there"
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


def _input_ends() -> bool:
    """Wait for the next check; return whether standard input has ended."""
    readable, _, _ = select.select([sys.stdin], [], [], _CHECK_EVERY_SECONDS)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)
