"""Unpacking a log that is compressed: all that is ahead of damage comes first, and then the damage.

The files of `gzip`, `bz2` and `lzma` raise as soon as they meet it, and what they had unpacked by then is lost.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final, Protocol

from squidkeeper.base.errors import DamagedLog

_PACKED_BYTES: Final = 64 * 1024  # that are unpacked together
_CONTENT_BYTES: Final = 256 * 1024  # of content from one call, to bound memory
_PADDING: Final = b"\0"  # may follow the end of a file
_FAILURES: Final = (zlib.error, lzma.LZMAError, OSError, ValueError)  # OSError: how bz2 names damage


class Unpacker(Protocol):
    """What `bz2` and `lzma` have: it unpacks piece by piece."""

    @property
    def eof(self) -> bool: ...  # noqa: D102 - as the standard library has it
    @property
    def needs_input(self) -> bool: ...  # noqa: D102
    @property
    def unused_data(self) -> bytes: ...  # noqa: D102
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...  # noqa: D102


class _GzipUnpacker:
    """gzip in the form of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


UNPACKERS: Final[dict[str, Callable[[], Unpacker]]] = {
    ".gz": _GzipUnpacker,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}


class _PieceLost(DamagedLog):
    """Damage that costs what the same piece held ahead of it."""


class UnpackedContent:
    """The content of a compressed file, to be read from its start to its end."""

    def __init__(self, packed: IO[bytes], begin: Callable[[], Unpacker]) -> None:
        self._packed = packed
        self._blocks = _unpacked(packed, begin)
        self._rest = b""
        self._damage: DamagedLog | None = None

    def read(self, limit: int) -> bytes:
        """Read so many bytes, fewer only at the end; `DamagedLog` once all that is ahead of the damage was read."""
        while len(self._rest) < limit and not self._damage:
            try:
                block = next(self._blocks)
            except StopIteration:
                break
            except DamagedLog as error:
                self._damage = error
            else:
                self._rest += block
        if self._damage and not self._rest:
            raise self._damage
        taken, self._rest = self._rest[:limit], self._rest[limit:]
        return taken

    def fileno(self) -> int:
        """Give the descriptor of the compressed file."""
        return self._packed.fileno()

    def close(self) -> None:
        """Forget what was unpacked."""
        self._rest = b""


def _unpacked(packed: IO[bytes], begin: Callable[[], Unpacker]) -> Iterator[bytes]:
    given = 0
    try:
        for block in _members(_pieces(packed), begin):
            given += len(block)
            yield block
    except _PieceLost:
        if not packed.seekable():
            raise
    else:
        return
    # The piece with the damage gave nothing: once more, to where it was, and from there byte by byte.
    damaged_from = (packed.tell() - 1) // _PACKED_BYTES * _PACKED_BYTES
    packed.seek(0)
    for block in _members(_pieces(packed, damaged_from), begin):
        skipped = min(given, len(block))
        given -= skipped
        if skipped < len(block):
            yield block[skipped:]


def _pieces(packed: IO[bytes], bytewise_from: int | None = None) -> Iterator[bytes]:
    at = 0
    while piece := packed.read(_PACKED_BYTES):
        at += len(piece)
        if bytewise_from is None or at <= bytewise_from:
            yield piece
        else:
            yield from (piece[n : n + 1] for n in range(len(piece)))


def _members(pieces: Iterator[bytes], begin: Callable[[], Unpacker]) -> Iterator[bytes]:
    """Unpack one member after the other, as `cat a.gz b.gz` makes them."""
    unpacker, is_whole = None, False
    for piece in pieces:
        data = piece
        while data or (unpacker and not unpacker.needs_input):
            if unpacker is None:
                data = data.lstrip(_PADDING) if is_whole else data
                unpacker = begin() if data else None
                continue
            yield _unpack(unpacker, data)
            data = b""
            if unpacker.eof:
                data, unpacker, is_whole = unpacker.unused_data, None, True
    if unpacker:
        yield from iter(lambda: _unpack(unpacker, b""), b"")
    if unpacker or not is_whole:
        raise DamagedLog("it ends too early")


def _unpack(unpacker: Unpacker, data: bytes) -> bytes:
    try:
        return unpacker.decompress(data, _CONTENT_BYTES)
    except _FAILURES as error:
        raise _PieceLost(str(error)) from None
