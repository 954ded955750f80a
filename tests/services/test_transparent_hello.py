"""The name in a ClientHello: what clients send, and what attackers may."""

from __future__ import annotations

import pytest

from squidkeeper.base.errors import HelloIncomplete, HelloRefused
from squidkeeper.base.helper_metrics import TransparentResult
from squidkeeper.services.transparent.client_hello import HELLO_BYTES, server_name
from tests.client_hellos import (
    GREASE,
    SERVER_NAME,
    extension,
    hello,
    in_records,
    message,
    names,
    of_openssl,
    padded,
    read_by_openssl,
    record,
    sni,
    vector,
)

NAME = b"api.example.com"
PLAIN = hello(sni(NAME))
LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
LONG_MESSAGE = message(extension(GREASE, b"x" * 60_000) + sni(NAME))
ECH = extension(0xFE0D, b"\0\0\1\0\1\1\0\x20" + b"k" * 32 + b"\0\xef" + b"e" * 239)

FOUND = {
    "a plain hello": (PLAIN, "api.example.com"),
    "OpenSSL": (of_openssl("api.example.com"), "api.example.com"),
    "upper case": (hello(sni(b"API.Example.COM")), "api.example.com"),
    "a dot at the end": (hello(sni(b"api.example.com.")), "api.example.com"),
    "an underscore": (hello(sni(b"_dmarc.my_host.example")), "_dmarc.my_host.example"),
    "punycode": (hello(sni(b"xn--mnchen-3ya.example")), "xn--mnchen-3ya.example"),
    "a single label, which the policy judges": (hello(sni(b"localhost")), "localhost"),
    "the longest name": (hello(sni(LONGEST.encode())), LONGEST),
    "GREASE before and behind": (
        hello(extension(GREASE, b"") + sni(NAME) + extension(GREASE + 0x1010, b"\0")),
        "api.example.com",
    ),
    "a key share of a post-quantum group": (
        hello(extension(51, b"k" * 1220) + sni(NAME)),
        "api.example.com",
    ),
    "ECH: the name outside": (hello(ECH + sni(b"public.example")), "public.example"),
    "the old encrypted SNI beside a name": (
        hello(extension(0xFFCE, b"e" * 300) + sni(NAME)),
        "api.example.com",
    ),
    "early data behind": (PLAIN + record(b"e" * 500, kind=23), "api.example.com"),
    "any bytes behind": (PLAIN + b"\0" * 70_000, "api.example.com"),
    "the record of SSL 3.0": (
        record(message(sni(NAME)), version=b"\3\0"),
        "api.example.com",
    ),
    "as many records as are read": (
        in_records(message(sni(NAME)), 2),
        "api.example.com",
    ),
    "records of the longest size": (
        in_records(LONG_MESSAGE, 1 << 14),
        "api.example.com",
    ),
    "no session, no more extensions": (
        record(message(sni(NAME), session=b"")),
        "api.example.com",
    ),
}
NO_NAME = TransparentResult.NO_SERVER_NAME
NOT_TLS = TransparentResult.NOT_TLS
REFUSED = {
    "no extension": (hello(b""), NO_NAME),
    "a hello of TLS 1.0 without extensions": (hello(None), NO_NAME),
    "encrypted SNI alone": (hello(extension(0xFFCE, b"e" * 300)), NO_NAME),
    "an IPv4 address": (hello(sni(b"192.0.2.1")), NO_NAME),
    "an IPv4 address as a number": (hello(sni(b"3221225985")), NO_NAME),
    "an IPv4 address in hex": (hello(sni(b"0xc0.0.2.1")), NO_NAME),
    "an IPv6 address": (hello(sni(b"2001:db8::1")), NO_NAME),
    "an IPv6 address in brackets": (hello(sni(b"[2001:db8::1]")), NO_NAME),
    "the unspecified address": (hello(sni(b"::")), NO_NAME),
    "a name in Unicode": (hello(sni("münchen.example".encode())), NO_NAME),
    "bytes that are no UTF-8": (hello(sni(b"\xff\xfe.example")), NO_NAME),
    "an empty name": (hello(sni(b"")), NO_NAME),
    "a dot": (hello(sni(b".")), NO_NAME),
    "two dots at the end": (hello(sni(b"api.example.com..")), NO_NAME),
    "a dot ahead": (hello(sni(b".example.com")), NO_NAME),
    "a wildcard": (hello(sni(b"*.example.com")), NO_NAME),
    "a port": (hello(sni(b"api.example.com:22")), NO_NAME),
    "a user": (hello(sni(b"user@api.example.com")), NO_NAME),
    "a path": (hello(sni(b"api.example.com/x")), NO_NAME),
    "a space": (hello(sni(b"api.example.com HTTP/1.1")), NO_NAME),
    "NUL": (hello(sni(b"api.example.com\0.evil.example")), NO_NAME),
    "a request of its own": (
        hello(sni(b"a.example:443 HTTP/1.1\r\nX: y\r\n\r\nGET / HTTP/1.1")),
        NO_NAME,
    ),
    "a line of the PROXY protocol": (
        hello(sni(b"a\r\nPROXY TCP4 192.0.2.9 192.0.2.1 1 443\r\n")),
        NO_NAME,
    ),
    "a percent sign": (hello(sni(b"api%2eexample.com")), NO_NAME),
    "a label that is too long": (hello(sni(b"a" * 64 + b".example")), NO_NAME),
    "a name that is too long": (hello(sni(LONGEST.encode() + b"e")), NO_NAME),
    "a name of 60 KB": (hello(sni(b"a" * 16_000)), NO_NAME),
    "the extension twice": (hello(sni(NAME) + sni(b"other.example")), NO_NAME),
    "the same extension twice": (hello(sni(NAME) + sni(NAME)), NO_NAME),
    "two names": (hello(names((0, NAME), (0, b"other.example"))), NO_NAME),
    "a name of another kind": (hello(names((1, NAME))), NO_NAME),
    "another kind behind": (hello(names((0, NAME), (1, b"x"))), NO_NAME),
    "bytes behind the list": (
        hello(extension(SERVER_NAME, vector(2, b"\0" + vector(2, NAME)) + b"x")),
        NO_NAME,
    ),
    "an empty list": (hello(extension(SERVER_NAME, vector(2, b""))), NOT_TLS),
    "an empty extension, as of a server": (hello(extension(SERVER_NAME, b"")), NOT_TLS),
    "a name that is cut": (
        hello(extension(SERVER_NAME, vector(2, b"\0\0\x20abc"))),
        NOT_TLS,
    ),
    "an extension that is cut": (hello(sni(NAME)[:-3]), NOT_TLS),
    "bytes behind the extensions": (
        record(b"\1" + vector(3, PLAIN[9:] + b"x")),
        NOT_TLS,
    ),
    "a hello of one byte": (record(b"\1" + vector(3, b"\3")), NOT_TLS),
    "an empty hello": (record(b"\1" + vector(3, b"")), NOT_TLS),
    "another message": (record(b"\2" + message(sni(NAME))[1:]), NOT_TLS),
    "an alert first": (record(b"\1\0", kind=21) + PLAIN, NOT_TLS),
    "an alert between two records": (
        in_records(message(sni(NAME)), 50)[:55] + record(b"\1\0", kind=21) + PLAIN,
        NOT_TLS,
    ),
    "data of an application first": (record(b"x", kind=23) + PLAIN, NOT_TLS),
    "an empty record": (record(b"") + PLAIN, NOT_TLS),
    "a record that is too long": (record(b"\1" * 20_000), NOT_TLS),
    "a version of no TLS": (record(message(sni(NAME)), version=b"\4\0"), NOT_TLS),
    "a hello of SSL 2.0": (b"\x80\x2e\1\3\1\0\x15\0\0\0\x10" + b"c" * 37, NOT_TLS),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", NOT_TLS),
    "CONNECT": (b"CONNECT api.example.com:443 HTTP/1.1\r\n\r\n", NOT_TLS),
    "the PROXY protocol": (
        b"PROXY TCP4 192.0.2.9 192.0.2.1 1 443\r\n" + PLAIN,
        NOT_TLS,
    ),
    "the PROXY protocol, version 2": (b"\r\n\r\n\0\r\nQUIT\n" + PLAIN, NOT_TLS),
    "SSH": (b"SSH-2.0-OpenSSH_9.9\r\n", NOT_TLS),
    "NULs": (b"\0" * 100, NOT_TLS),
    "a record for each byte": (in_records(message(sni(NAME)), 1), NOT_TLS),
    "a hello without an end": (record(b"\1\xff\xff\xff" + b"x" * 16_000) * 5, NOT_TLS),
    "a record without an end": (
        b"\x16\3\1\x40\0\1\0\xff\xff" + (b"x" * 16375 + record(b"y" * 16384) * 3),
        NOT_TLS,
    ),
}


