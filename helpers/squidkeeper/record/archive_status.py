"""What the archive of the access log reports: a small file in its folder, which Squid's
group can read.

The maintenance process deletes no rotated log before it is archived, unless the disk
would fill up. It notes in the state folder what it had to delete.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from squidkeeper.base.status_file import StatusFile

FILE: Final = "status.json"
DELETED: Final = "deleted-logs.json"
MOST_FILES: Final = (
    100_000  # in a report; of more, the oldest are read again by each run
)
_LONGEST: Final = 16 * 1024 * 1024  # bytes of a report: room for these


@dataclass(frozen=True, slots=True)
class FileOnDisk:
    """What a rotated log is known again by under another name, while nobody writes to
    it.
    """

    inode: int
    bytes: int
    written_ns: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Identify a file; None if it is gone."""
        try:
            about = path.lstat()
        except OSError:
            return None
        return cls(about.st_ino, about.st_size, about.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """The last run of `squidkeeper archive`; times are in seconds since 1970, None:
    never.

    `archived` are the rotated logs that are on disk and whose lines are all in the
    archive, by its chain up to the entry with the SHA-256 `chain`.
    """

    ended: float | None = None
    succeeded: float | None = None
    failure: str = ""
    damaged: tuple[
        str, ...
    ] = ()  # rotated logs whose end is unreadable: what could be read is in the archive
    refused: tuple[
        str, ...
    ] = ()  # rotated logs of which nothing could be read, and why: they stay
    archived: frozenset[FileOnDisk] = frozenset()
    chain: str = ""

    def unarchived(self, files: Iterable[Path]) -> list[Path]:
        """List the files that are not archived."""
        return [file for file in files if FileOnDisk.of(file) not in self.archived]


@dataclass(frozen=True, slots=True)
class DeletedLogs:
    """What was deleted before it was archived: files and bytes, all of them; the last
    file, and when.
    """

    files: int = 0
    bytes: int = 0
    last: str = ""
    at: float = 0.0

    def plus(self, name: str, size: int, now: float) -> Self:
        """Add one file."""
        return type(self)(self.files + 1, self.bytes + size, name, now)


def archive_status_file(folder: Path) -> StatusFile[ArchiveStatus]:
    """Return the file of the report in the folder of an archive."""
    return StatusFile(folder / FILE, ArchiveStatus, longest=_LONGEST)


def deleted_logs_file(state: Path) -> StatusFile[DeletedLogs]:
    """Return the file of the note in the state folder."""
    return StatusFile(state / DELETED, DeletedLogs)


def read_archive_status(folder: Path) -> ArchiveStatus | None:
    """Read the report; None if there is no archive.

    One that has not run yet counts as complete when it was made.
    """
    try:
        made = folder.stat().st_mtime
    except OSError:
        return None
    return archive_status_file(folder).read() or ArchiveStatus(succeeded=made)


def read_deleted_logs(state: Path) -> DeletedLogs:
    """Read what was deleted; nothing if there is no note."""
    return deleted_logs_file(state).read() or DeletedLogs()
