"""ClientHellos, as clients and attackers write them."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import suppress

SERVER_NAME = 0
GREASE = 0x0A0A


def vector(length_bytes: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_bytes) + content


def record(content: bytes, kind: int = 22, version: bytes = b"\3\1") -> bytes:
    return bytes([kind]) + version + vector(2, content)


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, content)


def names(*entries: tuple[int, bytes]) -> bytes:
    """The extension with a list of names, each of a kind; 0: a host."""
    return extension(
        SERVER_NAME,
        vector(2, b"".join(bytes([kind]) + vector(2, name) for kind, name in entries)),
    )


def sni(name: bytes) -> bytes:
    return names((0, name))


def message(
    extensions: bytes | None,
    session: bytes = b"s" * 32,
    ciphers: bytes = b"\x13\1\x13\2",
) -> bytes:
    """A handshake message; `extensions` None: none, not even their length, as before
    TLS 1.2.
    """
    body = (
        b"\3\3" + b"r" * 32 + vector(1, session) + vector(2, ciphers) + vector(1, b"\0")
    )
    return b"\1" + vector(
        3, body + (b"" if extensions is None else vector(2, extensions))
    )


def hello(extensions: bytes | None) -> bytes:
    return record(message(extensions))


def in_records(content: bytes, size: int) -> bytes:
    return b"".join(
        record(content[at : at + size]) for at in range(0, len(content), size)
    )


def padded(extensions: bytes, size: int) -> bytes:
    """A hello of so many bytes, in records of the longest size."""
    longest = 1 << 14
    room = size - len(in_records(message(extensions + extension(21, b"")), longest))
    room -= 5 * (-(-size // (longest + 5)) - 1)
    return in_records(message(extensions + extension(21, b"\0" * room)), longest)


def of_openssl(name: str, alpn: Iterable[str] = ("h2", "http/1.1")) -> bytes:
    """The hello of a real client."""
    context = ssl.create_default_context()
    context.set_alpn_protocols([*alpn])
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a client that waits for nothing")


def read_by_openssl(data: bytes) -> str | None:
    """The name that OpenSSL finds in a hello as a server; None where it finds none."""
    found: list[str | None] = []

    def see(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        found.append(name)
        return int(ssl.ALERT_DESCRIPTION_USER_CANCELLED)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = see
    given = ssl.MemoryBIO()
    given.write(data)
    with suppress(ssl.SSLError):
        context.wrap_bio(given, ssl.MemoryBIO(), server_side=True).do_handshake()
    return found[0] if found else None
