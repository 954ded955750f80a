"""Where an archive is: a folder, or an object store (`stores.py`).

The archives of many gateways are in one folder or store, each below `gateway=NAME`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from squidkeeper.base.untrusted_file import open_untrusted
from squidkeeper.record.chain.entries import ArchivedPart

INCOMING: Final = (
    "incoming"  # what is not committed; on the same file system, for rename
)
# the names that parts get before their entry is written, one a line
PLACING: Final = f"{INCOMING}/placing"
# in a mirror of a store: parts without later records were not fetched
FETCHED: Final = "fetched-since"
_BLOCK_BYTES: Final = 1024 * 1024
_GATEWAY = re.compile(r"gateway=([A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?)")


class ArchivePlace(Protocol):
    """What verifying an archive needs of the place that it is in."""

    @property
    def gateway(self) -> str:
        """The gateway whose archive it is, as the name of the place tells; empty where
        that tells none.
        """
        ...

    def read(self, name: str) -> bytes:
        """Read a small file; empty where there is none."""
        ...

    def open(self, part: ArchivedPart) -> BinaryIO:
        """Open a part; FileNotFoundError where there is none, another OSError where it
        is no file.

        Of one that is longer than its entry says, it may have one byte more than that
        alone.
        """
        ...

    def part_paths(self) -> Iterator[str]:
        """List every file in the folders of days."""
        ...

    def parts_being_placed(self) -> tuple[str, ...]:
        """List parts that may be there ahead of their entry: a run is placing them, or
        was when it was interrupted.
        """
        ...


def gateway_of(folder: str) -> str:
    """Return the gateway whose archive a folder of this name holds; empty where its
    name tells none.
    """
    found = _GATEWAY.fullmatch(folder)
    return found[1] if found else ""


def archives_in(folder: Path) -> tuple[Path, ...]:
    """List the archives of gateways in a folder; the folder itself where there is none.

    Links are not followed.
    """
    try:
        found = sorted(
            path for path in folder.iterdir() if gateway_of(path.name) and path.is_dir()
        )
    except FileNotFoundError:
        return (folder,)
    return tuple(path for path in found if not path.is_symlink()) or (folder,)


def digest_of(file: BinaryIO) -> str:
    """Return the SHA-256 of what is left of a file."""
    hashed = sha256()
    while block := file.read(_BLOCK_BYTES):
        hashed.update(block)
    return hashed.hexdigest()


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """An archive in a folder.

    Links are not followed: they could lead to what somebody changes later.
    """

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def gateway(self) -> str:
        """The gateway whose archive it is, as the folder's name tells; empty where that
        tells none.
        """
        return gateway_of(self.folder.absolute().name)

    def read(self, name: str) -> bytes:
        """Read a small file; empty where there is none, OSError where it is no file."""
        try:
            with open_untrusted(self.folder / name) as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def open(self, part: ArchivedPart) -> BinaryIO:
        """Open a part; FileNotFoundError where there is none, another OSError where it
        is no file.
        """
        path = Path(part.path)
        day = os.open(
            self.folder / path.parent,
            os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
        )
        try:
            return open_untrusted(Path(path.name), folder=day)
        finally:
            os.close(day)

    def part_paths(self) -> Iterator[str]:
        """List every file in the folders of days, and what is named as one
        and is none.
        """
        for day in sorted(self.folder.glob("day=*")):
            if day.is_dir() and not day.is_symlink():
                yield from (f"{day.name}/{name}" for name in sorted(os.listdir(day)))
            else:
                yield day.name

    def parts_being_placed(self) -> tuple[str, ...]:
        """List parts that may be there ahead of their entry, as the run has
        noted them.
        """
        return tuple(self.read(PLACING).decode(errors="replace").splitlines())

    def fetched_since(self) -> str:
        """Return from which time on the parts of a mirror were fetched; empty: all, or
        it is no mirror.
        """
        return self.read(FETCHED).decode(errors="replace").strip()
