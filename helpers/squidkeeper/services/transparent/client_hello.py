"""The ClientHello of a TLS client (RFC 8446, 4.1.2): which server does it ask for?

Unknown cipher suites, extensions and versions (GREASE, RFC 8701) are skipped. A hello can come in several records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from squidkeeper.base.errors import HelloRefused, InvalidUrl
from squidkeeper.base.metrics import TransparentResult
from squidkeeper.policy.url import parse_host

HELLO_BYTES: Final = 64 << 10  # at most, with the headers of its records
_RECORDS: Final = 64  # at most: each costs time, and can hold a single byte
_RECORD_BYTES: Final = 2**14
_RECORD_HEADER: Final = 5
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_VERSION_AND_RANDOM: Final = 2 + 32


class ClientHelloReader:
    """Reads one ClientHello as it comes. `received` holds all bytes, also those behind the hello."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._message = bytearray()  # the content of the whole records
        self._at = self._records = 0

    def receive(self, data: bytes) -> str | None:
        """Take bytes; return the name of the server once the hello is whole, None before. `HelloRefused`."""
        self.received += data
        while (content := self._next_record()) is not None:
            self._message += content
            if self._message[0] != _CLIENT_HELLO:
                raise HelloRefused(TransparentResult.NOT_TLS)
            end = 4 + int.from_bytes(self._message[1:4]) if len(self._message) >= 4 else HELLO_BYTES
            if len(self._message) >= end:
                return server_name(bytes(self._message[4:end]))
        if len(self.received) >= HELLO_BYTES or self._records == _RECORDS:
            raise HelloRefused(TransparentResult.NOT_TLS)
        return None

    def _next_record(self) -> bytearray | None:
        header = bytes(self.received[self._at : self._at + _RECORD_HEADER])
        if header[:1] not in (b"", bytes([_HANDSHAKE])) or header[1:2] not in (b"", b"\3"):
            raise HelloRefused(TransparentResult.NOT_TLS)
        size = int.from_bytes(header[3:])
        end = self._at + _RECORD_HEADER + size
        if len(header) < _RECORD_HEADER or self._records == _RECORDS:
            return None
        if not 0 < size <= _RECORD_BYTES:
            raise HelloRefused(TransparentResult.NOT_TLS)
        if len(self.received) < end:
            return None
        content = self.received[self._at + _RECORD_HEADER : end]
        self._at, self._records = end, self._records + 1
        return content


def server_name(hello: bytes) -> str:
    """Return the name in the extension `server_name` (RFC 6066, 3) in its one spelling; `HelloRefused`."""
    fields = _Fields(hello)
    fields.take(_VERSION_AND_RANDOM)
    for length_bytes in (1, 2, 1):  # the session ID, cipher suites, compression methods
        fields.vector(length_bytes)
    extensions = _Fields(b"" if fields.ended else fields.vector(2))
    if not fields.ended:
        raise HelloRefused(TransparentResult.NOT_TLS)
    lists = [content for kind, content in _extensions(extensions) if kind == _SERVER_NAME]
    if len(lists) != 1:
        raise HelloRefused(TransparentResult.NO_SERVER_NAME)
    return _host(_only_name(_Fields(lists[0])))


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
