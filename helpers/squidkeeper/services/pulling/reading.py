"""Reads and judges a version in a process of its own: what a stranger wrote is parsed
nowhere else.

That process is bounded. The one that pulls stays small, and alive, whatever a version
holds.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final, Protocol

import msgspec

from squidkeeper.base.errors import PullFailed, PullRefused, describe
from squidkeeper.base.formatting import printable
from squidkeeper.services.pulling.bundle import BundleServer
from squidkeeper.services.pulling.git_repository import GitRepository
from squidkeeper.services.pulling.programs import ChildBounds, run_bounded
from squidkeeper.services.pulling.settings import (
    GitSource,
    PullSettings,
    read_pull_settings,
)
from squidkeeper.services.pulling.versions import (
    SMALLER,
    PlacedVersion,
    Version,
    Versions,
)

_BOUNDS: Final = ChildBounds(cpu_seconds=180, seconds=900.0)
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_WITHOUT_MEMORY: Final = 3
_LONGEST_REASON: Final = 2000
_REPOSITORY: Final = "repository"
_BUNDLE: Final = "bundle"


class Source(Protocol):
    """Where versions come from.

    What was fetched stays on disk, for the process that reads it.
    """

    def tip(self) -> str:
        """Fetch, and name the newest version."""

    def signer(self, tip: str) -> str:
        """Find who has signed it."""

    def version(
        self, tip: str, before: PlacedVersion, *, rewound: bool = False
    ) -> Version:
        """Read it."""


class VersionToRead(msgspec.Struct, frozen=True):
    """What to read: the tip of the source, which comes after the version `before`
    unless it is `rewound`.
    """

    settings_file: str
    folder: str
    policy: str
    tip: str
    before: str
    rewound: bool = False


class _ReadVersion(msgspec.Struct, frozen=True):
    """What has become of it: the name of the version that was written, or why there is
    none.
    """

    name: str = ""
    refused: str = ""
    failure: str = ""


def source_of(settings: PullSettings, folder: Path) -> Source:
    """Return the source that the settings name; what is fetched goes to `folder`."""
    source, signers = settings.source, settings.allowed_signers
    if isinstance(source, GitSource):
        return GitRepository(source, folder / _REPOSITORY, signers)
    return BundleServer(source, folder / _BUNDLE, signers)


def read_version(pulled: VersionToRead) -> str:
    """Write a version beside the one in place, if it may be put there, and name it;
    else `PullRefused`.
    """
    # late: the process that pulls has no use for it
    from squidkeeper.services.pulling.judgement import (
        Used,
        judge,
    )

    used, folder, settings = (
        Used.now(),
        Path(pulled.folder),
        read_pull_settings(Path(pulled.settings_file)),
    )
    versions = Versions(folder)
    version = source_of(settings, folder).version(
        pulled.tip, versions.placed(pulled.before), rewound=pulled.rewound
    )
    judge(versions.write(version), Path(pulled.policy), settings.ceiling, used)
    return version.name


def read_version_apart(version: VersionToRead) -> str:
    """Do that in a process of its own.

    `PullRefused` also if that needs more than it may.
    """
    command = (sys.executable, "-P", "-m", __name__, str(os.getpid()))
    given = msgspec.json.encode(version)
    ended = run_bounded(
        command, os.environ, given=given, bounds=_BOUNDS, needs_account=False
    )
    if ended.status != 0:
        raise PullRefused(
            f"it is too large to be read and judged: {_why(ended.status)}"
        )
    answer = msgspec.json.decode(ended.output, type=_ReadVersion)
    if answer.failure:
        raise PullFailed(answer.failure)
    if answer.refused:
        raise PullRefused(answer.refused)
    return answer.name


def _why(status: int) -> str:
    if status == -signal.SIGXCPU:
        return (
            f"that takes more than {_BOUNDS.cpu_seconds} s of processor time; {SMALLER}"
        )
    if status == _WITHOUT_MEMORY:
        return f"that takes more than {_BOUNDS.memory_bytes >> 20:,} MB of memory; {SMALLER}"
    return f"its process ended with status {status}, which can be for want of memory; {SMALLER}"


def reason(error: Exception) -> str:
    """Write what a stranger may have worded in one line that is safe to print."""
    text = " ".join(str(error).split("\n"))
    return printable(
        text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
    )


def failed_on_it(error: Exception) -> str:
    """Tell what was our own fault, without what the version may hold."""
    return f"squidkeeper itself failed on it: {describe(error)}"


def _answer(version: VersionToRead) -> _ReadVersion:
    try:
        return _ReadVersion(name=read_version(version))
    except PullRefused as error:
        return _ReadVersion(refused=reason(error))
    except PullFailed as error:
        return _ReadVersion(failure=reason(error))
    except OSError as error:
        return _ReadVersion(
            failure=f"{version.folder} cannot be written: {error.strerror}"
        )
    except MemoryError:
        os._exit(_WITHOUT_MEMORY)  # at once: there is no memory to end in order
    except Exception as error:  # noqa: BLE001 - it is told in the report, as what is the version's fault
        return _ReadVersion(refused=failed_on_it(error))


def _end_with(parent: int) -> None:
    """End when the process that pulls ends, however it does: another one begins again,
    in the same folder.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"process {parent} has ended")


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    sys.stdout.buffer.write(
        msgspec.json.encode(
            _answer(msgspec.json.decode(sys.stdin.buffer.read(), type=VersionToRead))
        )
    )
