"""The readings of a URL: never anything but `InvalidUrl`, bounded, and none that a
server could have is missing.

An input is the request target as Squid writes it, in UTF-8 or not, and the path of
another one. The oracle is a handful of servers, each as it is known to take a path
apart: whatever one of them would serve has to be among the readings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch
from urllib.parse import unquote_to_bytes

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy import url as urls
from squidkeeper.policy.url import (
    Host,
    Reading,
    Url,
    bracketed,
    parse_authority,
    parse_host,
    parse_url,
    readings,
    sent,
)

from .target import Target

READINGS_AT_MOST, LONGEST_NORMALIZED = 24, 8191
NEVER = re.compile(r"(?!)")


def check(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    check_parts(text)
    check_url(text)
    check_url(f"https://o.example/{text}")


def check_url(text: str) -> None:
    url = parsed(text)
    with without_shortcuts():
        assert parsed(text) == url, "the short way for plain URLs leads elsewhere"
    if url is not None:
        check_spelling(url)
        check_readings(url.path)


def check_parts(text: str) -> None:
    for parse in (parse_authority, urls.parse_port, urls.parse_address):
        with suppress(InvalidUrl):
            parse(text)
    for part in {text, *re.split("[/?#@:]", text)}:
        host = host_of(part)
        with without_shortcuts():
            assert host_of(part) == host, (
                "the short way for plain names leads elsewhere"
            )


def host_of(text: str) -> Host | None:
    try:
        return parse_host(text)
    except InvalidUrl:
        return None


def parsed(text: str) -> Url | None:
    try:
        return parse_url(text)
    except InvalidUrl:
        return None


@contextmanager
def without_shortcuts() -> Iterator[None]:
    with patch.multiple(urls, _PLAIN_URL=NEVER, _PLAIN_NAME=NEVER, _ONE_READING=NEVER):
        parse_authority.cache_clear()
        yield
    parse_authority.cache_clear()


def check_spelling(url: Url) -> None:
    """A URL is written in what a URL may hold, and read again it is itself."""
    text = str(url)
    assert all("!" <= character <= "~" for character in text), (
        "a character that a URL may not hold bare"
    )
    assert parse_url(text) == url
    assert parse_host(bracketed(url.host)) == url.host
    assert url.path.startswith("/")
    assert sent(url.path) == url.path
    assert "#" not in text


# --- the readings ---------------------------------------------------------------------


def check_readings(path: str) -> None:
    try:
        found = readings(path)
    except InvalidUrl:
        return
    with without_shortcuts():
        assert readings(path) == found, "the short way for plain paths leads elsewhere"
    paths = [reading.path for reading in found]
    assert found[0] == (Reading.SENT, path)
    assert len(set(paths)) == len(paths) <= READINGS_AT_MOST
    for other in paths:
        assert other.startswith("/")
        assert len(other) <= max(len(path) + len("/"), LONGEST_NORMALIZED)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", other)
        assert not set(readings_of(other)) - set(paths), (
            f"what a reading can be read as is missing: {other!r}"
        )
    for name, serve in SERVERS.items():
        assert serve(path) in paths, f"{name} would serve {serve(path)!r}"


def readings_of(path: str) -> list[str]:
    """Read a reading once more, as a server behind a proxy does that passes on what it
    made of the path.
    """
    try:
        return [reading.path for reading in readings(path)]
    except InvalidUrl:  # it can hold what no path that is sent may: a stray '%'
        return []


# --- the servers ----------------------------------------------------------------------


def decode(path: str) -> str:
    return unquote_to_bytes(path).decode()


def resolve(path: str) -> str:
    """Remove dot segments, as RFC 3986, 5.2.4 writes it down: on the text, not on a
    list of segments.
    """
    out = ""
    while path:
        if path.startswith("/../") or path == "/..":
            path, out = "/" + path[4:], out.rpartition("/")[0]
        elif path.startswith("/./") or path == "/.":
            path = "/" + path[3:]
        else:
            end = path.find("/", 1)
            segment = path if end < 0 else path[:end]
            path, out = path[len(segment) :], out + segment
    return out


def merge(path: str) -> str:
    while "//" in path:
        path = path.replace("//", "/")
    return path


def slashes(path: str) -> str:
    return path.replace("\\", "/")


def without_parameters(path: str) -> str:
    return "/".join(segment.partition(";")[0] for segment in path.split("/"))


def windows_names(path: str) -> str:
    """Name the files as Windows does: no stream of a type, no dots and spaces at the
    end of a name.
    """
    return "/".join(map(windows_name, path.split("/")))


def windows_name(segment: str) -> str:
    name, *stream = segment.split(":")
    if len(stream) == 2 and stream[1].startswith("$"):
        segment = name
    return segment.rstrip(". ") or segment.rstrip(" ")


def normalized(path: str) -> str:
    return unicodedata.normalize("NFKC", path)


def without_invisible(path: str) -> str:
    """Name the files as HFS+ does, of what it ignores the usual ones."""
    return path.translate(
        dict.fromkeys((0xAD, *range(0x200B, 0x2010), *range(0x2060, 0x2064), 0xFEFF))
    )


def chain(*steps: Callable[[str], str]) -> Callable[[str], str]:
    def serve(path: str) -> str:
        for step in steps:
            path = step(path)
        return path

    return serve


SERVERS: dict[str, Callable[[str], str]] = {
    "a file server that decodes nothing": chain(resolve),
    "nginx": chain(decode, merge, resolve),
    "nginx with merge_slashes off": chain(decode, resolve, merge),
    "a WSGI program, which is given the path decoded": chain(decode),
    "nginx before a WSGI program": chain(decode, merge, resolve, decode),
    "a servlet container": chain(without_parameters, decode, merge, resolve),
    "a servlet container that decodes first": chain(
        decode, without_parameters, resolve, merge
    ),
    "a servlet container on Windows": chain(
        without_parameters, decode, slashes, merge, resolve
    ),
    "IIS": chain(decode, slashes, merge, resolve),
    "a proxy that resolves, before nginx": chain(resolve, decode, merge, resolve),
    "nginx before a servlet container": chain(
        decode, merge, resolve, without_parameters, resolve
    ),
    "IIS, with the names of files": chain(
        decode, slashes, merge, resolve, windows_names
    ),
    "IIS, which finds dots in a name only then": chain(
        decode, slashes, windows_names, merge, resolve
    ),
    "nginx on Windows": chain(decode, merge, resolve, windows_names),
    "a proxy that decodes nothing, before Windows": chain(resolve, windows_names),
    "nginx on macOS": chain(decode, merge, resolve, without_invisible),
    "nginx before a program that normalizes": chain(decode, merge, resolve, normalized),
    "a program that normalizes and decodes once more": chain(
        decode, normalized, decode, resolve
    ),
    "two that decode, before IIS": chain(
        decode, decode, decode, slashes, merge, resolve
    ),
}


# --- where to start -------------------------------------------------------------------

_PARTS = (
    "/",
    "//",
    "/../",
    "/./",
    "a",
    "%2f",
    "%5c",
    "\\",
    ";x",
    "..;/",
    "%2e%2e/",
    "%252f",
    "%25",
    "é",
    "%C3%A9",
    "~",
    ".",
    "%20",
    "::$DATA",
    "%EF%BC%8F",
    "．",
    "％2e",
    "%E2%80%8B",
)


def seeds() -> Iterable[bytes]:
    for text in (
        "https://Example.COM",
        "HTTP://example.com.:80/a%7eb?x=%7e",
        "https://example.com:8443/é?é",
        "http://[2001:db8::1]:8443/a?b=c&d;e",
        "http://2130706433/%",
        "https://0x7f.1/",
        "https://user@evil.example\\@example.com/#top",
        "https://bücher.example/\x01?\x02",
        "https://npm.example/@scope%2f..%2f@other%2fname",
        "x%2f..%2fadmin/b%5c..%5c..%5c..%5cc",
        "x%2f..%2fadmin/b/..;/..;/..;/c",
        "admin;x%2f..%2fb",
        "admin%2fb/../../c",
        "admin./b%20/c::$DATA",
        "x/%EF%BC%8E%EF%BC%8E/ad%E2%80%8Bmin",
        "/" + "\ufdfa" * 1000,
        "https://example.com/%25252525252e",
        "https://example.com/\udcff",
        "::",
        "a.0",
        "a..b",
        "0x",
        ".".join(["a" * 50] * 5),
        "192.0.2.7",
        "fe80::1%eth0",
    ):
        yield text.encode("utf-8", "surrogateescape")
    for first in _PARTS:
        yield "".join(first + other for other in _PARTS[:6]).encode()
    yield b"/%2e%2e" * 1000


_OTHER_WORDS = (b"https://", b"http://a", b"[::1]", b":443", b"?", b"#", b"@", b"%3b")
WORDS = (*(part.encode() for part in _PARTS), *_OTHER_WORDS)
TARGET = Target(check, seeds, WORDS, longest_bytes=8192)
