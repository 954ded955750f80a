"""One run of the archive: each rotated log that is complete and new becomes parts and
one entry of the chain.

The order makes it safe to kill a run at any step. All parts of a log wait in `incoming`
until they are on disk, with a list of the names that they get; they exist only once the
entry does. What a killed run left is removed by the next one, by that list, and it
begins with the same log again. A part that no entry names for another reason is never
removed.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Final

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import (
    ArchiveFailed,
    ExtraMissing,
    SquidkeeperError,
    StoreFailed,
    UnreadableLog,
    describe,
)
from squidkeeper.base.formatting import quantity
from squidkeeper.base.rotated_logs import not_rotated, rotated, written_until
from squidkeeper.base.squid_counters import SquidSample, read_samples
from squidkeeper.record.archive.part_writer import (
    NewPart,
    PartWriter,
    RotatedContent,
    open_content,
)
from squidkeeper.record.archive.retention import (
    ArchiveBounds,
    remove_over_bounds,
    remove_tombstoned,
)
from squidkeeper.record.archive_status import (
    MOST_FILES,
    ArchiveStatus,
    FileOnDisk,
    archive_status_file,
    read_archive_status,
)
from squidkeeper.record.chain.chain import (
    CHAIN,
    Chain,
    append_entry,
    read_chain,
    seal_head,
    sync_folder,
    unknown_parts,
    write_lock,
)
from squidkeeper.record.chain.entries import (
    ArchivedPart,
    ArchivedSource,
    ChainEntry,
    EntryKind,
    Head,
)
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.line_counts import samples_for
from squidkeeper.record.chain.places import INCOMING, PLACING, FolderPlace
from squidkeeper.record.chain.stores import Copied, ObjectStore, copy_archive
from squidkeeper.record.table.database import open_database
from squidkeeper.serving.squid_crashes import read_crashes

QUIET_SECONDS: Final = (
    60.0  # a log is complete when nobody has written to it for so long
)
_CHUNK_BYTES: Final = 256 * 1024 * 1024  # of lines in a part, at most
_PIECE_BYTES: Final = 32 * 1024 * 1024  # of lines that are read together
_MEMORY_LIMIT: Final = "512MB"
MOST_NAMED: Final = 10  # of what was refused: Squid's account could make any number
_NAMES: Final = "access.log.1.gz or access.log-20261126"
_FOLDER_MODE: Final = 0o750


@dataclass(frozen=True, slots=True)
class Archived:
    """What one run has archived from one log.

    `damage` says what of the log could not be.
    """

    name: str
    lines: int
    invalid: int
    damage: str = ""


@dataclass(slots=True)
class RunReport:
    """What one run has done; `failures` has a text for each log that could not be
    archived, and for the run.
    """

    archived: list[Archived] = field(default_factory=list)
    # logs that may still be written to
    waiting: list[str] = field(default_factory=list)
    # logs of which nothing can be read: they stay, and no run fails
    refused: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # days
    chain: str = ""  # the SHA-256 of the last entry
    head: Head | None = None  # of the chain as it is now
    copied: Copied | None = None
    copy_failure: str = ""

    @property
    def problems(self) -> list[str]:
        """Everything that failed."""
        return [
            *self.failures,
            *([f"the copy: {self.copy_failure}"] if self.copy_failure else []),
        ]


class Archiver:
    """Archives the rotated logs of one access log into one folder."""

    def __init__(
        self,
        access_log: Path,
        folder: Path,
        key: ArchiveKey | None = None,
        bounds: ArchiveBounds | None = None,
        chunk_bytes: int = _CHUNK_BYTES,
        state: Path
        | None = None,  # the state folder, with the samples of Squid's own counter
        store: ObjectStore | None = None,  # for a copy
    ) -> None:
        self._access_log = access_log
        self._folder = folder
        self._key = key
        self._bounds = bounds or ArchiveBounds()
        self._chunk_bytes = chunk_bytes
        self._state = state
        self._store = store

    def run(self) -> RunReport:
        """Archive what is complete and new, then remove what is over the bounds.

        `ArchiveInUse` if another run is under way; OSError if the archive cannot be
        read or written at all.
        """
        with write_lock(self._folder):
            report, before = (
                RunReport(),
                read_archive_status(self._folder) or ArchiveStatus(),
            )
            done: set[FileOnDisk] = set()
            try:
                self._archive_logs(report, before, done)
            except BaseException as error:
                report.failures.append(_told(error))
                raise
            finally:
                self._write_status(report, before, done)
            return report

    def _archive_logs(
        self, report: RunReport, before: ArchiveStatus, done: set[FileOnDisk]
    ) -> None:
        chain = read_chain(self._folder)
        self._clean(chain)
        remove_tombstoned(self._folder, chain)
        report.failures += [*chain.damaged, *self._unknown_parts(chain)]
        logs = rotated(self._access_log)
        if chain.continues(
            before.chain
        ):  # else an older one was put back, which may lack what they hold
            done.update(before.archived.intersection(map(FileOnDisk.of, logs)))
        for path in logs:
            if FileOnDisk.of(path) not in done:
                self._archive_log(path, report, done)
        unknown = not_rotated(self._access_log)
        report.refused += [
            f"{path.name!r}: not the name of a rotated log, such as {_NAMES}"
            for path in unknown
        ]
        self._append_crashes(chain)
        report.removed += remove_over_bounds(
            self._folder, self._bounds, self._key, datetime.now(UTC)
        )
        report.chain = read_chain(self._folder).digest
        if self._key:
            report.head = seal_head(self._folder, self._key)
        if self._store:
            self._copy(self._store, report)

    def _append_crashes(self, chain: Chain) -> None:
        known = {
            entry.reason for entry in chain.entries if entry.kind is EntryKind.CRASH
        }
        for crash in read_crashes(self._state) if self._state else ():
            if crash.unrecorded not in known:
                append_entry(
                    self._folder,
                    ChainEntry(kind=EntryKind.CRASH, reason=crash.unrecorded),
                    self._key,
                )

    def _copy(self, store: ObjectStore, report: RunReport) -> None:
        """Copy what the store lacks; what fails does not make the archive fail."""
        try:
            report.copied = copy_archive(self._folder, store)
        except (StoreFailed, ExtraMissing, OSError) as error:
            report.copy_failure = str(error)

    def _archive_log(
        self, path: Path, report: RunReport, done: set[FileOnDisk]
    ) -> None:
        file = FileOnDisk.of(path)
        if file is None:
            return
        if abs(time.time() - written_until(path)) < QUIET_SECONDS:
            report.waiting.append(path.name)
            return
        try:
            archived = self._archive_content(path)
        except UnreadableLog as error:  # Squid's account can put anything there
            report.refused.append(f"{path.name}: {error}")
            return
        except Exception as error:  # noqa: BLE001 - a log that we fail on must not keep the others from the archive
            report.failures.append(f"{path.name}: {_told(error)}")
            return
        if archived:
            report.archived.append(archived)
        # as it was before it was read: one that has grown meanwhile is another
        done.add(file)

    def _archive_content(self, path: Path) -> Archived | None:
        """Archive what of a log is not archived yet; None: all of it is."""
        with open_content(path) as content:
            chain = read_chain(self._folder)
            self._clean(chain)
            content.skip(chain.archived_bytes(content.first_line_sha256))
            if content.ended:
                return None
            written = dict(self._write_parts(content, path, chain.next_number))
        parts = tuple(part.named(name) for name, part in written.items())
        source = ArchivedSource(
            name=path.name,
            first_line_sha256=content.first_line_sha256,
            bytes=content.bytes,
            lines=sum(part.rows for part in parts),
            squid=self._samples(chain, parts),
        )
        self._place(written)
        append_entry(
            self._folder,
            ChainEntry(kind=EntryKind.PARTS, source=source, parts=parts),
            self._key,
        )
        (self._folder / PLACING).unlink()
        return Archived(
            path.name, source.lines, sum(part.invalid for part in parts), _lost(content)
        )

    def _samples(
        self, chain: Chain, parts: tuple[ArchivedPart, ...]
    ) -> tuple[SquidSample, ...] | None:
        if self._state is None:
            return None
        return samples_for(
            chain, read_samples(self._state), max(part.last for part in parts)
        )

    def _write_parts(
        self, content: RotatedContent, path: Path, number: int
    ) -> Iterator[tuple[str, NewPart]]:
        day = datetime.fromtimestamp(written_until(path), UTC).strftime("%Y-%m-%d")
        for chunk in count():
            if content.ended:
                return
            for part in self._write_chunk(content, f"{chunk:04d}", day):
                day = part.day
                yield f"day={part.day}/part-{number:08d}-{part.file.stem}.parquet", part

    def _write_chunk(
        self, content: RotatedContent, name: str, day: str
    ) -> list[NewPart]:
        incoming, expected, start = self._folder / INCOMING, 0, content.bytes
        with open_database(threads=1, memory_limit=_MEMORY_LIMIT) as database:
            writer = PartWriter(database)
            while not content.ended and content.bytes - start < self._chunk_bytes:
                piece = incoming / f"{name}.log"
                expected += content.write_lines(
                    piece, min(_PIECE_BYTES, self._chunk_bytes)
                )
                writer.add(piece)
                piece.unlink()
            parts = list(writer.write(incoming, name, day))
        found = sum(part.rows for part in parts)
        if found != expected:
            raise ArchiveFailed(
                f"{found} rows were made of {expected} lines: nothing of it was archived"
            )
        return parts

    def _place(self, parts: Mapping[str, NewPart]) -> None:
        """Name the parts. They do not exist until an entry names them."""
        taken = next(
            (name for name in parts if os.path.lexists(self._folder / name)), None
        )
        if taken:
            raise ArchiveFailed(
                f"{taken} is there already, and no entry of the chain names it: move it away"
            )
        replace(self._folder / PLACING, "".join(f"{name}\n" for name in parts).encode())
        for name, part in parts.items():
            target = self._folder / name
            _have_folder(target.parent)
            part.file.rename(target)
        for folder in {(self._folder / name).parent for name in parts}:
            sync_folder(folder)
        sync_folder(self._folder)

    def _clean(self, chain: Chain) -> None:
        for name in (
            set(FolderPlace(self._folder).parts_being_placed()) - chain.parts.keys()
        ):
            (self._folder / name).unlink(missing_ok=True)
        rmtree(self._folder / INCOMING, ignore_errors=True)
        _have_folder(self._folder / INCOMING)

    def _unknown_parts(self, chain: Chain) -> Iterator[str]:
        """Name the parts that no entry names: the chain may have lost its end."""
        unknown = unknown_parts(self._folder, chain)
        if unknown:
            others = f" and {len(unknown) - 1:,} others" if unknown[1:] else ""
            what = f"{unknown[0]}{others} {'are' if others else 'is'} in no entry of {CHAIN}, which may be an older one"
            yield f"{what}: put the newer one back, or move these parts away"

    def _write_status(
        self, report: RunReport, before: ArchiveStatus, done: Iterable[FileOnDisk]
    ) -> None:
        now = time.time()
        damaged = [f"{log.name}: {log.damage}" for log in report.archived if log.damage]
        newest = sorted(done, key=lambda log: log.written_ns)[-MOST_FILES:]
        status = ArchiveStatus(
            ended=now,
            succeeded=before.succeeded if report.problems else now,
            failure="; ".join(report.problems),
            damaged=(*before.damaged[-9:], *damaged),
            refused=tuple(report.refused[:MOST_NAMED]),
            archived=frozenset(newest),
            chain=report.chain,
        )
        with suppress(OSError):
            # a full disk: the report that is there grows old, which the exporter
            # reports
            owner = (os.geteuid(), self._folder.stat().st_gid)
            archive_status_file(self._folder).write(status, owner)


def _have_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(mode=_FOLDER_MODE)
        folder.chmod(_FOLDER_MODE)  # whatever the umask is


def _lost(content: RotatedContent) -> str:
    cut = f"{quantity(content.cut_lines, 'line')} of more than 8 MiB: only the beginning is kept"
    return "; ".join(filter(None, [content.damage, cut if content.cut_lines else ""]))


def _told(error: BaseException) -> str:
    """Say in one line why something failed; an error that was not foreseen is named,
    with its place.
    """
    import duckdb

    foreseen = isinstance(error, (OSError, SquidkeeperError, duckdb.Error))
    return next(iter(str(error).splitlines()), "") if foreseen else describe(error)
