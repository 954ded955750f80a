"""An archive in an object store: a copy whose objects are written once and never
replaced.

    day=YYYY-MM-DD/part-….parquet     each part, as it is in the archive
    chain/NNNNNNNNNNNN.json           each line of the chain
    heads/NNNNNNNNNNNN.json           the first head of each number

Where an object has other content than the archive, the archive is another one, or an
old one: copying stops. s3fs, of the extra `s3`, is imported where a store is opened.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from squidkeeper.base.atomic_write import replace as replace_file
from squidkeeper.base.errors import ObjectTooLarge, StoreFailed
from squidkeeper.base.formatting import byte_size
from squidkeeper.base.squid_account import squid_account
from squidkeeper.policy.extras import require
from squidkeeper.record.chain.chain import (
    CHAIN,
    HEAD,
    append_entry,
    parse_chain,
    write_lock,
)
from squidkeeper.record.chain.entries import (
    ArchivedPart,
    ChainEntry,
    EntryKind,
    number_of,
    parse_head,
)
from squidkeeper.record.chain.places import FETCHED, FolderPlace, digest_of, gateway_of
from squidkeeper.record.chain.store_settings import StoreSettings, revealed

if TYPE_CHECKING:
    from s3fs import S3FileSystem

_CHAIN: Final = "chain"  # the folders of objects
_HEADS: Final = "heads"
_TIMEOUT_SECONDS: Final = (
    60  # for a read or write of the connection, and for a whole exchange with few bytes
)
_BYTES_PER_SECOND: Final = 100_000  # that a store has to take or give of an object
_RETRIES: Final = 2  # the next run tries again
_FOLDER_MODE: Final = 0o750  # as the archive's own
_FILE_MODE: Final = 0o640
# bytes of a chain: an entry, for one rotated log, has about one kilobyte
_READ_AT_MOST: Final = 64 * 1024 * 1024
_OBJECTS_AT_MOST: Final = 1_000_000  # of an archive: four and more for each rotated log
_WHO_WRITES: Final = "Only the gateway writes there: see what it has written"
_BLOCK_BYTES: Final = 8 * 1024 * 1024
_TEMPORARY: Final = "/var/tmp"  # noqa: S108 - on a disk, where /tmp can be memory; made with a name of its own, 0600
_MODE: Final = 0o640


class ObjectStore:
    """One archive in a store; `StoreFailed` with what the store answered if that is no
    success.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings

    def __str__(self) -> str:
        return f"s3://{self._settings.root}"

    @property
    def gateway(self) -> str:
        """The gateway whose archive it is, as the last part of its prefix tells; empty
        where that tells none.
        """
        return gateway_of(self._settings.root.rpartition("/")[2])

    def archives(self) -> tuple[ObjectStore, ...]:
        """List the archives of gateways in it; itself where there is none."""
        try:
            with self._failing("listing", or_missing=True):
                paths = self._files.ls(
                    self._path(""), detail=False, timeout=_TIMEOUT_SECONDS
                )
        except FileNotFoundError:
            return (self,)
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        found = (
            replace(self._settings, url=f"{self}/{name}")
            for name in names
            if gateway_of(name)
        )
        return tuple(map(ObjectStore, found)) or (self,)

    # Reading, as `ArchivePlace`

    def read(self, name: str) -> bytes:
        """Read the chain, or its newest head; empty where there is none.

        `ObjectTooLarge`.
        """
        with self._failing(name):
            if name == CHAIN:
                return self._read_chain()
            newest = self._names(_HEADS)[-1:] if name == HEAD else []
        return self.read_object(newest[0]) if newest else b""

    def read_object(self, name: str) -> bytes:
        """Read a small object; `ObjectTooLarge` if it is none."""
        with self._failing(name):
            content = b"".join(self._blocks(name, _READ_AT_MOST + 1))
        self._check_readable(name, len(content))
        return content

    def open(self, part: ArchivedPart) -> BinaryIO:
        """Fetch a part into a file without a name, and open it; FileNotFoundError,
        `ObjectTooLarge`.
        """
        check_space(self, [part], Path(_TEMPORARY))
        with tempfile.NamedTemporaryFile(dir=_TEMPORARY) as file:
            self.fetch(part, Path(file.name))
            return Path(file.name).open("rb")

    def fetch(self, part: ArchivedPart, target: Path) -> None:
        """Write a part to a file; FileNotFoundError where the store has none.

        The gateway states how long a part is, and has put the object there. Of a longer
        one, one byte more is fetched, so that it is not as its entry says.
        """
        with self._failing(part.path, or_missing=True), target.open("wb") as file:
            file.writelines(self._blocks(part.path, part.bytes + 1))

    def part_paths(self) -> Iterator[str]:
        """List every object in the folders of days."""
        with self._failing("listing"):
            yield from (name for name in self._names("") if name.startswith("day="))

    def parts_being_placed(self) -> tuple[str, ...]:
        """List the parts of numbers that the chain lacks: a copy writes them ahead of
        their entries.
        """
        with self._failing("listing"):
            last = max(self._names(_CHAIN), default=_object(_CHAIN, 0))
            return tuple(
                name
                for name in self._names("")
                if _object(_CHAIN, number_of(name)) > last
            )

    # Writing

    def sizes(self) -> dict[str, int]:
        """List every object, with its size."""
        with self._failing("listing"):
            return self._sizes("")

    def add(self, name: str, content: bytes) -> None:
        """Write an object; one that is there must have this content."""
        with self._failing(name):
            try:
                self._files.pipe_file(
                    self._path(name),
                    content,
                    mode="create",
                    timeout=_seconds(len(content)),
                )
            except FileExistsError:
                if self.read_object(name) != content:
                    raise StoreFailed(_another(self, name)) from None

    def add_part(self, part: ArchivedPart, folder: Path) -> None:
        """Write a part of the archive in a folder as an object; one that is there must
        have this content.
        """
        file = folder / part.path
        with file.open("rb") as content:
            if digest_of(content) != part.sha256:
                raise StoreFailed(
                    f"{file} is not as its entry says: squidkeeper archive verify tells more"
                )
        with self._failing(part.path):
            try:
                self._files.put_file(
                    str(file),
                    self._path(part.path),
                    mode="create",
                    timeout=_seconds(part.bytes),
                )
            except FileExistsError:
                with self.open(part) as there:
                    if digest_of(there) != part.sha256:
                        raise StoreFailed(_another(self, part.path)) from None

    @cached_property
    def _files(self) -> S3FileSystem:
        from s3fs import S3FileSystem

        settings, keys = (
            self._settings,
            revealed(self._settings.keys) if self._settings.keys else None,
        )
        client: dict[str, Any] = (
            {"verify": settings.ca_file} if settings.ca_file else {}
        )
        client |= {"region_name": settings.region} if settings.region else {}
        limits: dict[str, Any] = {
            "connect_timeout": _TIMEOUT_SECONDS,
            "read_timeout": _TIMEOUT_SECONDS,
        }
        limits |= {"retries": {"max_attempts": _RETRIES}}
        files = S3FileSystem(
            key=keys.access_key_id if keys else None,
            secret=keys.secret_access_key if keys else None,
            token=(keys.session_token or None) if keys else None,
            endpoint_url=settings.endpoint or None,
            client_kwargs=client,
            config_kwargs=limits,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        with self._failing("opening it"):
            endpoint = files.s3.meta.endpoint_url
        if not endpoint.startswith("https://"):
            raise StoreFailed(
                f"{self}: its endpoint {endpoint} is not https://…: records would leave in clear text"
            )
        return files

    def _names(self, folder: str) -> list[str]:
        return sorted(self._sizes(folder))

    def _sizes(self, folder: str) -> dict[str, int]:
        bucket, _, prefix = self._path(folder).partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        found: dict[str, int] = {}
        while page := self._files.call_s3(
            "list_objects_v2", **asked, timeout=_TIMEOUT_SECONDS
        ):
            found |= {
                self._name(f"{bucket}/{one['Key']}"): int(one["Size"])
                for one in page.get("Contents", ())
            }
            if len(found) > _OBJECTS_AT_MOST:
                raise ObjectTooLarge(
                    f"{self} has more than {_OBJECTS_AT_MOST:,} objects. {_WHO_WRITES}"
                )
            if not page.get("IsTruncated"):
                break
            asked["ContinuationToken"] = page["NextContinuationToken"]
        # a folder, as some tools make it
        return {name: size for name, size in found.items() if not name.endswith("/")}

    def _read_chain(self) -> bytes:
        """Read the lines of the chain, each as long as it was when all were
        measured.
        """
        found = {
            self._path(name): size
            for name, size in sorted(self._sizes(_CHAIN).items())
            if size
        }
        self._check_readable(_CHAIN, sum(found.values()))
        sizes = list(found.values())
        lines = self._files.cat_ranges(
            list(found), 0, sizes, on_error="raise", timeout=_seconds(sum(sizes))
        )
        return b"".join(lines)

    def _check_readable(self, name: str, size: int) -> None:
        if size > _READ_AT_MOST:
            text = f"{self}/{name} is too large to be read: expected {byte_size(_READ_AT_MOST)} at most"
            raise ObjectTooLarge(f"{text}. {_WHO_WRITES}")

    def _blocks(self, name: str, most: int) -> Iterator[bytes]:
        path = self._path(name)
        end = min(most, int(self._files.info(path, timeout=_TIMEOUT_SECONDS)["size"]))
        for start in range(0, end, _BLOCK_BYTES):
            until = min(end, start + _BLOCK_BYTES)
            yield self._files.cat_file(
                path, start=start, end=until, timeout=_seconds(until - start)
            )

    def _path(self, name: str) -> str:
        return f"{self._settings.root}/{name}".rstrip("/")

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._settings.root}/")

    @contextmanager
    def _failing(self, what: str, *, or_missing: bool = False) -> Iterator[None]:
        """Say what failed, without keys: errors of S3 name none.

        FileNotFoundError with `or_missing`.
        """
        require("s3")
        from botocore.exceptions import BotoCoreError

        try:
            yield
        except (OSError, BotoCoreError) as error:
            if or_missing and isinstance(error, FileNotFoundError):
                raise
            raise StoreFailed(f"{self}: {what}: {error}") from None


