"""What a table is made of: archived parts, rotated logs that are not archived yet, the
log, or named files.

Files are opened before DuckDB reads them, through `/proc/self/fd`: a log that is
rotated meanwhile stays the one that it was.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from shutil import disk_usage
from typing import IO, Final

from squidkeeper.base.errors import DamagedLog, ExtraMissing, StoreFailed, UnreadableLog
from squidkeeper.base.rotated_logs import rotated
from squidkeeper.record.chain.chain import Chain, read_chain
from squidkeeper.record.chain.places import FolderPlace, archives_in, gateway_of
from squidkeeper.record.chain.store_settings import StoreSettings
from squidkeeper.record.log.log_files import (
    HEAD_BYTES,
    STDIN,
    LogFile,
    files_since,
    first_line_of,
    open_log,
    read_failure,
    sorted_by_time,
)
from squidkeeper.record.log.record import format_time
from squidkeeper.record.table.database import csv_lines

PARQUET: Final = ".parquet"
# As DuckDB names them; empty: Python reads.
_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "", ".xz": ""}
_COMPRESSED: Final = 12  # to one
_STREAM_BYTES: Final = 2**31
_ATTEMPTS: Final = 5
_GZIP_SIZES: Final = 2**32  # gzip holds the size modulo this
_Listing = list[tuple[Path, int, int]]  # each with its device and inode
_SECONDS: Final = 300
_AT_ONCE: Final = 16
_TOLD_BYTES: Final = 300  # of an error
_SSH: Final = (
    *("ssh", "-T", "-C", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True, slots=True)
class TableSources:
    """What to read: the files that a user names, or else a log and its rotated files;
    an archive; or a fleet.

    Of these, the records of `gateways`; where none is named, all. `missing`: what could
    not be fetched.
    """

    files: tuple[Path, ...] = ()
    log: Path | None = None
    with_rotated: bool = True
    archive: Path | StoreSettings | LiveGateways | None = None
    gateways: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenLog:
    """An open log.

    `compression` is DuckDB's name of it; empty where only Python can read the file.

    `archived` bytes of its content are in the archive: it has grown since.
    """

    path: Path
    raw: IO[bytes] | None  # None: standard input
    compression: str = ""
    size: int = 0
    head: bytes = b""
    archived: int = 0

    @property
    def descriptor(self) -> Path:
        """The path by which the open file is read, whatever its name is by now."""
        assert self.raw is not None  # noqa: S101 - standard input has no compression that DuckDB reads
        return Path(f"/proc/self/fd/{self.raw.fileno()}")

    @property
    def line_bytes(self) -> int:
        """The size of its lines, roughly; that of a stream is taken for a large one."""
        if self.raw is None or not self.size:
            return _STREAM_BYTES
        return self.size * (1 if self.compression == "none" else _COMPRESSED)

    @property
    def grew(self) -> bool:
        """Whether it was written to since it was opened."""
        return self.raw is not None and os.fstat(self.raw.fileno()).st_size > self.size

    @property
    def was_cut(self) -> bool:
        """Whether it was truncated since it was opened, as `copytruncate` of logrotate
        does, and perhaps grew again.
        """
        if self.raw is None or not self.compression:
            return False
        file = self.raw.fileno()
        return (
            os.fstat(file).st_size < self.size
            or os.pread(file, len(self.head), 0) != self.head
        )

    def open_content(self) -> LogFile:
        """Open its content for Python, from the start."""
        if self.raw is None or not self.compression:
            return LogFile(
                self.path, os.fdopen(os.dup(self.raw.fileno() if self.raw else 0), "rb")
            )
        return LogFile(self.path, self.descriptor.open("rb"))


@dataclass(frozen=True, slots=True)
class OpenSources:
    """What was found: archived parts, oldest first, then open logs, oldest first.

    `damaged`: what cannot be used. `missing`: gateways that did not answer.
    """

    parts: tuple[Path, ...]
    logs: tuple[OpenLog, ...]
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def log_bytes(self) -> int:
        """The size of the logs' lines, roughly."""
        return sum(log.line_bytes for log in self.logs)

    @property
    def paths(self) -> list[Path]:
        """Every file, in the order of reading."""
        return [*self.parts, *(log.path for log in self.logs)]


