"""DuckDB, opened for one command: its memory, spill folder, extensions and cores, and
how its process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from squidkeeper.base.errors import QueryRefused, UnreadableLog
from squidkeeper.base.squid_account import account_of
from squidkeeper.record.log.log_files import LINE_LIMIT

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT: Final = "300MB"
QUERY_MEMORY: Final = "1GB"  # a SELECT of a user's can need more
# 19 would wait for seconds on a busy machine; Squid has ten times the weight at 10
_NICENESS: Final = 10
# Logs up to this size are read into memory. Of larger ones the tables are on disk, in a
# tenth of the size and with a tenth more time.
MEMORY_LOGS: Final = 768 * 1024**2
_PACKED: Final = 10
_DISK: Final = "disk"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_WRITTEN: Final = "Could not write"  # a full disk has no class of its own
_BATCH: Final = 20_000  # rows that are inserted at once
_ROW_BYTES: Final = 16 * 1024 * 1024
QUERY_BYTES: Final = 2 * 1024**3  # DuckDB's own limit does not count long values
_THREAD_BYTES: Final = 16 * 1024**2  # a stack, and what malloc keeps for it
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
# what DuckDB makes of a signal's exception; it has no class of its own
_INTERRUPTED: Final = "Query interrupted"
_KILLED: Final = (
    128  # exit status of a process that a signal has ended: as shells have it
)
QUERY_ACCOUNT: Final = (
    "nobody"  # runs the queries of root; not Squid's account, which writes the log
)
_PARENT: Final = "/var/tmp"  # noqa: S108 - on a disk, where /tmp can be memory; mkdtemp makes a folder 0700 in it
_PREFIX: Final = "squidkeeper-table-"


def quoted(text: str | Path) -> str:
    """Write a text, or the name of a file, as a text of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def quoted_literally(path: Path) -> str:
    """Write the name of one file, whatever its characters are: for DuckDB, `*`, `?` and
    `[` are a pattern.
    """
    return quoted(Path(re.sub(r"([*?[])", r"[\1]", str(path))))


def csv_lines(file: Path, compression: str) -> str:
    """Return the table of a file's lines, with the column `line`; an empty line is
    NULL.

    It takes a lone carriage return for the end of a line, and refuses a file that is
    not UTF-8.
    """
    name = quoted_literally(file)
    return (
        f"read_csv({name}, columns={{line: 'VARCHAR'}}, compression='{compression}', delim='\\x01', quote='',"
        f" escape='', header=false, auto_detect=false, strict_mode=false, max_line_size={4 * LINE_LIMIT})"
    )


