"""The chain on disk: `chain.jsonl` of an archive.

An entry is the commit of the parts that it names.

A part that no entry names does not exist. A torn last line is no entry; the next one is
written in its place.
"""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace as replace_file
from squidkeeper.base.errors import ArchiveInUse, InvalidEntry
from squidkeeper.record.chain.entries import (
    FIRST_PREVIOUS,
    ArchivedPart,
    ChainEntry,
    EntryKind,
    Head,
    digest,
    format_entry,
    format_head,
    head_number,
    parse_entry,
    utc_now,
)
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.chain.places import FolderPlace, gateway_of

CHAIN: Final = "chain.jsonl"
HEAD: Final = "head.json"
LOCK: Final = "archive.lock"
_MODE: Final = 0o640  # Squid's group reads


@dataclass(frozen=True, slots=True)
class Chain:
    """The entries of an archive.

    `damaged`: lines that are no entries, each with its place and what is wrong.
    """

    entries: tuple[ChainEntry, ...] = ()
    damaged: tuple[str, ...] = ()
    last_line: bytes = b""
    head_number: int = (
        0  # as the head has it: a chain that lost its end uses no number twice
    )

    @property
    def next_number(self) -> int:
        """The number of the next entry."""
        return (
            max(
                len(self.entries) + len(self.damaged),
                self.head_number,
                *(e.number for e in self.entries),
                0,
            )
            + 1
        )

    @property
    def digest(self) -> str:
        """The SHA-256 of the last line."""
        return digest(self.last_line) if self.last_line else FIRST_PREVIOUS

    def continues(self, digest: str) -> bool:
        """Whether it is the chain whose last line had this SHA-256, or that one with
        more entries.
        """
        return digest in (self.digest, *(entry.previous for entry in self.entries))

    @property
    def named(self) -> dict[str, ArchivedPart]:
        """The parts that were archived, by path, also those that retention
        has removed.
        """
        return {
            part.path: part
            for entry in self.entries
            if entry.kind is EntryKind.PARTS
            for part in entry.parts
        }

    @property
    def removed(self) -> dict[str, ArchivedPart]:
        """The parts that a tombstone names, by path."""
        return {
            part.path: part
            for entry in self.entries
            if entry.kind is EntryKind.TOMBSTONE
            for part in entry.parts
        }

    @property
    def parts(self) -> dict[str, ArchivedPart]:
        """The parts that should be there, by path, in the order of the chain.

        No path is used twice.
        """
        removed = self.removed
        return {path: part for path, part in self.named.items() if path not in removed}

    def archived_bytes(self, first_line_sha256: str) -> int:
        """Return how many bytes of a log are archived: it may have grown since, or be a
        copy that was cut.
        """
        sources = (entry.source for entry in self.entries)
        return max(
            (
                one.bytes
                for one in sources
                if one and one.first_line_sha256 == first_line_sha256
            ),
            default=0,
        )


def read_chain(folder: Path) -> Chain:
    """Read the chain of an archive, without its signatures; no chain is an empty one.

    OSError if it is unreadable.
    """
    place = FolderPlace(folder)
    return parse_chain(place.read(CHAIN), folder / CHAIN, head_number(place.read(HEAD)))


def is_archive(folder: Path) -> bool:
    """Whether a folder is an archive, those of gateways, or empty: it may become one.

    OSError if it is closed.
    """
    names = set(os.listdir(folder))
    return (
        not names
        or not names.isdisjoint((CHAIN, HEAD, LOCK))
        or any(map(gateway_of, names))
    )


def parse_chain(content: bytes, file: Path, head: int = 0) -> Chain:
    """Parse the content of a chain; `file` is for messages."""
    entries, damaged = [], []
    lines = content.split(b"\n")[:-1]  # what follows the last newline is torn
    for number, line in enumerate(lines, 1):
        try:
            entries.append(parse_entry(line))
        except InvalidEntry as error:
            damaged.append(f"{file}:{number}: {error}")
    return Chain(tuple(entries), tuple(damaged), lines[-1] if lines else b"", head)


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Keep other runs from changing an archive; `ArchiveInUse` if one is under way."""
    with open(
        os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb"
    ) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveInUse(
                f"{folder}: another run of squidkeeper archive is under way: wait for its end"
            ) from None
        yield


def append_entry(
    folder: Path, entry: ChainEntry, key: ArchiveKey | None = None
) -> ChainEntry:
    """Append an entry, signed if there is a key, with a new head; return it as written.

    It is on disk then.

    Call it under `write_lock`, after each part that it names is on disk under its name.
    """
    content, chain = FolderPlace(folder).read(CHAIN), read_chain(folder)
    signer = key.public.id if key else ""
    written = replace(
        entry,
        number=chain.next_number,
        previous=chain.digest,
        time=utc_now(),
        key=signer,
    )
    _append(folder, content.rfind(b"\n") + 1, format_entry(written, key) + b"\n")
    if key:
        seal_head(folder, key)
    return written


def seal_head(folder: Path, key: ArchiveKey) -> Head:
    """Write the head of the chain as it is, signed, and return it.

    Each run ends with it: its time is that of the run.

    Call it under `write_lock`.
    """
    chain = read_chain(folder)
    number, gateway = chain.next_number - 1, platform.node()
    head = Head(
        number=number,
        digest=chain.digest,
        time=utc_now(),
        gateway=gateway,
        key=key.public.id,
    )
    replace_file(
        folder / HEAD,
        format_head(head, key),
        _MODE,
        (os.geteuid(), folder.stat().st_gid),
    )
    return head


def unknown_parts(folder: Path, chain: Chain) -> tuple[str, ...]:
    """List the parts on disk that no entry names, a tombstone neither.

    They stay: the chain may have lost lines.
    """
    named = {part.path for entry in chain.entries for part in entry.parts}
    found = (f"{path.parent.name}/{path.name}" for path in folder.glob("day=*/part-*"))
    return tuple(sorted(path for path in found if path not in named))


def _append(folder: Path, at: int, line: bytes) -> None:
    with open(
        os.open(folder / CHAIN, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _MODE), "wb"
    ) as file:
        os.fchmod(file.fileno(), _MODE)  # whatever the umask is
        with suppress(PermissionError):
            os.fchown(file.fileno(), -1, folder.stat().st_gid)
        file.truncate(at)  # without a torn line
        file.seek(at)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
