"""Small sealed archives for tests: what is in a part is nothing that a chain reads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import duckdb

from squidkeeper.record.chain.chain import append_entry
from squidkeeper.record.chain.entries import (
    ArchivedPart,
    ArchivedSource,
    ChainEntry,
    EntryKind,
)
from squidkeeper.record.chain.keys import ArchiveKey


def write_part(folder: Path, number: int, day: str, content: bytes) -> ArchivedPart:
    path = f"day={day}/part-{number:08d}.parquet"
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(content)
    digest = sha256(content).hexdigest()
    return ArchivedPart(
        path=path, sha256=digest, bytes=len(content), rows=content.count(b"\n")
    )


def write_parquet(
    folder: Path, number: int, day: str, lines: Iterable[tuple[float, str]]
) -> ArchivedPart:
    """Write a part of lines with no more than a time, in seconds since 1970,
    and a URL.
    """
    path = f"day={day}/part-{number:08d}.parquet"
    (folder / path).parent.mkdir(exist_ok=True)
    times, urls = zip(*sorted(lines), strict=True)
    chosen = "SELECT make_timestamp((unnest(?::DOUBLE[]) * 1e6)::BIGINT) AS time, unnest(?::VARCHAR[]) AS url"
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE lines AS {chosen}", [list(times), list(urls)])
        connection.execute(f"COPY lines TO '{folder / path}' (FORMAT parquet)")
    content = (folder / path).read_bytes()
    first, last = (
        datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        for at in (times[0], times[-1])
    )
    digest, size = sha256(content).hexdigest(), len(content)
    return ArchivedPart(
        path=path, sha256=digest, bytes=size, rows=len(times), first=first, last=last
    )


def make_archive(folder: Path, key: ArchiveKey | None, sources: int = 3) -> None:
    """Archive that many rotated logs, each of two days."""
    folder.mkdir()
    for number in range(1, sources + 1):
        add_source(folder, key, number)


def add_source(folder: Path, key: ArchiveKey | None, number: int) -> ChainEntry:
    texts = {
        f"2026-11-{20 + number + day}": f"line {number} of day {day}\n".encode() * 5
        for day in (0, 1)
    }
    parts = tuple(write_part(folder, number, day, text) for day, text in texts.items())
    source = ArchivedSource(
        name=f"access.log.{number}",
        first_line_sha256=f"{number:064x}",
        bytes=100,
        lines=10,
    )
    return append_entry(
        folder, ChainEntry(kind=EntryKind.PARTS, source=source, parts=parts), key
    )
