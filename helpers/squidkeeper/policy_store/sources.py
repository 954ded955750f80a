"""Reads the files of a policy (floor 4)."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from squidkeeper.policy.contents import FileProblem, SecretFile
from squidkeeper.policy.document import Document, file_entries, parse_document
from squidkeeper.policy.faults import Fault, FaultCode, Location
from squidkeeper.policy_store.list_compiler import list_digest

Fingerprint = tuple[tuple[str, tuple[int, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list file: the digest of its content, or why it cannot be read."""

    digest: str | None
    problem: FileProblem | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a policy, as they were at one moment.

    `fingerprint` was taken before they were read: while `fingerprint(directory, named)` gives the same, this is what is
    on disk. A stored revision has none.
    """

    directory: Path
    documents: tuple[Document, ...]
    lists: Mapping[Path, ListFile]
    secrets: Mapping[Path, SecretFile]
    environment: frozenset[str] = frozenset()
    faults: tuple[Fault, ...] = ()
    fingerprint: Fingerprint = ()

    @property
    def named(self) -> tuple[Path, ...]:
        """The list and secret files that the documents name."""
        return tuple(dict.fromkeys((*self.lists, *self.secrets)))

    @property
    def ended(self) -> frozenset[str]:
        """The names of the files that end with `end: true`."""
        return frozenset(document.path.name for document in self.documents if document.ends)

    @property
    def revision(self) -> str:
        """The hash of the names and contents of all files; the contents of secrets are not in it."""
        contents = [(document.path, hashlib.sha256(document.content).hexdigest()) for document in self.documents]
        contents += [(path, file.digest or "") for path, file in self.lists.items()]
        digest = hashlib.blake2b(digest_size=_REVISION_DIGITS // 2)
        for path, content in contents:
            name = os.path.relpath(path, self.directory)
            digest.update(f"{name}\0{content}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def read_sources(directory: Path, environment: Mapping[str, str] = os.environ) -> Sources:
    """Read a policy directory and the files that it names. It never fails: a file that cannot be read becomes a fault.

    Of `environment`, only the names of the variables that are not empty are read.
    """
    before = fingerprint(directory)
    documents, faults = _read_documents(directory)
    lists = dict.fromkeys(path for *_, path in file_entries(documents, "lists"))
    secrets = dict.fromkeys(path for *_, path in file_entries(documents, "secrets", "canaries"))
    readings = tuple(_readings(dict.fromkeys((*lists, *secrets))))
    return Sources(
        directory=directory,
        documents=documents,
        lists={path: _read_list(path) for path in lists},
        secrets={path: _read_secret(path) for path in secrets},
        environment=frozenset(name for name, value in environment.items() if value),
        faults=faults,
        fingerprint=(*before, *readings),
    )


def fingerprint(directory: Path, named: Iterable[Path] = ()) -> Fingerprint:
    """Take the state of a policy's files by stat alone: it differs after an edit, a rename or a swapped link."""
    return tuple(_readings((*policy_files(directory), *named)))


def _readings(paths: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    return ((str(path), _reading(path)) for path in paths)


def _reading(path: Path) -> tuple[int, ...] | None:
    try:
        own = os.lstat(path)
        real = os.stat(path) if stat.S_ISLNK(own.st_mode) else own
    except OSError as error:
        return (error.errno or 0,)
    if abs(time.time_ns() - real.st_ctime_ns) < _HOT_NANOSECONDS:
        return (time.monotonic_ns(),)  # another write may still fall into the same tick: as good as no reading
    return (own.st_ino, real.st_dev, real.st_ino, real.st_mode, real.st_size, real.st_mtime_ns, real.st_ctime_ns)


def policy_files(directory: Path) -> list[Path]:
    """List the files that a policy directory's documents are read from, in their order."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [directory / name for name in sorted(names) if _is_policy_name(name)]


def _is_policy_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and not name.startswith(".")


def _read_documents(directory: Path) -> tuple[tuple[Document, ...], tuple[Fault, ...]]:
    place = Location(str(directory))
    try:
        os.listdir(directory)
    except OSError as error:
        problem = file_problem(error)
        return (), (Fault(place, problem.code, f"the policy directory cannot be read: {problem}"),)
    paths = policy_files(directory)
    if not paths:
        message = "the policy directory holds no policy, expected *.yaml or *.yml files in it"
        return (), (Fault(place, FaultCode.NO_POLICY, message),)
    read = [_read_document(path) for path in paths]
    documents = tuple(document for document in read if isinstance(document, Document))
    return documents, tuple(fault for fault in read if isinstance(fault, Fault))


def _read_document(path: Path) -> Document | Fault:
    try:
        content = _read_regular(path)
    except OSError as error:
        problem = file_problem(error)
        return Fault(Location(str(path)), problem.code, f"the policy file cannot be read: {problem}")
    return parse_document(path, content)


def _read_regular(path: Path) -> bytes:
    """Read a regular file of bounded size; anything else is an OSError (and never a wait, as for a FIFO)."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if state.st_size > _POLICY_BYTES_AT_MOST:
            raise OSError(
                errno.EFBIG, f"it is larger than {_POLICY_BYTES_AT_MOST >> 20} MB (long host lists go to lists)"
            )
        return file.read()


def _read_list(path: Path) -> ListFile:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ListFile(None, FileProblem(FaultCode.UNREADABLE, "it is not a regular file"))
        return ListFile(list_digest(path))
    except OSError as error:
        return ListFile(None, file_problem(error))


def _read_secret(path: Path) -> SecretFile:
    try:
        state = os.stat(path)
    except OSError as error:
        return SecretFile(problem=FileProblem(FaultCode.SECRET_UNREADABLE, _reason(error)))
    return SecretFile(bool(state.st_mode & stat.S_IROTH), _secret_problem(path, state))


def _secret_problem(path: Path, state: os.stat_result) -> FileProblem | None:
    if not stat.S_ISREG(state.st_mode):
        return FileProblem(FaultCode.SECRET_INVALID, "it is not a regular file")
    if not state.st_size:
        return FileProblem(FaultCode.SECRET_EMPTY, "it is empty")
    if not os.access(path, os.R_OK):
        return FileProblem(FaultCode.SECRET_UNREADABLE, f"the account {_account()} cannot read it")
    return None


def file_problem(error: OSError) -> FileProblem:
    """Tell why a policy file or list file cannot be read."""
    denied = isinstance(error, PermissionError)
    return FileProblem(FaultCode.PERMISSION_DENIED if denied else FaultCode.UNREADABLE, _reason(error))


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
_REVISION_DIGITS = 12
_HOT_NANOSECONDS = 20_000_000  # over the 10 ms by which the slowest kernel's file times advance
