"""The versions of a pulled policy: their files, by name and size, and on disk a folder
each.

`/etc/squidkeeper/policy` is a link of root's to `current` here, which is swapped by one
rename: every process that reads the policy takes it as one edit.
"""

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import Final

from squidkeeper.base.errors import PullRefused
from squidkeeper.policy.language.document import file_entries, parse_document
from squidkeeper.services.pulling.settings import CURRENT

FILES_AT_MOST: Final = 1000
BYTES_AT_MOST: Final = 32 << 20  # of all files
# of the policy files: ten thousand rules have about 1.3 MB
POLICY_BYTES_AT_MOST: Final = 2 << 20
SMALLER: Final = (
    "write fewer rules, tests and aliases, and long lists of hosts as lists"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DEPTH_AT_MOST: Final = 4
_SUFFIXES: Final = (".yaml", ".yml")
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the policy: its name, and its files by their paths in the folder.

    `signed` is what a commit's signature is for: its twins have the same. `source` is
    where it was read.
    """

    name: str
    files: Mapping[str, bytes]
    signed: bytes = b""
    source: str = ""


@dataclass(frozen=True, slots=True)
class PlacedVersion:
    """The version in place: its name, which is empty where there is none, and what was
    signed of a commit.
    """

    name: str = ""
    signed: bytes = b""


def check_files(sizes: Mapping[str, int]) -> None:
    """Refuse what a folder cannot hold, or a gateway does not take: by the paths of the
    files, and their sizes.
    """
    _check_sizes(sizes.values())
    for path in sizes:
        _check_name(path)
        above = next((folder for folder in _above(path) if folder in sizes), None)
        if above is not None:
            raise PullRefused(
                f"{above!r} is a file, and a folder with {path!r} in it, expected one of the two"
            )


def _above(path: str) -> Iterator[str]:
    return (str(parent) for parent in PurePosixPath(path).parents)


def _check_name(path: str) -> None:
    parts = path.split("/")
    if len(parts) > _DEPTH_AT_MOST or not all(map(_NAME.fullmatch, parts)):
        expected = f"expected up to {_DEPTH_AT_MOST} names of letters, digits and . _ -"
        raise PullRefused(
            f"file {path[:_SHOWN]!r} has a name that is not plain, {expected}"
        )


def _check_sizes(sizes: Collection[int]) -> None:
    if len(sizes) > FILES_AT_MOST:
        raise PullRefused(
            f"there are {len(sizes):,} files, expected {FILES_AT_MOST:,} at most"
        )
    if sum(sizes) > BYTES_AT_MOST:
        raise PullRefused(
            f"the files have {sum(sizes):,} bytes, expected {BYTES_AT_MOST:,} at most"
        )


def is_policy_file(path: str) -> bool:
    """Whether a file is one that policies are read from."""
    return "/" not in path and path.endswith(_SUFFIXES)


def listed_paths(files: Mapping[str, bytes]) -> frozenset[str]:
    """List the paths of the lists that policy files name, as they are written; refuse
    files that are too large.
    """
    size = sum(len(content) for path, content in files.items() if is_policy_file(path))
    if size > POLICY_BYTES_AT_MOST:
        raise PullRefused(
            f"the policy files have {size:,} bytes, expected {POLICY_BYTES_AT_MOST:,} at most"
        )
    documents = (
        parse_document(Path(path), content)
        for path, content in files.items()
        if is_policy_file(path)
    )
    return frozenset(str(path) for *_, path in file_entries(documents, "lists"))


_FOLDER: Final = "versions"
_NEW: Final = ".new"
_SIGNED: Final = (
    ".signed"  # in the folder of a version: no file of a policy has such a name
)
_DIGEST: Final = ".digest"  # the same: of what was read, and where
_AGAIN: Final = ".again"  # where the version in place is put in place once more
_KEPT: Final = 10
_FILE_MODE: Final = 0o440  # edits belong into the source
_FOLDER_MODE: Final = 0o750


@dataclass(frozen=True, slots=True)
class NewVersion:
    """Where a version is that is not in place: its folder, and one for its lists as
    they are compiled.
    """

    policy: Path
    lists: Path


class Versions:
    """The versions in one folder, which one process changes at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _FOLDER
        self._current = folder / CURRENT
        self._new = NewVersion(
            self._folder / _NEW / "policy", self._folder / _NEW / "lists"
        )

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
        """Whether the version in place has the files that were read of a source, and no
        other.
        """
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
            (new.policy / path).parent.mkdir(
                mode=_FOLDER_MODE, parents=True, exist_ok=True
            )
            _write(new.policy / path, content)
        if version.signed:
            _write(new.policy / _SIGNED, version.signed)
        _write(new.policy / _DIGEST, _digest(new.policy, version.source).encode())
        return new

    def discard(self) -> None:
        """Remove what was written, and not put in place."""
        shutil.rmtree(self._folder / _NEW, ignore_errors=True)

    def put(self, name: str) -> None:
        """Put what was written in place of the version before, at once or not
        at all.
        """
        place = self._folder / (name if name != self._linked else f"{name}{_AGAIN}")
        # it is not in place: it was, or a crash came before the link
        shutil.rmtree(place, ignore_errors=True)
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
        for path in sorted(
            others, key=lambda other: other.stat().st_mtime, reverse=True
        )[_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _digest(place: Path, source: str) -> str:
    total = sha256(source.encode())
    for path in sorted(place.rglob("*")):
        if path == place / _DIGEST:
            continue
        kind = stat.S_IFMT(path.lstat().st_mode)
        total.update(
            f"\0{path.relative_to(place)}\0{kind:o}\0".encode(
                "utf-8", "surrogateescape"
            )
        )
        if stat.S_ISREG(kind):
            with path.open("rb") as opened:
                total.update(file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _write(file: Path, content: bytes) -> None:
    with open(
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE), "wb"
    ) as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
