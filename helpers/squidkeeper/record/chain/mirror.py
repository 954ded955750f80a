"""A mirror of an object store in a folder: archives as they are in the store, each checked by its chain.

What is there already is not fetched again: parts and lines of a chain never change. A mirror is an archive, so that
every reader and `archive verify` take it. `FETCHED` notes from which time on its parts were fetched.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace as replace_file
from squidkeeper.base.errors import StoreFailed
from squidkeeper.base.squid_account import squid_account
from squidkeeper.record.chain.chain import CHAIN, HEAD, parse_chain, write_lock
from squidkeeper.record.chain.entries import ArchivedPart
from squidkeeper.record.chain.places import FETCHED, FolderPlace
from squidkeeper.record.chain.stores import ObjectStore, check_space, fetch_part, folder_of

_MODE: Final = 0o640


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched of one archive. `missing`: parts that the store lacks, or has with other content."""

    gateway: str
    parts: int
    bytes: int
    missing: tuple[str, ...] = ()
    failure: str = ""


def fetch_archives(store: ObjectStore, folder: Path, since: str = "") -> Iterator[Fetched]:
    """Fetch what a folder lacks of each archive in a store; `StoreFailed` if it cannot be listed, `ArchiveInUse`.

    An archive that cannot be fetched keeps no other from it: each gateway writes its own.
    """
    for archive in store.archives():
        try:
            yield _fetch_archive(archive, folder_of(archive, folder), since)
        except (StoreFailed, OSError) as error:
            yield Fetched(archive.gateway, 0, 0, failure=str(error))


def _fetch_archive(store: ObjectStore, folder: Path, since: str) -> Fetched:
    _have_folder(folder)
    with write_lock(folder):
        head, content = store.read(HEAD), store.read(CHAIN)  # in this order: a run adds lines before its head
        if not content:
            raise StoreFailed(f"{store}: there is no archive here")
        local = FolderPlace(folder).read(CHAIN)
        if not content.startswith(local):
            text = "has another chain than the mirror: one of them was changed, or is an older one"
            raise StoreFailed(f"{store} {text}: squidkeeper archive verify tells more ({folder})")
        chain = parse_chain(content, Path(str(store)))
        if chain.damaged:
            raise StoreFailed(f"{chain.damaged[0]}: a damaged chain is not fetched")
        begin = min(since, FolderPlace(folder).fetched_since()) if local else since
        wanted = [part for part in chain.parts.values() if part.is_of(begin, "") and not _is_there(folder, part)]
        check_space(store, wanted, folder)
        missing = tuple(part.path for part in wanted if not fetch_part(store, part, folder))
        for name, new in ((FETCHED, begin.encode()), (CHAIN, content), (HEAD, head)):
            replace_file(folder / name, new, _MODE)
    size = sum(part.bytes for part in wanted if part.path not in missing)
    return Fetched(store.gateway, len(wanted) - len(missing), size, missing)


def _have_folder(folder: Path) -> None:
    """Make a folder of a mirror. Root gives it to Squid's group, as which root queries; what comes into it follows."""
    is_new = not folder.exists()
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return
    if is_new and (squid := squid_account()):
        os.chown(folder, -1, squid.group)
    for one in (folder, *folder.glob("day=*")):
        one.chmod(stat.S_IMODE(one.stat().st_mode) | stat.S_ISGID)


def _is_there(folder: Path, part: ArchivedPart) -> bool:
    try:
        return (folder / part.path).stat().st_size == part.bytes
    except FileNotFoundError:
        return False
