"""The versions of a pulled policy on disk: a folder each, and the link to the one in place.

`/etc/squidkeeper/policy` is a link of root's to `current` here, which is swapped by one rename: every process that
reads the policy takes it as one edit.
"""

import os
import shutil
import stat
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final

from squidkeeper.services.pull_status import CURRENT
from squidkeeper.services.pulling.policy_files import PlacedVersion, Version

_FOLDER: Final = "versions"
_NEW: Final = ".new"
_SIGNED: Final = ".signed"  # in the folder of a version: no file of a policy has such a name
_DIGEST: Final = ".digest"  # the same: of what was read, and where
_AGAIN: Final = ".again"  # where the version in place is put in place once more
_KEPT: Final = 10
_FILE_MODE: Final = 0o440  # edits belong into the source
_FOLDER_MODE: Final = 0o750


@dataclass(frozen=True, slots=True)
class NewVersion:
    """Where a version is that is not in place: its folder, and one for its lists as they are compiled."""

    policy: Path
    lists: Path


class Versions:
    """The versions in one folder, which one process changes at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _FOLDER
        self._current = folder / CURRENT
        self._new = NewVersion(self._folder / _NEW / "policy", self._folder / _NEW / "lists")

    @property
    def in_place(self) -> str:
        """The version in place; empty if there is none."""
        return self._linked.removesuffix(_AGAIN)

    @property
    def _linked(self) -> str:
        try:
            return Path(os.readlink(self._current)).name
        except OSError:
            return ""

    def placed(self, name: str) -> PlacedVersion:
        """Read what was kept of a version."""
        place = self._current if name == self.in_place else self._folder / name
        try:
            return PlacedVersion(name, (place / _SIGNED).read_bytes())
        except OSError:
            return PlacedVersion(name)

    def is_as_read(self, source: str) -> bool:
        """Tell whether the version in place has the files that were read of a source, and no other."""
        place = self._folder / self._linked
        try:
            return (place / _DIGEST).read_text() == _digest(place, source)
        except (OSError, UnicodeDecodeError):
            return False

    def write(self, version: Version) -> NewVersion:
        """Write a version as folders that are not in place."""
        self.discard()
        new = self._new
        new.policy.mkdir(mode=_FOLDER_MODE, parents=True)
        for path, content in version.files.items():
            (new.policy / path).parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            _write(new.policy / path, content)
        if version.signed:
            _write(new.policy / _SIGNED, version.signed)
        _write(new.policy / _DIGEST, _digest(new.policy, version.source).encode())
        return new

    def discard(self) -> None:
        """Remove what was written, and not put in place."""
        shutil.rmtree(self._folder / _NEW, ignore_errors=True)

    def put(self, name: str) -> None:
        """Put what was written in place of the version before, at once or not at all."""
        place = self._folder / (name if name != self._linked else f"{name}{_AGAIN}")
        shutil.rmtree(place, ignore_errors=True)  # it is not in place: it was, or a crash came before the link
        self._new.policy.rename(place)
        new = self._current.with_name(f".{CURRENT}{_NEW}")
        new.unlink(missing_ok=True)
        new.symlink_to(f"{_FOLDER}/{place.name}")
        _sync(self._folder)
        new.rename(self._current)
        _sync(self._current.parent)
        self._prune()

    def _prune(self) -> None:
        kept = (self._linked, _NEW)
        others = [path for path in self._folder.iterdir() if path.name not in kept]
        for path in sorted(others, key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _digest(place: Path, source: str) -> str:
    total = sha256(source.encode())
    for path in sorted(place.rglob("*")):
        if path == place / _DIGEST:
            continue
        kind = stat.S_IFMT(path.lstat().st_mode)
        total.update(f"\0{path.relative_to(place)}\0{kind:o}\0".encode("utf-8", "surrogateescape"))
        if stat.S_ISREG(kind):
            with path.open("rb") as opened:
                total.update(file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _write(file: Path, content: bytes) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE), "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
