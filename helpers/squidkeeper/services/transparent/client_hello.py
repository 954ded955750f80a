"""The ClientHello of a TLS client (RFC 8446, 4.1.2): which server does it ask for?

Unknown cipher suites, extensions and versions (GREASE, RFC 8701) are skipped. A hello
can come in several records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from squidkeeper.base.errors import HelloIncomplete, HelloRefused, InvalidUrl
from squidkeeper.base.helper_metrics import TransparentResult
from squidkeeper.policy.url import parse_host

HELLO_BYTES: Final = 64 << 10  # at most, with the headers of its records
_RECORDS: Final = 64  # at most: each costs time, and can hold a single byte
_RECORD_BYTES: Final = 2**14
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4  # bytes
_BEGINNING: Final = b"\x16\3"  # a record of a handshake, of any version from SSL 3.0
_CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 1, 0, 0
_VERSION_AND_RANDOM: Final = 2 + 32


def server_name(data: bytes) -> str:
    """Return the name that a hello asks for, in its one spelling.

    The name is that of the extension `server_name` (RFC 6066, 3). Bytes behind the
    hello do not count. `HelloRefused` tells that no name can come; `HelloIncomplete`,
    that more bytes are needed.
    """
    fields = _Fields(_hello(data))
    fields.take(_VERSION_AND_RANDOM)
    for length_bytes in (1, 2, 1):  # the session ID, cipher suites, compression methods
        fields.vector(length_bytes)
    extensions = _Fields(b"" if fields.ended else fields.vector(2))
    if not fields.ended:
        raise HelloRefused(TransparentResult.NOT_TLS)
    lists = [
        content for kind, content in _extensions(extensions) if kind == _SERVER_NAME
    ]
    if len(lists) != 1:
        raise HelloRefused(TransparentResult.NO_SERVER_NAME)
    return _host(_only_name(_Fields(lists[0])))


def _hello(data: bytes) -> bytes:
    message = bytearray()
    for content in _records(data):
        message += content
        if message[0] != _CLIENT_HELLO:
            raise HelloRefused(TransparentResult.NOT_TLS)
        end = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER])
        if len(message) >= max(end, _MESSAGE_HEADER):
            return bytes(message[_MESSAGE_HEADER:end])
    raise HelloRefused(TransparentResult.NOT_TLS)


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the content of each whole record of a handshake."""
    at = 0
    for _ in range(_RECORDS):
        header = data[at : at + _RECORD_HEADER]
        if not _BEGINNING.startswith(header[:2]):
            break
        _need(at + _RECORD_HEADER, data)
        size = int.from_bytes(header[3:])
        if not 0 < size <= _RECORD_BYTES:
            break
        at += _RECORD_HEADER + size
        _need(at, data)
        yield data[at - size : at]


def _need(size: int, data: bytes) -> None:
    if size > HELLO_BYTES:
        raise HelloRefused(TransparentResult.NOT_TLS)
    if size > len(data):
        raise HelloIncomplete(size)


def _extensions(fields: _Fields) -> Iterator[tuple[int, bytes]]:
    while not fields.ended:
        yield int.from_bytes(fields.take(2)), fields.vector(2)


def _only_name(extension: _Fields) -> bytes:
    names = _Fields(extension.vector(2))
    kind, name = names.take(1)[0], names.vector(2)
    if kind != _HOST_NAME or not names.ended or not extension.ended:
        raise HelloRefused(TransparentResult.NO_SERVER_NAME)
    return name


def _host(name: bytes) -> str:
    try:
        host = parse_host(name.decode("ascii"))
    except (UnicodeDecodeError, InvalidUrl) as error:
        raise HelloRefused(TransparentResult.NO_SERVER_NAME) from error
    if host.address is not None:
        raise HelloRefused(TransparentResult.NO_SERVER_NAME)
    return host.text


class _Fields:
    """Takes fields of TLS (RFC 8446, 3.4) from bytes, in their order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise HelloRefused(TransparentResult.NOT_TLS)
        taken, self._at = self._data[self._at : end], end
        return taken

    def vector(self, length_bytes: int) -> bytes:
        return self.take(int.from_bytes(self.take(length_bytes)))
