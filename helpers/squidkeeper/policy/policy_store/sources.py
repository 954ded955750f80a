"""Reads the files of a policy."""

import errno
import hashlib
import os
import pwd
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from squidkeeper.base.faults import Fault, FaultCode, Location
from squidkeeper.policy.language.document import Document, file_entries, parse_document
from squidkeeper.policy.language.entry_faults import named_presets
from squidkeeper.policy.language.file_contents import FileProblem, SecretFile
from squidkeeper.policy.policy_store.list_compiler import list_digest
from squidkeeper.policy.presets import preset_location, preset_names, read_preset

Fingerprint = tuple[tuple[str, tuple[int, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list file: the digest of its content, or why it cannot be read."""

    digest: str | None
    problem: FileProblem | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a policy, as they were at one moment.

    `fingerprint` was taken before they were read: while `fingerprint(directory, named)`
    gives the same, this is what is on disk. A stored revision has none. `presets` has
    the presets that the documents name, by name. These are not watched: what is shipped
    never changes. Beside the directory are two documents: `granted` is what commands
    grant, `local` the local setup.
    """

    directory: Path
    documents: tuple[Document, ...]
    lists: Mapping[Path, ListFile]
    secrets: Mapping[Path, SecretFile]
    environment: frozenset[str] = frozenset()
    faults: tuple[Fault, ...] = ()
    fingerprint: Fingerprint = ()
    presets: Mapping[str, Document] = field(default_factory=dict)
    granted: Document | None = None
    local: Document | None = None

    @property
    def with_local(self) -> tuple[Document, ...]:
        """The documents of the directory, and the local setup."""
        return (*self.documents, *([self.local] if self.local else []))

    @property
    def named(self) -> tuple[Path, ...]:
        """The list and secret files that the documents name."""
        return tuple(dict.fromkeys((*self.lists, *self.secrets)))

    @property
    def fingerprint_of_documents(self) -> Fingerprint:
        """The part of the fingerprint that is of the policy's own files."""
        return self.fingerprint[: len(self.fingerprint) - len(self.named)]

    @property
    def ended(self) -> frozenset[str]:
        """The names of the files that end with `end: true`."""
        return frozenset(
            document.path.name for document in self.documents if document.ends
        )

    @property
    def gated(self) -> bool:
        """Whether the policy has a reload gate."""
        defaults = (document.data.get("defaults") for document in self.with_local)
        return any(
            isinstance(section, dict) and "reload_gate" in section
            for section in defaults
        )

    @property
    def revision(self) -> str:
        """The hash of the names and contents of all files; the contents of secrets are
        not in it.
        """
        return self._revision_with(self.granted)

    @property
    def revision_without_granted(self) -> str:
        """The hash of the same without what commands grant."""
        return self._revision_with(None)

    def _revision_with(self, granted: Document | None) -> str:
        contents = [
            (document.path, digest_of(document.content)) for document in self.documents
        ]
        named = [(self._relative(path), content) for path, content in contents]
        beside = ((GRANTS_NAME, granted), (LOCAL_NAME, self.local))
        named += [
            (f"../{name}", digest_of(document.content))
            for name, document in beside
            if document
        ]
        lists = self.lists.items()
        named += [(self._relative(path), file.digest or "") for path, file in lists]
        named += [
            (f"preset {name}", digest_of(preset.content))
            for name, preset in self.presets.items()
        ]
        digest = hashlib.blake2b(digest_size=_REVISION_DIGITS // 2)
        for name, content in named:
            digest.update(f"{name}\0{content}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _relative(self, path: Path) -> str:
        if path.parent == self.directory:
            return path.name
        return os.path.relpath(path, self.directory)


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_sources(
    directory: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    beside: Path | None = None,
) -> Sources:
    """Read a policy directory and the files that it names.

    It never fails: a file that cannot be read becomes a fault.

    Of `environment`, only the names of the variables that are not empty are read. What
    is beside the policy is read from `beside`, where that is given: the folder of a
    directory that this one is to replace.
    """
    before = fingerprint(directory)
    around = beside or _around(directory)
    granted, granted_faults = _read_granted(around / GRANTS_NAME)
    local, local_faults = _read_beside(around / LOCAL_NAME)
    is_others = local is not None or bool(local_faults)
    documents, faults = _read_documents(directory, is_others=is_others)
    presets, preset_faults = _read_presets(documents)
    lists = dict.fromkeys(path for *_, path in file_entries(documents, "lists"))
    with_local = (*documents, *([local] if local else []))
    secrets = dict.fromkeys(
        path for *_, path in file_entries(with_local, "secrets", "canaries")
    )
    readings = tuple(_readings(map(str, dict.fromkeys((*lists, *secrets)))))
    return Sources(
        directory=directory,
        documents=documents,
        lists={
            path: _OUTSIDE
            if is_others and not _is_within(path, directory)
            else _read_list(path)
            for path in lists
        },
        secrets={path: _read_secret(path) for path in secrets},
        environment=frozenset(name for name, value in environment.items() if value),
        faults=(*faults, *granted_faults, *local_faults, *preset_faults),
        fingerprint=(*before, *readings),
        presets=presets,
        granted=granted,
        local=local,
    )


def sources_of(documents: tuple[Document, ...]) -> Sources:
    """Take documents that stand in no directory, and name no file, as a policy."""
    presets, faults = _read_presets(documents)
    return Sources(Path(), documents, {}, {}, faults=faults, presets=presets)


def fingerprint(directory: Path, named: Iterable[Path] = ()) -> Fingerprint:
    """Take the state of a policy's files by stat alone: it differs after an edit, a
    rename or a swapped link.
    """
    return tuple(_readings((*policy_file_names(directory), *map(str, named))))


def folders_of(directory: Path, files: Fingerprint) -> frozenset[str]:
    """Find the folders in which a policy's files are made, removed and replaced."""
    folders = {os.path.dirname(name) for name, _ in files}
    return frozenset({str(directory), str(_around(directory)), *folders})


def fingerprint_of_folders(folders: Iterable[str]) -> Fingerprint:
    """Take the state of some folders: it differs once a file in them is made, removed
    or replaced, also on a file system of a network.
    """
    return tuple((folder, _folder_reading(folder)) for folder in folders)


def _folder_reading(folder: str) -> tuple[int, ...]:
    try:
        real = os.stat(folder or ".")
    except OSError as error:
        return (error.errno or 0,)
    return real.st_dev, real.st_ino, real.st_mode, real.st_mtime_ns, real.st_ctime_ns


def _readings(paths: Iterable[str]) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    return ((path, _reading(path)) for path in paths)


def _reading(path: str) -> tuple[int, ...] | None:
    try:
        own = os.lstat(path)
        real = os.stat(path) if stat.S_ISLNK(own.st_mode) else own
    except OSError as error:
        return (error.errno or 0,)
    if abs(time.time_ns() - real.st_ctime_ns) < _HOT_NANOSECONDS:
        # another write may still fall into the same tick: as good as no reading
        return (time.monotonic_ns(),)
    return (
        own.st_ino,
        real.st_dev,
        real.st_ino,
        real.st_mode,
        real.st_size,
        real.st_mtime_ns,
        real.st_ctime_ns,
    )


def policy_files(directory: Path) -> list[Path]:
    """List the files that a policy is read from, as `policy_file_names`."""
    return [Path(name) for name in policy_file_names(directory)]


def policy_file_names(directory: Path) -> list[str]:
    """List the files that a policy is read from, in their order: last the ones beside
    its directory, if there are.

    They are texts: a `Path` for each of 2,000 files costs more than to read its state.
    """
    return [*_own_file_names(directory), *map(str, files_beside(directory))]


def files_beside(directory: Path) -> list[Path]:
    """List the policy's files beside its directory, where they are."""
    beside = (grants_file(directory), local_file(directory))
    return [path for path in beside if os.path.lexists(path)]


def grants_file(directory: Path) -> Path:
    """Name the file beside a policy directory that holds what commands grant."""
    return _around(directory) / GRANTS_NAME


def local_file(directory: Path) -> Path:
    """Name the file beside a policy directory that holds the local setup."""
    return _around(directory) / LOCAL_NAME


def _around(directory: Path) -> Path:
    return Path(os.path.abspath(directory)).parent  # of the link, where it is one


def own_files(directory: Path) -> list[Path]:
    """List the policy's files in its directory, in their order."""
    return [Path(name) for name in _own_file_names(directory)]


def _own_file_names(directory: Path) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [
        os.path.join(directory, name)
        for name in sorted(names)
        if name.endswith((".yaml", ".yml")) and name[0] != "."
    ]


def _read_documents(
    directory: Path, *, is_others: bool
) -> tuple[tuple[Document, ...], tuple[Fault, ...]]:
    place = Location(str(directory))
    try:
        os.listdir(directory)
    except OSError as error:
        problem = file_problem(error)
        return (), (
            Fault(
                place, problem.code, f"the policy directory cannot be read: {problem}"
            ),
        )
    paths = own_files(directory)
    if not paths:
        message = (
            "the policy directory holds no policy, expected *.yaml or *.yml files in it"
        )
        return (), (Fault(place, FaultCode.NO_POLICY, message),)
    read = [
        _outside(path)
        if is_others and not _is_within(path, directory)
        else _read_document(path)
        for path in paths
    ]
    documents = tuple(document for document in read if isinstance(document, Document))
    return documents, tuple(fault for fault in read if isinstance(fault, Fault))


def _outside(path: Path) -> Fault:
    return Fault(
        Location(str(path)),
        FaultCode.LOCAL_ONLY,
        f"the policy file cannot be read: {_OUTSIDE_REASON}",
    )


def _is_within(path: Path, directory: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _read_presets(
    documents: tuple[Document, ...],
) -> tuple[dict[str, Document], tuple[Fault, ...]]:
    names = dict.fromkeys(name for name, _ in named_presets(documents))
    there_are = preset_names() if names else frozenset()
    read = {name: _read_preset(name) for name in names if name in there_are}
    presets = {
        name: preset for name, preset in read.items() if isinstance(preset, Document)
    }
    return presets, tuple(fault for fault in read.values() if isinstance(fault, Fault))


def _read_preset(name: str) -> Document | Fault:
    try:
        return read_preset(name)
    except OSError as error:
        problem = file_problem(error)
        return Fault(
            preset_location(name), problem.code, f"the preset cannot be read: {problem}"
        )


def _read_beside(path: Path) -> tuple[Document | None, tuple[Fault, ...]]:
    if not os.path.lexists(path):
        return None, ()
    read = _read_document(path)
    return (None, (read,)) if isinstance(read, Fault) else (read, ())


def _read_granted(path: Path) -> tuple[Document | None, tuple[Fault, ...]]:
    """Read the grants beside a policy directory: a file with no other section."""
    read, unreadable = _read_beside(path)
    if read is None:
        return None, unreadable
    others = [key for key in read.data if key not in _KEYS_OF_GRANTS]
    message = "is no section of this file, which holds what commands grant, expected 'grants' alone"
    faults = (
        Fault(
            read.locate((key,), key=True), FaultCode.UNKNOWN_KEY, f"{key!r} {message}"
        )
        for key in others
    )
    return read, tuple(faults)


def _read_document(path: Path) -> Document | Fault:
    try:
        content = read_policy_file(path)
    except OSError as error:
        problem = file_problem(error)
        return Fault(
            Location(str(path)),
            problem.code,
            f"the policy file cannot be read: {problem}",
        )
    return parse_document(path, content)


def read_policy_file(path: Path) -> bytes:
    """Read a regular file of bounded size; anything else is an OSError (and never a
    wait, as for a FIFO).
    """
    with open(
        path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    ) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if state.st_size > _POLICY_BYTES_AT_MOST:
            raise OSError(
                errno.EFBIG,
                f"it is larger than {_POLICY_BYTES_AT_MOST >> 20} MB (long host lists go to lists)",
            )
        return file.read()


def _read_list(path: Path) -> ListFile:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ListFile(
                None, FileProblem(FaultCode.UNREADABLE, "it is not a regular file")
            )
        return ListFile(list_digest(path))
    except OSError as error:
        return ListFile(None, file_problem(error))


def _read_secret(path: Path) -> SecretFile:
    try:
        state = os.stat(path)
    except OSError as error:
        return SecretFile(
            problem=FileProblem(FaultCode.SECRET_UNREADABLE, _reason(error))
        )
    return SecretFile(bool(state.st_mode & stat.S_IROTH), _secret_problem(path, state))


def _secret_problem(path: Path, state: os.stat_result) -> FileProblem | None:
    if not stat.S_ISREG(state.st_mode):
        return FileProblem(FaultCode.SECRET_INVALID, "it is not a regular file")
    if not state.st_size:
        return FileProblem(FaultCode.SECRET_EMPTY, "it is empty")
    if not os.access(path, os.R_OK):
        return FileProblem(
            FaultCode.SECRET_UNREADABLE, f"the account {_account()} cannot read it"
        )
    return None


def file_problem(error: OSError) -> FileProblem:
    """Tell why a policy file or list file cannot be read."""
    denied = isinstance(error, PermissionError)
    return FileProblem(
        FaultCode.PERMISSION_DENIED if denied else FaultCode.UNREADABLE, _reason(error)
    )


def _reason(error: OSError) -> str:
    """Tell why a file cannot be read, and which account cannot read it."""
    if isinstance(error, PermissionError):
        return f"permission denied for the account {_account()}; as installed, root and Squid's group can read it"
    return (error.strerror or str(error)).lower()


def _account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


_POLICY_BYTES_AT_MOST = 16 << 20
_OUTSIDE_REASON = "it is not in the policy's folder, whose writers name no other file beside a local setup"
_OUTSIDE = ListFile(None, FileProblem(FaultCode.LOCAL_ONLY, _OUTSIDE_REASON))
GRANTS_NAME = "grants.yaml"
LOCAL_NAME = "local.yaml"
_KEYS_OF_GRANTS = ("version", "grants")
_REVISION_DIGITS = 12
_HOT_NANOSECONDS = (
    20_000_000  # over the 10 ms by which the slowest kernel's file times advance
)
