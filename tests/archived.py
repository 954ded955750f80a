"""What an archive holds, read by its chain; and a run of the archive that is killed at
one of its steps.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import duckdb
import msgspec

from squidkeeper.record.archive.archiver import Archiver
from squidkeeper.record.archive.retention import ArchiveBounds
from squidkeeper.record.chain.chain import read_chain
from squidkeeper.record.table.columns import COLUMNS, FIELDS
from squidkeeper.record.table.lines import record_of

STEPS = (
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.truncate",
    "fcntl.flock",
)
NAMES = [column.name for column in COLUMNS]
CHUNK_BYTES = 12_000  # small ones, so that a log becomes several parts


def archived_lines(folder: Path) -> list[bytes]:
    """Every line of an archive, as it was logged, in the order of the chain."""
    files = [str(folder / part) for part in read_chain(folder).parts]
    with duckdb.connect() as connection:
        rows = [
            row
            for file in files
            for row in connection.execute(
                f"SELECT {', '.join(NAMES)} FROM '{file}'"
            ).fetchall()
        ]
    return [line_of(row) for row in rows]


def line_of(row: tuple[object, ...]) -> bytes:
    raw = row[NAMES.index("raw")]
    if isinstance(raw, bytes):
        return raw
    names = [column.name for column in FIELDS]
    return msgspec.json.encode(
        record_of([row[NAMES.index(name)] for name in names], names)
    )


def archive(log: Path, folder: Path, bounds: ArchiveBounds | None = None) -> None:
    Archiver(
        log, folder, bounds=bounds or ArchiveBounds(36_500), chunk_bytes=CHUNK_BYTES
    ).run()


def kill_at(step: int) -> None:
    """End this process at a step, as `kill -9` would; exit status 0 of the run means
    that there were fewer.
    """
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    """Read steps from standard input, and tell for each whether a run was killed there;
    a fork is fast.
    """
    log, folder, days = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            kill_at(int(line))
            archive(log, folder, ArchiveBounds(days))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else f"ended {status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
