"""Stores the revisions that were in force, so that past requests can be decided again.

A revision is a folder with its name: its documents and what was granted, the presets
that they name, its compiled lists, and `sources.json`, which tells where they came
from. So it decides the same under a program that ships other presets. A secret is never
stored: the documents only name it. Documents and lists that an earlier revision has too
are hard links. The newest revisions are stored, as many as fit; those that a grant has
made are bounded apart, so grants take no place of the edits of people. A folder is
written under another name and renamed, so that several processes can store the same
revision at once.

The symbolic link `in-force` names the revision that was loaded last. A process that
starts while a file of the policy is being written starts with it.
"""

import errno
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from squidkeeper.base.atomic_write import replace as replace_file
from squidkeeper.base.errors import PolicyError
from squidkeeper.base.untrusted_file import read_untrusted
from squidkeeper.policy.language.document import Document, file_entries, parse_document
from squidkeeper.policy.language.file_contents import SecretFile
from squidkeeper.policy.policy_store.list_compiler import (
    ListChangedError,
    list_digest,
    load_list,
)
from squidkeeper.policy.policy_store.sources import (
    GRANTS_NAME,
    LOCAL_NAME,
    ListFile,
    Sources,
    digest_of,
    files_beside,
    own_files,
    read_policy_file,
)
from squidkeeper.policy.presets import parse_preset, read_preset
from squidkeeper.policy.published.places import (
    LIST_SUFFIX,
    LISTS,
    UNFINISHED,
    mark_in_force,
    marked_in_force,
    publication_file,
)


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A stored revision, and when it was last loaded (seconds since 1970)."""

    revision: str
    loaded: float


@dataclass(frozen=True, slots=True)
class InForce:
    """The revision that was loaded last, its directory, and which of its files ended
    with `end: true`.

    `gated` tells whether it has a reload gate. `ungranted` is the revision without what
    commands grant.
    """

    revision: str
    directory: Path
    ended: frozenset[str]
    gated: bool = False
    ungranted: str = ""


class _Manifest(msgspec.Struct, frozen=True):
    """What a stored revision consists of: the digests of its files, by their names;
    those of its lists, by their paths.
    """

    directory: str
    documents: dict[str, str]
    lists: dict[str, str | None]
    granted: str | None = None
    local: str | None = None
    presets: dict[str, str] = {}
    ended: frozenset[str] = frozenset()
    gated: bool = False
    ungranted: str = ""

    @property
    def beside(self) -> dict[str, str]:
        """The digests of the files beside the directory."""
        beside = {GRANTS_NAME: self.granted, LOCAL_NAME: self.local}
        return {name: digest for name, digest in beside.items() if digest}


class RevisionWriter:
    """Stores the revision that was loaded last, and marks it as in force."""

    def __init__(self, folder: Path | None, list_cache: Path | None) -> None:
        self._folder = folder
        self._list_cache = list_cache
        self._pending: tuple[Sources, str, bytes] | None = None
        self._published: tuple[str, object] | None = None  # and how its files were
        self._try_at = 0.0

    @property
    def is_pending(self) -> bool:
        """Whether what was loaded last is not stored yet."""
        return self._pending is not None

    def loaded(self, sources: Sources, revision: str, publication: bytes = b"") -> None:
        """Note a revision that was loaded; `write` stores it, and its publication."""
        self._pending = (sources, revision, publication)

    def write(self) -> None:
        """Store what was loaded last, if that is still to be done; after an error, not
        again for some seconds.
        """
        if (
            self._pending is None
            or self._folder is None
            or time.monotonic() < self._try_at
        ):
            return
        sources, revision, publication = self._pending
        self._try_at = time.monotonic() + _TRY_AGAIN_SECONDS
        store_revision(sources, revision, self._folder, self._list_cache)
        if publication:
            self.publish(revision, publication)
        else:
            mark_in_force(self._folder, revision)
        self._pending, self._try_at = None, 0.0

    def publish(self, revision: str, publication: bytes) -> None:
        """Write what helpers read of a stored revision, and mark it as in force."""
        if self._folder is None:
            return
        self._try_at = time.monotonic() + _TRY_AGAIN_SECONDS
        _publish(publication_file(self._folder, revision), publication)
        mark_in_force(self._folder, revision)
        self._published = (revision, _as_published(self._folder, revision))
        self._try_at = 0.0

    def altered(self) -> str | None:
        """Return the revision that was published, where its files are not as they were
        written.
        """
        if self._folder is None or self._published is None or self._pending:
            return None
        if time.monotonic() < self._try_at:
            return None
        revision, written = self._published
        found = _as_published(self._folder, revision)
        return None if found == written else revision


def revision_in_force(folder: Path) -> InForce | None:
    """Find the revision that was loaded last; None if there is none, or it is not
    stored completely.
    """
    try:
        revision = (marked_in_force(folder) or ("",))[0]
        if not _REVISION.fullmatch(revision):
            return None
        manifest = _read_manifest(folder / revision)
        return InForce(
            revision,
            Path(manifest.directory),
            manifest.ended,
            manifest.gated,
            manifest.ungranted,
        )
    except OSError:
        return None


def lists_if_on_disk(folder: Path, revision: str) -> tuple[Path, ...] | None:
    """Return the lists of a stored revision where the files of the policy are still
    those of it, to the byte; else None.
    """
    try:
        stored = _read_manifest(folder / revision)
        directory = Path(stored.directory)
        is_same = (
            stored.documents == _digests_on_disk(own_files(directory))
            and stored.beside == _digests_on_disk(files_beside(directory))
            and stored.lists == {path: list_digest(Path(path)) for path in stored.lists}
            and stored.presets
            == _digests({name: read_preset(name) for name in stored.presets})
        )
    except OSError:
        return None
    return tuple(map(Path, stored.lists)) if is_same else None


def _digests_on_disk(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: digest_of(read_policy_file(path)) for path in files}


def store_revision(
    sources: Sources, revision: str, folder: Path, list_cache: Path | None = None
) -> None:
    """Store the files of a revision; OSError if they cannot be written.

    Its lists are linked from the cache of compiled lists, or compiled if they are not
    in it.
    """
    place = folder / revision
    if _is_complete(place, sources):
        with suppress(OSError):
            os.utime(place)  # the newest are those loaded last
        return
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    unfinished = folder / f".{revision}.{os.getpid()}{UNFINISHED}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(sources, unfinished, folder, list_cache)
        _put(unfinished, place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _prune(folder, revision)


def read_revision(folder: Path, revision: str) -> Sources:
    """Read the files of a stored revision; OSError if it is not stored, or not
    completely.

    Whether its secrets were available is not stored: decisions do not depend on it.
    """
    if not _REVISION.fullmatch(revision):
        raise FileNotFoundError(errno.ENOENT, "no revision has such a name", revision)
    place = folder / revision
    try:
        stored = _read_manifest(place)
        directory = Path(stored.directory)
        documents = tuple(
            _read_document(place / _DOCUMENTS / name, directory / name, digest)
            for name, digest in stored.documents.items()
        )
        beside = {
            name: _read_document(place / name, directory.parent / name, digest)
            for name, digest in stored.beside.items()
        }
        presets = {
            name: parse_preset(name, _read(place / _PRESETS / name, digest))
            for name, digest in stored.presets.items()
        }
        lists = {Path(path): ListFile(digest) for path, digest in stored.lists.items()}
    except ValueError as error:
        raise _incomplete(place) from error
    read = Sources(
        directory,
        documents,
        lists,
        {},
        presets=presets,
        granted=beside.get(GRANTS_NAME),
        local=beside.get(LOCAL_NAME),
    )
    secrets = {
        path: SecretFile()
        for *_, path in file_entries(read.with_local, "secrets", "canaries")
    }
    return replace(read, secrets=secrets)


def _read_manifest(place: Path) -> _Manifest:
    content = read_untrusted(place / _MANIFEST, _BYTES_OF_A_FILE)
    try:
        return msgspec.json.decode(content, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _incomplete(place) from error


def _incomplete(place: Path) -> OSError:
    return OSError(errno.EIO, "this revision is not stored completely", str(place))


def compiled_lists(folder: Path, revision: str) -> Path:
    """Name the folder that holds the compiled lists of a stored revision."""
    return folder / revision / LISTS


def stored_revisions(folder: Path) -> list[StoredRevision]:
    """List the stored revisions, the newest first."""
    return sorted(_stored(folder), key=lambda revision: revision.loaded, reverse=True)


def _stored(folder: Path) -> Iterator[StoredRevision]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in filter(_REVISION.fullmatch, names):
        with suppress(FileNotFoundError):  # pruned by another process
            yield StoredRevision(name, os.stat(folder / name).st_mtime)


def _read_document(file: Path, path: Path, digest: str) -> Document:
    return parse_document(path, _read(file, digest))


def _read(file: Path, digest: str) -> bytes:
    content = read_untrusted(file, _BYTES_OF_A_FILE)
    if digest_of(content) != digest:
        raise ValueError(f"{file} is not what was stored")
    return content


# --- storing --------------------------------------------------------------------------


def _is_complete(place: Path, sources: Sources) -> bool:
    """Whether a revision is stored, and no crash of the machine has left a file of it
    empty.
    """
    try:
        stored = _read_manifest(place)
        contents = [
            (place / _DOCUMENTS / document.path.name).read_bytes()
            for document in sources.documents
        ]
        contents += [(place / _PRESETS / name).read_bytes() for name in sources.presets]
        contents += [(place / name).read_bytes() for name, _ in _beside(sources)]
        lists = [(place / LISTS / name).stat().st_size for name in _list_names(sources)]
    except OSError:
        return False
    beside = (document for _, document in _beside(sources))
    expected = [
        document.content
        for document in (*sources.documents, *sources.presets.values(), *beside)
    ]
    return (
        stored.documents == _digests(_documents(sources))
        and contents == expected
        and all(lists)
    )


def _manifest(sources: Sources) -> bytes:
    lists, beside = sources.lists.items(), _digests(dict(_beside(sources)))
    manifest = _Manifest(
        directory=str(sources.directory.absolute()),
        documents=_digests(_documents(sources)),
        lists={str(path.absolute()): file.digest for path, file in lists},
        granted=beside.get(GRANTS_NAME),
        local=beside.get(LOCAL_NAME),
        presets=_digests(sources.presets),
        ended=sources.ended,
        gated=sources.gated,
        ungranted=sources.revision_without_granted,
    )
    return msgspec.json.encode(manifest)


def _documents(sources: Sources) -> dict[str, Document]:
    return {document.path.name: document for document in sources.documents}


def _beside(sources: Sources) -> Iterator[tuple[str, Document]]:
    beside = ((GRANTS_NAME, sources.granted), (LOCAL_NAME, sources.local))
    return ((name, document) for name, document in beside if document is not None)


def _digests(documents: Mapping[str, Document]) -> dict[str, str]:
    return {name: digest_of(document.content) for name, document in documents.items()}


def _list_names(sources: Sources) -> set[str]:
    return {f"{file.digest}{LIST_SUFFIX}" for file in sources.lists.values()}


def _write(
    sources: Sources, place: Path, folder: Path, list_cache: Path | None
) -> None:
    earlier = [folder / revision.revision for revision in stored_revisions(folder)]
    (place / _DOCUMENTS).mkdir(mode=0o750, parents=True)
    (place / LISTS).mkdir(mode=0o750)
    (place / _PRESETS).mkdir(mode=0o750)
    for folder_name, documents in (
        (_DOCUMENTS, _documents(sources)),
        (_PRESETS, sources.presets),
    ):
        for name, document in documents.items():
            _write_document(document, place / folder_name / name, earlier[:1])
    for name, document in _beside(sources):
        _write_document(document, place / name, [])
    for path, file in sources.lists.items():
        _write_list(
            path,
            file.digest or "",
            place / LISTS,
            [*(before / LISTS for before in earlier), list_cache],
        )
    (place / _MANIFEST).write_bytes(_manifest(sources))


def _write_document(document: Document, to: Path, earlier: list[Path]) -> None:
    for folder in earlier:
        same = folder / to.parent.name / to.name
        with suppress(OSError):
            if (
                same.stat().st_size == len(document.content)
                and same.read_bytes() == document.content
            ):
                return os.link(same, to)
    to.write_bytes(document.content)
    return None


def _write_list(path: Path, digest: str, to: Path, places: list[Path | None]) -> None:
    name = f"{digest}{LIST_SUFFIX}"
    for place in filter(None, places):
        with suppress(OSError):  # not there, or on another disk
            return os.link(place / name, to / name)
    try:
        load_list(path, digest, to)
    except ListChangedError as error:
        raise OSError(
            errno.ESTALE, "the list has changed since it was loaded", str(path)
        ) from error
    if not (to / name).exists():
        raise OSError(errno.ENOSPC, "the compiled list cannot be written", str(path))
    return None


def publish_again(folder: Path, revision: str, publication: bytes) -> None:
    """Publish a stored revision that is in force, such as in another format."""
    _publish(publication_file(folder, revision), publication)
    mark_in_force(folder, revision)


def take_over(former: Path, folder: Path) -> None:
    """Store the revisions of a folder in another one, as far as they can be read.

    Compiled lists are not taken: another account could have written them.
    """
    for old in reversed(stored_revisions(former)):
        if (folder / old.revision).exists():
            continue
        with suppress(OSError, PolicyError):
            sources = read_revision(former, old.revision)
            if sources.revision == old.revision:
                store_revision(sources, old.revision, folder)
                os.utime(folder / old.revision, (old.loaded, old.loaded))


def _put(unfinished: Path, place: Path) -> None:
    """Rename a revision to its name, unless another process has just done so."""
    try:
        unfinished.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(place, ignore_errors=True)  # it is incomplete, or the same
        with suppress(OSError):
            unfinished.rename(place)


def _as_published(folder: Path, revision: str) -> object:
    """Return what changes with whatever is done to a publication."""
    marked = marked_in_force(folder)
    try:
        found = os.stat(publication_file(folder, revision))
    except OSError:
        return marked
    return marked, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _publish(file: Path, publication: bytes) -> None:
    """Write what helpers read, unless it is there; and remove that of older ones."""
    with suppress(OSError):
        if file.read_bytes() == publication:
            return
    replace_file(file, publication)
    for revision in stored_revisions(file.parents[1])[_PUBLISHED_AT_MOST:]:
        older = publication_file(file.parents[1], revision.revision)
        with suppress(FileNotFoundError):
            older.unlink()
            # its folder still tells when it was loaded last
            os.utime(older.parent, (revision.loaded, revision.loaded))


def _prune(folder: Path, newest: str) -> None:
    room = _BYTES_AT_MOST
    seen: set[tuple[int, int]] = set()
    edits: set[str] = set()
    places: Counter[bool] = Counter()
    for revision in stored_revisions(folder):
        edit = _edit_of(folder, revision.revision)
        is_grant = edit in edits  # a newer revision differs from it by grants alone
        edits.add(edit)
        places[is_grant] += 1
        room -= _new_bytes(folder / revision.revision, seen)
        if revision.revision != newest and (
            places[is_grant] > _REVISIONS_AT_MOST or room < 0
        ):
            shutil.rmtree(folder / revision.revision, ignore_errors=True)
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _UNFINISHED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _edit_of(folder: Path, revision: str) -> str:
    """Name what a revision is without its grants; one that cannot be read is itself."""
    try:
        return _read_manifest(folder / revision).ungranted
    except OSError:
        return revision


def _new_bytes(place: Path, seen: set[tuple[int, int]]) -> int:
    total = 0
    for directory, _, names in os.walk(place):
        for name in names:
            with suppress(FileNotFoundError):
                state = os.stat(os.path.join(directory, name))
                total += 0 if (state.st_dev, state.st_ino) in seen else state.st_size
                seen.add((state.st_dev, state.st_ino))
    return total


_TRY_AGAIN_SECONDS = 10.0
_REVISION = re.compile(r"[0-9a-f]{12}")
_MANIFEST = "sources.json"
_BYTES_OF_A_FILE = 16 << 20  # as of a policy file
_DOCUMENTS = "policy"
_PRESETS = "presets"
_UNFINISHED_SECONDS = 3600
_PUBLISHED_AT_MOST = 5  # requests under way name an older one
_REVISIONS_AT_MOST = 50  # of edits, and of grants
_BYTES_AT_MOST = 256 << 20
