"""Children that read what strangers sent: git, ssh-keygen and our own, bounded in time,
memory and disk.
"""

import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Final

from squidkeeper.base.errors import PullFailed

# the largest file that a child writes: what it has fetched, and its output
_FILE_BYTES: Final = 64 << 20
_ADDRESS_BYTES: Final = 2 << 30  # files that are mapped into memory count too
_MESSAGE_BYTES: Final = 2000


@dataclass(frozen=True, slots=True)
class ChildBounds:
    """What a child may use: memory, and time of a processor and in all."""

    memory_bytes: int = 1 << 30
    cpu_seconds: int = 60
    seconds: float = 90.0

    @property
    def command(self) -> tuple[str, ...]:
        """What a child is started with.

        The limits are soft ones, so that it can give its own children others.
        """
        size = (
            f"--fsize={_FILE_BYTES}:",
            f"--as={_ADDRESS_BYTES}:",
            f"--data={self.memory_bytes}:",
        )
        return ("prlimit", *size, f"--cpu={self.cpu_seconds}:", "--core=0", "--")


# ssh and ssh-keygen end where their user ID has no account, as without systemd. In a
# user namespace of its own a process has root's name, and no right that it did not
# have.
_NAMED: Final = ("unshare", "--user", "--map-root-user", "--")
# how messages begin where that is not allowed
UNNAMED: Final = (
    "unshare:",
    "No user exists",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that has ended: its status, its output, and the end of its messages."""

    status: int
    output: bytes
    messages: str


_USUAL: Final = ChildBounds()


def run_bounded(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    given: bytes = b"",
    bounds: ChildBounds = _USUAL,
    needs_account: bool = True,
) -> Ended:
    """Run a program to its end; `PullFailed` if it cannot be started, or takes too
    long.
    """
    named = _NAMED if needs_account and not _has_account() else ()
    with (
        TemporaryFile() as output,
        TemporaryFile() as messages,
        TemporaryFile() as read,
    ):
        read.write(given)
        read.seek(0)
        try:
            child = subprocess.Popen(  # noqa: S603 - our own programs, git and ssh-keygen, with what settings.py has checked
                [*bounds.command, *named, *command],
                stdin=read,
                stdout=output,
                stderr=messages,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise PullFailed(
                f"{bounds.command[0]} cannot be started: {error.strerror}"
            ) from error
        try:
            status = child.wait(bounds.seconds)
        except subprocess.TimeoutExpired:
            raise PullFailed(
                f"{command[0]} has not ended within {bounds.seconds:.0f} s"
            ) from None
        finally:
            with suppress(ProcessLookupError):  # what it has started too, such as ssh
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        messages.seek(max(0, messages.seek(0, os.SEEK_END) - _MESSAGE_BYTES))
        return Ended(
            status, output.read(), messages.read().decode("utf-8", "replace").strip()
        )


def _has_account() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
