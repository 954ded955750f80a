"""Starts the process that publishes the policy, where no other process does."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from squidkeeper.base.untrusted_file import read_untrusted
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.published.places import published_folder
from squidkeeper.policy.published.reader import PolicyReader

T = TypeVar("T")

_EVERY_SECONDS: Final = 1.0
_LOCK: Final = "publisher.lock"
_LONGEST_NAME: Final = 4_096  # PATH_MAX


class PublisherChild:
    """The publisher of a policy, as a child of this process; `ensure` is called often.

    The child ends when its standard input does, so it never outlives this process.
    """

    def __init__(self, directory: Path, state: Path, folder: Path) -> None:
        self._folder = folder
        self._command = [
            *_program(),
            *("publish", "--policy", str(directory), "--state", str(state)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def ensure(self) -> None:
        """Start a publisher where the lock is free."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _EVERY_SECONDS
        runs = self._process is not None and self._process.poll() is None
        if not runs and publisher_lock_is_free(self._folder):
            self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes] | None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with suppress(OSError):  # no memory: tried again
            return subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        return None


def _program() -> tuple[str, ...]:
    """Name the program that runs: by the path that it was started by, so that the
    process is known as this gateway's.
    """
    own = sys.argv[0]
    if os.path.basename(own) == "squidkeeper" and os.access(own, os.X_OK):
        return (own,)
    return (sys.executable, "-P", "-m", "squidkeeper")


def follow_policy(
    directory: Path, state: Path, prepare: Callable[[CompiledPolicy], T]
) -> PolicyReader[T]:
    """Follow the policy in force, and have it published where nobody else does."""
    folder = published_folder(directory, state)
    publisher = PublisherChild(directory, state, folder)
    return PolicyReader(directory, folder, prepare, publisher.ensure)


def taken_publisher_lock(folder: Path) -> int | None:
    """Take the lock of whoever publishes: a descriptor; None where another process has
    it, or this one cannot write there.
    """
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(
            folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def name_publisher(lock: int, directory: Path) -> None:
    """Write into the lock whose policy its holder publishes."""
    with suppress(OSError):  # a full disk: then nobody can tell
        os.ftruncate(lock, 0)
        os.pwrite(lock, os.fsencode(directory.absolute()), 0)


def named_publisher(folder: Path) -> str:
    """Name the directory whose policy is published; empty where nobody can tell."""
    try:
        return os.fsdecode(read_untrusted(folder / _LOCK, _LONGEST_NAME))
    except OSError:
        return ""


def publisher_lock_is_free(folder: Path) -> bool:
    """Whether this process could publish, and no other does."""
    lock = taken_publisher_lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None
