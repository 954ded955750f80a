"""Where a policy is published: a folder for each revision, and a link to the one in
force.
"""

import logging
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from stat import S_IMODE, S_ISDIR
from typing import Final

from squidkeeper.base.places import revisions_folder

LISTS: Final = "lists"
LIST_SUFFIX: Final = ".hosts"
UNFINISHED: Final = ".part"
_IN_FORCE: Final = "in-force"
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folder in it is ours alone
_PUBLICATION: Final = "publication-2"  # the number is the format's
_STATE: Final = "state.json"
_log = logging.getLogger(__name__)


def published_folder(directory: Path, state: Path) -> Path:
    """Return where the policy of a directory is published: with the revisions, or in
    memory where this account has to publish it and cannot write to the state folder.
    """
    folder = revisions_folder(state)
    if folder.is_dir() or _makes(folder, 0o750):
        return folder
    name = blake2b(f"{directory.absolute()}\n{state}".encode(), digest_size=8)
    private = _MEMORY / f"squidkeeper-{os.geteuid()}-{name.hexdigest()}"
    if _makes(private, 0o700) or _is_private(private):
        return private
    _log.error(
        "%s: expected a folder of this account, with mode 0700: remove it,"
        " or let this account write to %s",
        private,
        state,
    )
    return folder


def _is_private(folder: Path) -> bool:
    """Whether no other account has made a folder, or can write there: each account can
    make one in `_MEMORY`.
    """
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    is_ours = S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return is_ours and S_IMODE(found.st_mode) == 0o700


def _makes(folder: Path, mode: int) -> bool:
    try:
        folder.mkdir(mode=mode, parents=True)
    except OSError:
        return False
    return True


def publication_file(folder: Path, revision: str) -> Path:
    """Name the file that helpers read."""
    return folder / revision / _PUBLICATION


def list_file(folder: Path, revision: str, digest: str) -> Path:
    """Name a compiled list of a revision."""
    return folder / revision / LISTS / f"{digest}{LIST_SUFFIX}"


def state_file(folder: Path) -> Path:
    """Name the file that tells how the files of the policy are."""
    return folder / _STATE


def mark_in_force(folder: Path, revision: str) -> None:
    """Put a stored revision in force; OSError if that cannot be written."""
    replace_link(folder, _IN_FORCE, revision)


def replace_link(folder: Path, name: str, target: str) -> None:
    """Make a symbolic link, or replace it whole; OSError if that cannot be written."""
    new = folder / f".{name}.{os.getpid()}{UNFINISHED}"
    with suppress(FileNotFoundError):
        new.unlink()
    new.symlink_to(target)
    new.rename(folder / name)


def marked_in_force(folder: Path) -> tuple[str, int] | None:
    """Find the revision in force, and when it was marked, in nanoseconds."""
    try:
        return os.readlink(folder / _IN_FORCE), os.lstat(folder / _IN_FORCE).st_mtime_ns
    except OSError:
        return None
