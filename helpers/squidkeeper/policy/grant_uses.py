"""How often grants with a number of uses have been used: one count for all helpers,
workers and restarts.

The count of a grant is the size of its file: each use appends a byte. The kernel
appends one at a time, whichever process does, and gives each its own position. So no
lock is needed, and no process that is killed or stopped holds up another. A use is on
disk before it counts.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Final

from squidkeeper.policy.language.model import Rule

_FOLDER: Final = "grant-uses"
_DIGITS: Final = 32
_FILE = re.compile(f"[0-9a-f]{{{_DIGITS}}}")
_TAKE: Final = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_APPEND
    | os.O_DSYNC
    | os.O_NOFOLLOW
    | os.O_NONBLOCK
    | os.O_CLOEXEC
)


class GrantUses:
    """The counts below one state folder."""

    def __init__(self, state: Path) -> None:
        self._folder = state / _FOLDER

    def take(self, grant: Rule) -> bool:
        """Use a grant once; False if none of its uses is left.

        OSError if it cannot be counted.
        """
        file = self._open(grant)
        try:
            at_most = grant.uses or 0
            if os.fstat(file).st_size >= at_most:  # denied requests write nothing
                return False
            os.write(file, b"1")
            return os.lseek(file, 0, os.SEEK_CUR) <= at_most  # where this byte ends
        finally:
            os.close(file)

    def left(self, grant: Rule) -> int | None:
        """Tell how many uses are left; None where a grant has no number of uses.

        OSError if that cannot be read.
        """
        if grant.uses is None:
            return None
        try:
            state = os.lstat(self._folder / _name_of(grant))
        except FileNotFoundError:
            return grant.uses
        return max(0, grant.uses - state.st_size)

    def is_spent(self, grant: Rule) -> bool:
        """Whether a grant opens nothing more; one whose uses cannot be counted opens
        nothing either.
        """
        try:
            return self.left(grant) == 0
        except OSError:
            return True

    def forget(self, kept: Iterable[Rule], since: float) -> None:
        """Remove the counts of all grants but these, if not used since a time (seconds
        since 1970).

        Helpers may still count a grant that has just been revoked. The folder may be
        another account's, to replace.
        """
        names = {_name_of(grant) for grant in kept}
        try:
            folder = os.open(
                self._folder,
                os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
            )
        except OSError:
            return
        try:
            for name in os.listdir(folder):
                if (
                    _FILE.fullmatch(name)
                    and name not in names
                    and _is_older(folder, name, since)
                ):
                    with suppress(OSError):
                        os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)

    def _open(self, grant: Rule) -> int:
        path = self._folder / _name_of(grant)
        try:
            file = os.open(path, _TAKE, 0o640)
        except FileNotFoundError:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            file = os.open(path, _TAKE, 0o640)
        state = os.fstat(file)
        if not S_ISREG(state.st_mode):
            os.close(file)
            raise OSError(0, "not a regular file", str(path))
        if not state.st_size:
            _sync(self._folder)
        return file


def _is_older(folder: int, name: str, since: float) -> bool:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < since
    except OSError:
        return False


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _name_of(grant: Rule) -> str:
    """Name the file of a grant: one of the same name that is made later has another."""
    made = grant.made.isoformat() if grant.made else ""
    return sha256(
        f"{grant.name}\0{made}".encode("utf-8", "surrogateescape")
    ).hexdigest()[:_DIGITS]
