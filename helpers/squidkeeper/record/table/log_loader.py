"""Open logs into a `LineTable`: by DuckDB where it reads as Python does, else through
Python, in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import DamagedLog, SquidkeeperError, UnreadableLog
from squidkeeper.record.log.log_files import BLOCK_BYTES, line_blocks, read_failure
from squidkeeper.record.table.database import Database, is_short_of_room
from squidkeeper.record.table.lines import (
    DecodedLine,
    LineTable,
    Loaded,
    Skipped,
    decode_line,
)
from squidkeeper.record.table.sources import OpenLog

_PIECE_BYTES: Final = 32 * 1024 * 1024
ZSTD: Final = "zstd"
_SCAN_BYTES: Final = 4 * 1024 * 1024
_MAGIC: Final = 0xFD2FB528
_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)
_DICTIONARY_BYTES: Final = (0, 1, 2, 4)
_SIZE_BYTES: Final = (0, 2, 4, 8)  # of the content's size
_RUN: Final = 1  # a block of one repeated byte


class LogChanged(SquidkeeperError):
    """A log that was cut while it was read; everything has to be read again."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Lines of a file; `number` is the line number of the first.

    `ended`: the last one ends in a newline.
    """

    number: int
    lines: list[bytes]
    ended: bool


class LogLoader:
    """Loads logs one after the other, and counts what is skipped."""

    def __init__(self, database: Database, lines: LineTable, skipped: Skipped) -> None:
        self._spill = database.spill
        self._lines = lines
        self._skipped = skipped

    def load(self, log: OpenLog) -> None:
        """Load a log; `LogChanged` if it was cut meanwhile, `UnreadableLog` if it
        cannot be read at all.
        """
        in_pieces = not log.compression or log.archived or _has_carriage_return(log)
        if in_pieces or not self._load_directly(log):
            self._load_in_pieces(log)
        if log.was_cut:
            raise LogChanged(f"{log.path}: was cut while it was read")

    def _load_directly(self, log: OpenLog) -> bool:
        loaded = self._try(log.descriptor, log.compression)
        if loaded is None:
            return False
        damage, ended = _end_of(log)
        if damage:
            self._skipped.damaged.append(f"{log.path}: damaged or truncated: {damage}")
        faults = self._decode(self._lines.deviating(loaded))
        if faults and faults[-1].position == loaded.end - 1 and not ended:
            faults.pop()
        first = faults[0] if faults else None
        if first and self._lines.is_bounded:
            self._skip(log, faults, _line_number(log, first.line))
        elif first:
            self._skip(log, faults, first.position - loaded.first + 1)
        return True

    def _load_in_pieces(self, log: OpenLog) -> None:
        for piece in _pieces(self._blocks(log)):
            loaded = self._load_piece(piece)
            if loaded is None:
                loaded = self._lines.reserve(len(piece.lines))
                faults = self._decode(
                    zip(count(loaded.first), piece.lines, strict=False)
                )
            else:
                faults = self._decode(self._lines.deviating(loaded))
            if faults and faults[-1].position == loaded.end - 1 and not piece.ended:
                faults.pop()
            if faults and log.archived:
                self._skip(log, faults, 0)
            elif faults and self._lines.is_bounded:
                number = piece.number + piece.lines.index(faults[0].line)
                self._skip(log, faults, number)
            elif faults:
                self._skip(
                    log, faults, faults[0].position - loaded.first + piece.number
                )

    def _load_piece(self, piece: _Piece) -> Loaded | None:
        if any(b"\r" in line for line in piece.lines):
            return None
        file = self._spill / "piece.log"
        file.write_bytes(b"\n".join([*piece.lines, b""]))
        loaded = self._try(file, "none")
        file.unlink()
        return loaded

    def _try(self, file: Path, compression: str) -> Loaded | None:
        import duckdb

        try:
            return self._lines.load(file, compression)
        except (
            duckdb.InvalidInputException,
            duckdb.IOException,
            duckdb.ConversionException,
        ) as error:
            if is_short_of_room(error):
                raise
            # bytes that are not UTF-8, a line that is too long, a damaged file
            return None

    def _decode(self, rows: Iterable[tuple[int, bytes]]) -> list[LineFault]:
        faults: list[LineFault] = []
        self._lines.add(_noting_faults(rows, faults))
        return faults

    def _skip(self, log: OpenLog, faults: list[LineFault], number: int) -> None:
        self._skipped.count += len(faults)
        place = f"{log.path}:{number}" if number else str(log.path)
        self._skipped.first = self._skipped.first or f"{place}: {faults[0].reason}"

    def _blocks(self, log: OpenLog) -> Iterator[tuple[list[bytes], bool]]:
        """Yield lines, and whether the last one has ended.

        What is readable of a damaged file is used.
        """
        if log.compression == ZSTD:  # Python has no zstd before 3.14
            reason = "damaged, or has bytes that are not UTF-8; nothing of it was used: zstdcat FILE | squidkeeper … -"
            self._skipped.damaged.append(f"{log.path}: {reason}")
            return
        try:
            with log.open_content() as content:
                content.skip(log.archived)
                yield from line_blocks(content)
        except DamagedLog as error:
            self._skipped.damaged.append(f"{log.path}: damaged or truncated: {error}")
        except OSError as error:
            raise UnreadableLog(f"{log.path}: {read_failure(error)}") from error


@dataclass(frozen=True, slots=True)
class LineFault:
    """A line that is no record."""

    position: int
    line: bytes
    reason: str


def _noting_faults(
    rows: Iterable[tuple[int, bytes]], faults: list[LineFault]
) -> Iterator[DecodedLine]:
    for position, line in rows:
        decoded = decode_line(position, line)
        if decoded.fault:
            faults.append(LineFault(position, line, decoded.fault))
        yield decoded


def _pieces(blocks: Iterable[tuple[list[bytes], bool]]) -> Iterator[_Piece]:
    number, lines, size = 1, list[bytes](), 0
    for block, ended in blocks:
        lines += block
        size += sum(map(len, block))
        if size >= _PIECE_BYTES and ended:
            yield _Piece(number, lines, ended)
            number, lines, size = number + len(lines), [], 0
    if lines:
        yield _Piece(number, lines, ended)


def _has_carriage_return(log: OpenLog) -> bool:
    """Whether DuckDB would take a line for two.

    Of a compressed file it is not known: only root writes them.
    """
    if log.compression != "none" or log.raw is None:
        return False
    file = log.raw.fileno()
    return any(
        b"\r" in os.pread(file, _SCAN_BYTES, start)
        for start in range(0, log.size, _SCAN_BYTES)
    )


def _end_of(log: OpenLog) -> tuple[str, bool]:
    """Tell what is damaged, and whether the last line is complete; unknown, it is taken
    for one that is being written.

    DuckDB does not compare the checksum of gzip: the file is read again for it, in a
    tenth of the time.
    """
    if log.grew or not log.raw:
        return "", False
    if log.compression == ZSTD:
        return "" if is_whole(
            log.raw.fileno(), log.size
        ) else "it ends within a frame", False
    if log.compression == "none":
        return "", os.pread(log.raw.fileno(), 1, max(log.size - 1, 0)) == b"\n"
    last = b""
    try:
        with log.open_content() as content:
            while data := content.read(BLOCK_BYTES):
                last = data[-1:]
    except DamagedLog as error:
        return str(error), last == b"\n"
    return "", last == b"\n"


def _line_number(log: OpenLog, wanted: bytes) -> int:
    if log.compression == ZSTD:
        return 0
    try:
        with log.open_content() as content:
            lines = chain.from_iterable(lines for lines, _ in line_blocks(content))
            return next(
                (number for number, line in enumerate(lines, 1) if line == wanted), 0
            )
    except DamagedLog:
        return 0


# Whether a zstd file is whole: DuckDB reads a truncated one to its end and reports
# nothing.
#
# Frames and blocks tell their sizes (RFC 8878, 3.1), so nothing is unpacked.


def is_whole(file: int, size: int) -> bool:
    """Whether an open file of this size ends where its last frame ends."""
    at = 0
    while at < size:
        at = _frame_end(file, at, size)
    return at == size


def _frame_end(file: int, at: int, size: int) -> int:
    magic = _number(file, at, 4)
    if magic in _SKIPPABLE:
        return at + 8 + _number(file, at + 4, 4)
    if magic != _MAGIC:
        return size + 1
    descriptor = _number(file, at + 4, 1)
    has_one_segment, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    size_bytes = _SIZE_BYTES[descriptor >> 6] or has_one_segment
    at += 5 + (1 - has_one_segment) + _DICTIONARY_BYTES[descriptor & 3] + size_bytes
    is_last = False
    while not is_last:
        if at + 3 > size:
            return size + 1
        header = _number(file, at, 3)
        is_last = bool(header & 1)
        at += 3 + (1 if header >> 1 & 3 == _RUN else header >> 3)
    return at + 4 * has_checksum


def _number(file: int, at: int, length: int) -> int:
    return int.from_bytes(os.pread(file, length, at), "little")