@dataclass(frozen=True, slots=True)
class Database:
    """An open connection, and the folder for what does not fit into memory.

    It is removed at the end. `on_disk`: large tables are in a file there, compressed.
    """

    connection: duckdb.DuckDBPyConnection
    spill: Path
    on_disk: bool = False

    def place(self, table: str) -> str:
        """Name a large table: where it is."""
        return f"{_DISK}.{table}" if self.on_disk else table

    def with_disk(self, log_bytes: int) -> Database:
        """Put large tables of logs of this size on the disk: the same database.

        Tables stay in memory while they fit there, or where the disk lacks room.
        """
        if log_bytes <= MEMORY_LOGS or log_bytes // _PACKED > room(self.spill):
            return self
        file = quoted(self.spill / "tables.duckdb")
        self.connection.execute(
            f"ATTACH IF NOT EXISTS {file} AS {_DISK} (RECOVERY_MODE no_wal_writes)"
        )
        return replace(self, on_disk=True)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Let no file of the block take more than its share of the disk's free
        space.
        """
        before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.on_disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room(self.spill), most))
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise MemoryError from error  # rows of our own, which Python writes
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))

    def insert(
        self, table: str, types: Mapping[str, str], rows: Iterable[Mapping[str, object]]
    ) -> None:
        """Insert rows; BLOBs are given in base64.

        DuckDB reads them from a file, as parameters are far slower.
        """
        batch: list[bytes] = []
        for row in rows:
            batch.append(msgspec.json.encode(row))
            if len(batch) >= _BATCH:
                self._insert(table, types, batch)
                batch = []
        if batch:
            self._insert(table, types, batch)

    def _insert(self, table: str, types: Mapping[str, str], rows: list[bytes]) -> None:
        file = self.spill / "rows.jsonl"
        file.write_bytes(b"\n".join(rows))
        read = ", ".join(
            f"{name}: '{'VARCHAR' if kind == 'BLOB' else kind}'"
            for name, kind in types.items()
        )
        chosen = (
            f"from_base64({name}) AS {name}" if kind == "BLOB" else name
            for name, kind in types.items()
        )
        self.connection.execute(
            f"INSERT INTO {table} BY NAME SELECT {', '.join(chosen)} FROM read_json({quoted_literally(file)},"
            f" format='newline_delimited', columns={{{read}}}, maximum_object_size={_ROW_BYTES})"
        )
        file.unlink()


@contextmanager
def open_database(
    threads: int | None = None, memory_limit: str = MEMORY_LIMIT
) -> Iterator[Database]:
    """Open an empty database in memory; what exceeds the limit goes to the spill
    folder, at most half of its disk.
    """
    import duckdb

    with ending_by_exit(), spill_folder() as spill:
        try:
            with duckdb.connect(
                config=_settings(spill, threads or spare_threads(), memory_limit)
            ) as connection:
                connection.execute("SET enable_progress_bar = false")
                yield Database(connection, spill)
        except (duckdb.Error, MemoryError) as error:
            if not is_short_of_room(error):
                raise
            bounds = f"DuckDB has {memory_limit}, and half of the free space of {spill.parent}"
            ways = "choose a shorter period (--since, --until), fewer or shorter values, or another folder ($TMPDIR)"
            raise UnreadableLog(f"out of memory: {bounds}: {ways}") from error


def is_short_of_room(error: BaseException) -> bool:
    """Whether memory or the disk did not suffice."""
    import duckdb

    if isinstance(error, duckdb.IOException):
        return _NOT_WRITTEN in str(error)
    return isinstance(error, duckdb.OutOfMemoryException | MemoryError)


def room(spill: Path) -> int:
    """Return how much one of two files may take: together half of the disk's free
    space.
    """
    return shutil.disk_usage(spill).free // 4


def spare_threads() -> int:
    """Return the cores of this process less one, which is Squid's; at least one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def yield_to_squid() -> None:
    """Let Squid and its helpers go first for the rest of this process."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


def _settings(
    spill: Path, threads: int, memory_limit: str
) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "threads": threads,
        "memory_limit": memory_limit,
        "temp_directory": str(spill),
        "max_temp_directory_size": f"{room(spill) // 1024**2} MiB",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "secret_directory": str(spill),
    }


@contextmanager
def ending_by_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block by `SystemExit`, so that it is cleaned up
    after, as after Ctrl-C.
    """
    received: list[int] = []

    def end(number: int, _frame: object) -> NoReturn:
        received.append(number)
        raise SystemExit(_KILLED + number)

    is_main = threading.current_thread() is threading.main_thread()
    replaced = [
        ending
        for ending in _ENDING
        if is_main and signal.getsignal(ending) is signal.SIG_DFL
    ]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    except RuntimeError as error:
        if str(error) != _INTERRUPTED:
            raise
        raise (
            SystemExit(_KILLED + received[0]) if received else KeyboardInterrupt
        ) from None
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def bound_memory(threads: int, most: int = QUERY_BYTES) -> None:
    """Bound what this process can allocate, for good; DuckDB then refuses a query that
    needs more.
    """
    size = most + threads * _THREAD_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def continue_as_child(undo: Callable[[], None]) -> None:
    """Return in a child process.

    This process ends with its exit status, and calls `undo` where it fails.

    What ends this process ends the child at once, whatever it does. This process keeps
    the rights that the child drops, and removes the spill folder with them.
    `QueryRefused` if a signal has ended the child.
    """
    sys.stdout.flush()
    life, held = os.pipe()  # the child ends when nobody holds it any more
    with ending_by_exit():
        child = os.fork()
        if child:
            os.close(life)
            _end_as(child, undo)
    os.close(held)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()


def _end_as(child: int, undo: Callable[[], None]) -> NoReturn:
    status = None
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        remove_abandoned()
        if status != 0:
            undo()
    if status < 0:
        raise QueryRefused(
            f"its process was ended by signal {-status}, which can be for want of memory"
        )
    raise SystemExit(status)


def _end_with(life: int) -> None:
    os.read(life, 1)
    os.kill(os.getpid(), signal.SIGKILL)


# The folder for what does not fit into memory: private, and removed also after a
# process that was killed.
#
# A lock on the folder tells whether its process lives. Its next user removes those of
# dead ones.


@contextmanager
def spill_folder() -> Iterator[Path]:
    """Make a folder for the block, in `$TMPDIR` or `/var/tmp`."""
    remove_abandoned()
    folder, lock = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders whose process is dead: of this account, and for root those of
    queries.
    """
    for folder in _parent().glob(f"{_PREFIX}*"):
        with suppress(
            OSError
        ):  # another process removes it, or it belongs to another account
            _remove_if_abandoned(folder)


def _make() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked
            lock = _open(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    file = _open(folder)
    try:
        state = os.fstat(file)
        if state.st_uid in _accounts() and stat.S_IMODE(state.st_mode) == stat.S_IRWXU:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)  # follows no link
    finally:
        os.close(file)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _accounts() -> set[int]:
    query = account_of(QUERY_ACCOUNT) if os.geteuid() == 0 else None
    return {os.geteuid(), *({query.user} if query else ())}


def _parent() -> Path:
    return Path(os.environ.get("TMPDIR") or _PARENT)