def _seconds(size: int) -> float:
    """Return the time that an exchange may take in all: the timeouts of the connection
    are for each read.
    """
    return _TIMEOUT_SECONDS + size / _BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Copied:
    """What copying has written."""

    parts: int
    entries: int


def copy_archive(folder: Path, store: ObjectStore) -> Copied:
    """Copy what a store lacks: parts, then the lines of the chain, then the head.

    `StoreFailed`, OSError.

    Call it under `write_lock`, or for an archive that nobody changes.
    """
    archive = FolderPlace(folder)
    content = archive.read(CHAIN)
    chain = parse_chain(content, folder / CHAIN)
    if chain.damaged:
        raise StoreFailed(
            f"{chain.damaged[0]}: a damaged chain is not copied: squidkeeper archive verify tells more"
        )
    there = store.sizes()
    lines = {
        _object(_CHAIN, entry.number): line + b"\n"
        for entry, line in zip(chain.entries, content.split(b"\n"), strict=False)
    }
    _check_same(store, lines, there)
    parts = [
        part for part in chain.parts.values() if there.get(part.path) != part.bytes
    ]
    for part in parts:
        store.add_part(part, folder)
    new = [name for name in lines if name not in there]
    for name in new:
        store.add(name, lines[name])
    _copy_head(archive.read(HEAD), store, there)
    return Copied(len(parts), len(new))


