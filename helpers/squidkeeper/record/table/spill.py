"""The folder for what does not fit into memory: private, and removed also after a process that was killed.

A lock on the folder tells whether its process lives. Its next user removes those of dead ones.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from squidkeeper.base.squid_account import account_of

QUERY_ACCOUNT: Final = "nobody"  # runs the queries of root; not Squid's account, which writes the log
_PARENT: Final = "/var/tmp"  # noqa: S108 - on a disk, where /tmp can be memory; mkdtemp makes a folder 0700 in it
_PREFIX: Final = "squidkeeper-table-"


@contextmanager
def spill_folder() -> Iterator[Path]:
    """Make a folder for the block, in `$TMPDIR` or `/var/tmp`."""
    remove_abandoned()
    folder, lock = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders whose process is dead: of this account, and for root those of queries."""
    for folder in _parent().glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process removes it, or it belongs to another account
            _remove_if_abandoned(folder)


def _make() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked
            lock = _open(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    file = _open(folder)
    try:
        state = os.fstat(file)
        if state.st_uid in _accounts() and stat.S_IMODE(state.st_mode) == stat.S_IRWXU:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)  # follows no link
    finally:
        os.close(file)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _accounts() -> set[int]:
    query = account_of(QUERY_ACCOUNT) if os.geteuid() == 0 else None
    return {os.geteuid(), *({query.user} if query else ())}


def _parent() -> Path:
    return Path(os.environ.get("TMPDIR") or _PARENT)
