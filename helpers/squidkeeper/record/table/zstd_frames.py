"""Whether a zstd file is whole: DuckDB reads a truncated one to its end and reports nothing.

Frames and blocks tell their sizes (RFC 8878, 3.1), so nothing is unpacked.
"""

import os
from typing import Final

_MAGIC: Final = 0xFD2FB528
_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)
_DICTIONARY_BYTES: Final = (0, 1, 2, 4)
_SIZE_BYTES: Final = (0, 2, 4, 8)  # of the content's size
_RUN: Final = 1  # a block of one repeated byte


def is_whole(file: int, size: int) -> bool:
    """Tell whether an open file of this size ends where its last frame ends."""
    at = 0
    while at < size:
        at = _frame_end(file, at, size)
    return at == size


def _frame_end(file: int, at: int, size: int) -> int:
    """Return where a frame ends; beyond the size where it is cut, or no frame."""
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