def _check_same(
    store: ObjectStore, lines: dict[str, bytes], there: Mapping[str, int]
) -> None:
    """Check that the store has a beginning of this chain: each line holds the hash of
    the one before.
    """
    copied = [name for name in sorted(there) if name.startswith(f"{_CHAIN}/")]
    if copied and (
        copied[-1] not in lines or store.read_object(copied[-1]) != lines[copied[-1]]
    ):
        raise StoreFailed(_another(store, copied[-1]))


def _copy_head(content: bytes, store: ObjectStore, there: Mapping[str, int]) -> None:
    """Copy the head, unless the store has the one of its number already: each run signs
    it again.
    """
    if content:
        name = _object(_HEADS, parse_head(content)[0].number)
        if name not in there:
            store.add(name, content)


def _object(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


@contextmanager
def fetched_archive(
    store: ObjectStore, parent: Path, since: str = "", until: str = ""
) -> Iterator[Path]:
    """Fetch the parts with records of a period into a folder in `parent`, for the
    block.

    `StoreFailed`.

    `since` and `until` are times as records have them. A part that is not as its entry
    says is left out, so that its reader reports it as missing.
    """
    with tempfile.TemporaryDirectory(
        prefix="archive-", dir=parent, ignore_cleanup_errors=True
    ) as name:
        for archive in store.archives():
            folder = folder_of(archive, Path(name))
            folder.mkdir(exist_ok=True)
            _fetch_period(archive, folder, since, until)
        yield Path(name)


def folder_of(archive: ObjectStore, parent: Path) -> Path:
    """Name the folder of an archive below another one: one with the gateway's name,
    where the store tells it.
    """
    return parent / f"gateway={archive.gateway}" if archive.gateway else parent


def _fetch_period(store: ObjectStore, folder: Path, since: str, until: str) -> None:
    chain = parse_chain(store.read(CHAIN), Path(f"{store}/{_CHAIN}"))
    wanted = [
        _of_period(entry, since, until)
        for entry in chain.entries
        if entry.kind is EntryKind.PARTS
    ]
    check_space(store, [part for entry in wanted for part in entry.parts], folder)
    for entry in wanted:
        for part in entry.parts:
            fetch_part(store, part, folder)
        append_entry(folder, entry)


def check_space(
    store: ObjectStore, parts: Iterable[ArchivedPart], folder: Path
) -> None:
    """Let one archive take at most half of what a disk has free without it: the rest is
    for others.

    `ObjectTooLarge`.

    So what is in the folder counts as well. A gateway cannot fill the disk by adding to
    its archive again and again.
    """
    size, free = sum(part.bytes for part in parts), shutil.disk_usage(folder).free
    there = sum(file.lstat().st_size for file in folder.glob("day=*/*"))
    if size and there + size > free - size:
        text = f"{byte_size(size)} are to be fetched. {folder} has {byte_size(there)}, and {byte_size(free)} free"
        what = "one archive takes at most half of what the disk has free without it"
        raise ObjectTooLarge(
            f"{store}: {text}, and {what}: name a shorter period (--since, --until) or a larger disk"
        )


def _of_period(entry: ChainEntry, since: str, until: str) -> ChainEntry:
    return replace(
        entry, parts=tuple(part for part in entry.parts if part.is_of(since, until))
    )


def fetch_part(store: ObjectStore, part: ArchivedPart, folder: Path) -> bool:
    """Fetch a part into a folder, unless it is missing or not as its entry
    says: False.
    """
    target = folder / part.path
    target.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    incoming = target.with_name(f".{target.name}")
    try:
        incoming.touch()
        incoming.chmod(_FILE_MODE)
        store.fetch(part, incoming)
        with incoming.open("rb") as content:
            if digest_of(content) != part.sha256 or content.tell() != part.bytes:
                return False
        incoming.rename(target)
    except FileNotFoundError:
        return False
    finally:
        incoming.unlink(missing_ok=True)
    return True


def _another(store: ObjectStore, name: str) -> str:
    return (
        f"{store}/{name} has other content than the archive: it is the copy of another archive, or this is an old one"
        " that was put back: squidkeeper archive verify tells more"
    )


# A mirror of an object store in a folder: archives as they are in the store, each
# checked by its chain.
#
# What is there already is not fetched again: parts and lines of a chain never change. A
# mirror is an archive, so that every reader and `archive verify` take it. `FETCHED`
# notes from which time on its parts were fetched.


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched of one archive.

    `missing`: parts that the store lacks, or has with other content.
    """

    gateway: str
    parts: int
    bytes: int
    missing: tuple[str, ...] = ()
    failure: str = ""


def fetch_archives(
    store: ObjectStore, folder: Path, since: str = ""
) -> Iterator[Fetched]:
    """Fetch what a folder lacks of each archive in a store; `StoreFailed` if it cannot
    be listed, `ArchiveInUse`.

    An archive that cannot be fetched keeps no other from it: each gateway writes its
    own.
    """
    for archive in store.archives():
        try:
            yield _fetch_archive(archive, folder_of(archive, folder), since)
        except (StoreFailed, OSError) as error:
            yield Fetched(archive.gateway, 0, 0, failure=str(error))


def _fetch_archive(store: ObjectStore, folder: Path, since: str) -> Fetched:
    _have_folder(folder)
    with write_lock(folder):
        # in this order: a run adds lines before its head
        head, content = (
            store.read(HEAD),
            store.read(CHAIN),
        )
        if not content:
            raise StoreFailed(f"{store}: there is no archive here")
        local = FolderPlace(folder).read(CHAIN)
        if not content.startswith(local):
            text = "has another chain than the mirror: one of them was changed, or is an older one"
            raise StoreFailed(
                f"{store} {text}: squidkeeper archive verify tells more ({folder})"
            )
        chain = parse_chain(content, Path(str(store)))
        if chain.damaged:
            raise StoreFailed(f"{chain.damaged[0]}: a damaged chain is not fetched")
        begin = min(since, FolderPlace(folder).fetched_since()) if local else since
        wanted = [
            part
            for part in chain.parts.values()
            if part.is_of(begin, "") and not _is_there(folder, part)
        ]
        check_space(store, wanted, folder)
        missing = tuple(
            part.path for part in wanted if not fetch_part(store, part, folder)
        )
        for name, new in ((FETCHED, begin.encode()), (CHAIN, content), (HEAD, head)):
            replace_file(folder / name, new, _MODE)
    size = sum(part.bytes for part in wanted if part.path not in missing)
    return Fetched(store.gateway, len(wanted) - len(missing), size, missing)


def _have_folder(folder: Path) -> None:
    """Make a folder of a mirror.

    Root gives it to Squid's group, as which root queries; what comes into it follows.
    """
    is_new = not folder.exists()
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return
    if is_new and (squid := squid_account()):
        os.chown(folder, -1, squid.group)
    for place in (folder, *folder.glob("day=*")):
        place.chmod(stat.S_IMODE(place.stat().st_mode) | stat.S_ISGID)


def _is_there(folder: Path, part: ArchivedPart) -> bool:
    try:
        return (folder / part.path).stat().st_size == part.bytes
    except FileNotFoundError:
        return False
