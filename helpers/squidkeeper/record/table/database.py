"""DuckDB, opened for one command: bounded memory, a private spill folder, no extensions, a core for Squid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from squidkeeper.base.errors import UnreadableLog
from squidkeeper.record.table.file_names import quoted_literally
from squidkeeper.record.table.own_process import ending_by_exit
from squidkeeper.record.table.spill import spill_folder

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT: Final = "1GB"
_NICENESS: Final = 10  # 19 would wait for seconds on a busy machine; Squid has ten times the weight at 10
_BATCH: Final = 20_000  # rows that are inserted at once
_ROW_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Database:
    """An open connection, and the folder for what does not fit into memory. It is removed at the end."""

    connection: duckdb.DuckDBPyConnection
    spill: Path

    def insert(self, table: str, types: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> None:
        """Insert rows; BLOBs are given in base64. DuckDB reads them from a file, as parameters are far slower."""
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
        read = ", ".join(f"{name}: '{'VARCHAR' if kind == 'BLOB' else kind}'" for name, kind in types.items())
        chosen = (f"from_base64({name}) AS {name}" if kind == "BLOB" else name for name, kind in types.items())
        self.connection.execute(
            f"INSERT INTO {table} BY NAME SELECT {', '.join(chosen)} FROM read_json({quoted_literally(file)},"
            f" format='newline_delimited', columns={{{read}}}, maximum_object_size={_ROW_BYTES})"
        )
        file.unlink()


@contextmanager
def open_database(threads: int | None = None, memory_limit: str = MEMORY_LIMIT) -> Iterator[Database]:
    """Open an empty database in memory; what exceeds the limit goes to the spill folder, at most half of its disk."""
    import duckdb

    with ending_by_exit(), spill_folder() as spill:
        try:
            with duckdb.connect(config=_settings(spill, threads or spare_threads(), memory_limit)) as connection:
                connection.execute("SET enable_progress_bar = false")
                yield Database(connection, spill)
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            bounds = f"DuckDB has {memory_limit}, and half of the free space of {spill.parent}"
            ways = "choose a shorter period (--since, --until), fewer or shorter values, or another folder ($TMPDIR)"
            raise UnreadableLog(f"out of memory: {bounds}: {ways}") from error


def spare_threads() -> int:
    """Return the cores of this process less one, which is Squid's; at least one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def yield_to_squid() -> None:
    """Let Squid and its helpers go first for the rest of this process."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


def _settings(spill: Path, threads: int, memory_limit: str) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "threads": threads,
        "memory_limit": memory_limit,
        "temp_directory": str(spill),
        "max_temp_directory_size": f"{shutil.disk_usage(spill).free // 2 // 1024 // 1024} MiB",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "secret_directory": str(spill),
    }
