"""ClientHellos: the name is the one that OpenSSL finds, in a host's one spelling,
however the hello comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from squidkeeper.base.errors import HelloIncomplete, HelloRefused
from squidkeeper.services.transparent.client_hello import server_name
from tests.client_hellos import (
    extension,
    hello,
    in_records,
    message,
    names,
    of_openssl,
    read_by_openssl,
    sni,
)

from .target import Target

HOST = re.compile(r"(?!.*\.[0-9]+\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def check(data: bytes) -> None:
    name = outcome(data)
    if name in (None, ""):
        return
    assert HOST.fullmatch(name)
    assert len(name) <= 253
    assert outcome(data + b"\0more") == name
    assert {
        outcome(data[:end]) for end in range(0, len(data), 1 + len(data) // 64)
    } <= {None, name}
    read = read_by_openssl(data)  # it refuses much that names a server
    assert read is None or read.lower().removesuffix(".") == name


def outcome(data: bytes) -> str | None:
    """The name; empty where the hello is refused, None where more has to come."""
    try:
        return server_name(data)
    except HelloRefused:
        return ""
    except HelloIncomplete:
        return None


def seeds() -> Iterable[bytes]:
    yield of_openssl("api.example.com")
    yield hello(sni(b"API.example.com."))
    yield in_records(message(extension(0x0A0A, b"") + sni(b"api.example.com")), 40)
    yield hello(sni(b"192.0.2.1"))
    yield hello(sni(b"a b"))
    yield hello(names((0, b"a.example"), (0, b"b.example")))


WORDS = (
    *(
        b"\x16\3\1",
        b"\0\0",
        b"\0\x0f",
        b"\1",
        b"\xff\xff",
        b"\0\0\0\x14\0\x12\0\0\x0fapi.example.com",
    ),
    *(
        b".",
        b"..",
        b"\0",
        b"\r\n",
        b"xn--",
        b"1.2.3.4",
        b"[::1]",
        b"a" * 70,
        b"\xc3\xbc",
        b"*",
    ),
)
TARGET = Target(check, seeds, WORDS)