@pytest.mark.parametrize(("data", "name"), FOUND.values(), ids=FOUND)
def test_the_name_of_a_hello_is_found(data: bytes, name: str) -> None:
    assert server_name(data) == name


@pytest.mark.parametrize(("data", "result"), REFUSED.values(), ids=REFUSED)
def test_what_names_no_server_is_refused(
    data: bytes, result: TransparentResult
) -> None:
    with pytest.raises(HelloRefused) as refused:
        server_name(data)
    assert refused.value.result is result


def outcome(data: bytes) -> str | int:
    """The name, or how many bytes are needed."""
    try:
        return server_name(data)
    except HelloIncomplete as incomplete:
        return incomplete.needed


@pytest.mark.parametrize(("data", "name"), FOUND.values(), ids=FOUND)
def test_a_hello_can_come_in_any_pieces(data: bytes, name: str) -> None:
    found = [outcome(data[:end]) for end in range(min(len(data), 3000))] + [name]
    whole = found.index(name)
    assert {*found[whole:]} == {name}
    assert all(
        isinstance(needed, int) and end < needed <= len(data)
        for end, needed in enumerate(found[:whole])
    )


def test_a_hello_is_read_again_for_each_record_and_not_for_each_byte() -> None:
    data = in_records(LONG_MESSAGE, 1 << 14)
    needed = [outcome(b"")]
    while isinstance(needed[-1], int):
        needed.append(outcome(data[: needed[-1]]))
    record_size = 5 + (1 << 14)
    assert needed[:-2] == [
        5,
        *(number * record_size + more for number in (1, 2, 3) for more in (0, 5)),
    ]
    assert needed[-2:] == [len(data), "api.example.com"]


@pytest.mark.parametrize("row", ["a plain hello", "OpenSSL", "early data behind"])
def test_openssl_finds_the_same_name(row: str) -> None:
    data, _ = FOUND[row]
    assert read_by_openssl(data) == server_name(data)


def test_a_hello_of_64_kilobytes_is_read_and_a_longer_one_is_not() -> None:
    longest = padded(sni(NAME), HELLO_BYTES)
    assert len(longest) == HELLO_BYTES
    assert server_name(longest) == "api.example.com"
    with pytest.raises(HelloRefused):
        server_name(padded(sni(NAME), HELLO_BYTES + 1)[:HELLO_BYTES])