@contextmanager
def with_local_archive(
    sources: TableSources,
    spill: Path,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[TableSources]:
    """Fetch what a period needs of a store, or of running gateways, for the block;
    `UnreadableLog` if that fails.

    It goes into the spill folder, so that `drop_rights` gives it away too.
    """
    if isinstance(sources.archive, LiveGateways):
        files, missing = fetched_lines(
            sources.archive.of(sources.gateways), spill, since, until
        )
        yield replace(sources, files=files, archive=None, missing=missing)
        return
    if not isinstance(sources.archive, StoreSettings):
        yield sources
        return
    from squidkeeper.record.chain.stores import ObjectStore, fetched_archive

    start, end = (format_time(at) if at else "" for at in (since, until))
    try:
        with fetched_archive(ObjectStore(sources.archive), spill, start, end) as folder:
            yield replace(sources, archive=folder)
    except (StoreFailed, ExtraMissing) as error:
        raise UnreadableLog(str(error)) from None


@contextmanager
def open_sources(
    sources: TableSources, since: datetime | None = None, until: datetime | None = None
) -> Iterator[OpenSources]:
    """Find and open everything; `UnreadableLog` if a file cannot be read.

    A log that is rotated between the listing and the opening changes the list: it is
    made again.
    """
    # `with_local_archive` fetches the others
    archive = sources.archive if isinstance(sources.archive, Path) else None
    for _ in range(_ATTEMPTS):
        with ExitStack() as files:
            archives = _archives(archive, sources.gateways)
            paths = _paths(sources, since)
            before = _listing(paths)
            try:
                logs = list(_opened_logs(sources, paths, archives.values(), files))
            except FileNotFoundError as error:
                if sources.files or not os.path.exists(sources.log or ""):
                    raise UnreadableLog(
                        f"{error.filename}: {read_failure(error)}"
                    ) from error
                continue  # rotated meanwhile
            if sources.files or before == _listing(_paths(sources, since)):
                named = [path for path in paths if path.suffix == PARQUET]
                _check_readable(named)
                found = [
                    _parts(folder, chain, since, until)
                    for folder, chain in archives.items()
                ]
                parts = tuple(part for parts, _ in found for part in parts)
                damaged = tuple(text for _, faults in found for text in faults)
                yield OpenSources(
                    (*parts, *named), tuple(logs), damaged, sources.missing
                )
                return
    raise UnreadableLog(
        f"{sources.log}: its rotated files change all the time: try again"
    )


# --- logs -----------------------------------------------------------------------------


def _paths(sources: TableSources, since: datetime | None) -> list[Path]:
    if sources.files or sources.log is None:
        return sorted_by_time(sources.files)
    if not sources.with_rotated:
        return [sources.log]
    return (
        [*rotated(sources.log), sources.log]
        if since is None
        else files_since(sources.log, since)
    )


def _opened_logs(
    sources: TableSources,
    paths: list[Path],
    chains: Collection[Chain],
    files: ExitStack,
) -> Iterator[OpenLog]:
    for path in paths:
        if path.suffix == PARQUET:
            continue
        is_rotated = path not in (sources.log, STDIN)
        archived = _archived_bytes(path, chains) if is_rotated else 0
        if not (archived and _ends_at(path, archived)):
            yield replace(files.enter_context(_opened(path)), archived=archived)


def _archived_bytes(path: Path, chains: Collection[Chain]) -> int:
    if not any(chain.entries for chain in chains):
        return 0
    try:
        first_line = sha256(_first_line(path)).hexdigest()
    except UnreadableLog:
        return 0
    return max(chain.archived_bytes(first_line) for chain in chains)


def _ends_at(path: Path, size: int) -> bool:
    if (
        path.suffix == ".zst"
    ):  # Python has no zstd before 3.14. What is new is archived by the next run
        return True
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                file.seek(-4, os.SEEK_END)
                return int.from_bytes(file.read(4), "little") == size % _GZIP_SIZES
            if path.suffix not in _COMPRESSIONS:
                return file.seek(0, os.SEEK_END) <= size
        with open_log(path, regular=True) as log:  # only unpacking tells
            return log.skip(size) and not log.read(1)
    except (OSError, UnreadableLog, DamagedLog):
        return False


def _first_line(path: Path) -> bytes:
    if path.suffix != ".zst":
        return first_line_of(path)
    import duckdb  # Python has no zstd before 3.14

    try:
        with duckdb.connect() as connection:
            rows = connection.execute(
                f"SELECT encode(line) FROM {csv_lines(path, 'zstd')} LIMIT 1"
            ).fetchall()
    except duckdb.Error as error:
        raise UnreadableLog(f"{path}: {error}") from error
    return bytes(rows[0][0])[:HEAD_BYTES] if rows and rows[0][0] else b""


@contextmanager
def _opened(path: Path) -> Iterator[OpenLog]:
    if path == STDIN:
        yield OpenLog(path, None)
        return
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableLog(f"{path}: {read_failure(error)}") from error
    with raw:
        state = os.fstat(raw.fileno())
        if stat.S_ISDIR(state.st_mode):
            raise UnreadableLog(f"{path}: is a folder: name its files")
        if not stat.S_ISREG(state.st_mode):
            yield OpenLog(path, raw)
            return
        compression = _COMPRESSIONS.get(path.suffix, "none")
        yield OpenLog(
            path, raw, compression, state.st_size, os.pread(raw.fileno(), HEAD_BYTES, 0)
        )


def _listing(paths: list[Path]) -> _Listing:
    try:
        return [
            (path, state.st_dev, state.st_ino)
            for path in paths
            if (state := path.stat())
        ]
    except OSError:
        return []


def _check_readable(files: list[Path]) -> None:
    for path in files:
        try:
            path.open("rb").close()
        except OSError as error:
            raise UnreadableLog(f"{path}: {read_failure(error)}") from error


# --- the archive ----------------------------------------------------------------------


def _archives(folder: Path | None, gateways: Collection[str]) -> dict[Path, Chain]:
    try:
        found = archives_in(folder) if folder else ()
        chosen = (
            archive
            for archive in found
            if not gateways or gateway_of(archive.name) in ("", *gateways)
        )
        return {archive: read_chain(archive) for archive in chosen}
    except OSError as error:
        raise UnreadableLog(f"{folder}: {read_failure(error)}") from error


def _parts(
    archive: Path, chain: Chain, since: datetime | None, until: datetime | None
) -> tuple[list[Path], tuple[str, ...]]:
    start, end = (format_time(at) if at else "" for at in (since, until))
    wanted = [part for part in chain.parts.values() if part.is_of(start, end)]
    begin = FolderPlace(archive).fetched_since()
    fetched = [part for part in wanted if part.is_of(begin, "")]
    left = (
        (f"{archive}: parts of before {begin} were not fetched",)
        if fetched != wanted
        else ()
    )
    faults = {
        archive / part.path: _fault(archive / part.path, part.bytes) for part in fetched
    }
    return [path for path, fault in faults.items() if not fault], (
        *left,
        *chain.damaged,
        *filter(None, faults.values()),
    )


def _fault(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"{path}: {read_failure(error)}"
    return (
        ""
        if found == size
        else f"{path}: {found} bytes, expected {size}: squidkeeper archive verify tells more"
    )


# Running gateways, asked over ssh: for the lines of a period, or for what a command
# tells there.
#
# ssh is that of the person who asks: with the account, key and known hosts of
# ssh_config. A gateway that was taken over can send anything, for any time: each output
# goes into a file of bounded size, and has one deadline for the whole.


@dataclass(frozen=True, slots=True)
class LiveGateways:
    """The gateways of a fleet: by name, where ssh reaches each."""

    addresses: Mapping[str, str]

    def of(self, names: Collection[str]) -> LiveGateways:
        """Choose those with these names; all without one.

        `UnreadableLog` where the fleet lacks one.
        """
        if unknown := sorted(set(names) - self.addresses.keys()):
            raise UnreadableLog(
                f"the fleet has no gateway {unknown[0]!r}: it has {', '.join(self.addresses)}"
            )
        return LiveGateways(
            {
                name: at
                for name, at in self.addresses.items()
                if not names or name in names
            }
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has printed on a gateway, its exit status, and why there is
    nothing of it.
    """

    gateway: str
    output: Path
    status: int
    problem: str = ""


def ask(gateways: LiveGateways, words: Sequence[str], folder: Path) -> Iterator[Answer]:
    """Run a command of squidkeeper on all gateways at once; what each prints goes into
    a file in the folder.
    """
    most_bytes = disk_usage(folder).free // 2 // len(gateways.addresses)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = gateways.addresses.items()
        yield from pool.map(
            lambda gateway: _ask(gateway[0], gateway[1], words, folder, most_bytes),
            asked,
        )


def _ask(
    gateway: str, address: str, words: Sequence[str], folder: Path, most_bytes: int
) -> Answer:
    there = shlex.join(("sudo", "-n", "squidkeeper", *words))
    command = ("prlimit", f"--fsize={most_bytes}", *_SSH, "--", address, there)
    output, errors = folder / f"{gateway}.out", folder / f"{gateway}.err"
    with output.open("wb") as out, errors.open("wb") as told:
        try:
            status = subprocess.run(  # noqa: S603 - the person's own ssh
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=told,
                timeout=_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Answer(
                gateway,
                output,
                -1,
                f"{gateway}: no whole answer within {_SECONDS} seconds",
            )
    if status == 0 or output.stat().st_size:
        return Answer(gateway, output, status)
    with errors.open("rb") as found:
        why = (
            " ".join(found.read(_TOLD_BYTES).decode("utf-8", "replace").split())
            or f"status {status}"
        )
    return Answer(gateway, output, status, f"{gateway} ({address}): {why}")


def fetched_lines(
    gateways: LiveGateways, folder: Path, since: datetime | None, until: datetime | None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Fetch the lines of a period; give the files, and what is missing.

    `UnreadableLog` if no gateway has answered.
    """
    if since is None:
        raise UnreadableLog(
            "--fleet needs --since, such as --since 1h: each gateway sends its lines of that time"
        )
    times = [
        "--since",
        format_time(since),
        *(["--until", format_time(until)] if until else []),
    ]
    answers = [*ask(gateways, ("log", "--json", "--connects", *times), folder)]
    missing = [
        one.problem or f"{one.gateway}: status {one.status}, so lines may be missing"
        for one in answers
        if one.status
    ]
    if all(answer.problem for answer in answers):
        raise UnreadableLog("no gateway has answered: " + "; ".join(missing))
    return tuple(answer.output for answer in answers if not answer.problem), (*missing,)
