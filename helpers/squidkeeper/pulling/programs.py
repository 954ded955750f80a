"""git and ssh-keygen as children that read what strangers sent (floor 7): bounded in time, memory and disk."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Final

from squidkeeper.errors import PullFailed

FILE_BYTES: Final = 64 << 20  # the largest file that a child writes: what it has fetched, and its output
_MEMORY_BYTES: Final = 2 << 30  # of addresses, of which git uses few
_CPU_SECONDS: Final = 60
_SECONDS: Final = 90.0
_MESSAGE_BYTES: Final = 2000
_BOUNDS: Final = (
    "prlimit",
    f"--fsize={FILE_BYTES}",
    f"--as={_MEMORY_BYTES}",
    f"--cpu={_CPU_SECONDS}",
    "--core=0",
    "--",
)


# ssh and ssh-keygen end where their user ID has no account, as without systemd. In a user namespace of its own a
# process has root's name, and no right that it did not have.
_NAMED: Final = ("unshare", "--user", "--map-root-user", "--")
UNNAMED: Final = ("unshare:", "No user exists")  # how a message begins where that is not allowed


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that has ended: its status, its output, and the last of its messages."""

    status: int
    output: bytes
    message: str


def run_bounded(
    command: Sequence[str], environment: Mapping[str, str], *, given: bytes = b"", seconds: float = _SECONDS
) -> Ended:
    """Run a program to its end; `PullFailed` if it cannot be started, or takes too long."""
    with TemporaryFile() as output, TemporaryFile() as messages, TemporaryFile() as read:
        read.write(given)
        read.seek(0)
        try:
            child = subprocess.Popen(  # noqa: S603 - git and ssh-keygen, with what settings.py has checked
                [*_BOUNDS, *(() if _has_account() else _NAMED), *command],
                stdin=read,
                stdout=output,
                stderr=messages,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise PullFailed(f"{_BOUNDS[0]} cannot be started: {error.strerror}") from error
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PullFailed(f"{command[0]} has not ended within {seconds:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):  # what it has started too, such as ssh
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        messages.seek(0)
        return Ended(status, output.read(), _last_line(messages.read(_MESSAGE_BYTES)))


def _has_account() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _last_line(messages: bytes) -> str:
    lines = messages.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
