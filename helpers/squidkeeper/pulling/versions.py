"""The versions of a pulled policy on disk (floor 7): a folder each, and the link to the one in place.

`/etc/squidkeeper/policy` is a link of root's to `current` here, which is swapped by one rename: every process that
reads the policy takes it as one edit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from squidkeeper.pull_status import CURRENT
from squidkeeper.pulling.policy_files import Version

_FOLDER: Final = "versions"
_NEW: Final = ".new"
_KEPT: Final = 10
_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750


class Versions:
    """The versions in one folder, which one process changes at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _FOLDER
        self._current = folder / CURRENT

    @property
    def in_place(self) -> str:
        """The version in place; empty if there is none."""
        try:
            return Path(os.readlink(self._current)).name
        except OSError:
            return ""

    @contextmanager
    def written(self, version: Version) -> Iterator[Path]:
        """Write a version as a folder that is not in place, and remove it unless it was put there."""
        place = self._folder / _NEW
        shutil.rmtree(place, ignore_errors=True)
        try:
            place.mkdir(mode=_FOLDER_MODE, parents=True)
            for path, content in version.files.items():
                (place / path).parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
                _write(place / path, content)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def put(self, version: Version, written: Path) -> None:
        """Put what was written in place of the version before, at once or not at all."""
        place = self._folder / version.name
        shutil.rmtree(place, ignore_errors=True)  # it is not in place: it was, or a crash came before the link
        written.rename(place)
        new = self._current.with_name(f".{CURRENT}{_NEW}")
        new.unlink(missing_ok=True)
        new.symlink_to(f"{_FOLDER}/{version.name}")
        _sync(self._folder)
        new.rename(self._current)
        _sync(self._current.parent)
        self._prune()

    def _prune(self) -> None:
        """Remove the oldest versions that are not in place."""
        kept = self.in_place
        others = [path for path in self._folder.iterdir() if path.name != kept]
        for path in sorted(others, key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


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
