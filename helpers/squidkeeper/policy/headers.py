"""The request headers that a rule removes (floor 2): which names are accepted, and how each can be spelled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from squidkeeper.errors import PatternError

_DASHES_AT_MOST = 5  # each doubles the lines in Squid's configuration
_LENGTH_AT_MOST = 64
_NAME = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")  # goes into Squid's configuration as it is
# Without these a request ends elsewhere, goes elsewhere or is no longer the one that was decided. Lower case.
_NEEDED = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "expect", "via"),
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"),
        *("proxy-authorization", "proxy-authenticate", "proxy-authentication-info"),
    }
)
_WORDS_OF_SQUID = frozenset({"all", "other"})  # request_header_access takes them for groups of headers


def spellings(header: str) -> Iterator[str]:
    """Give a header with every mixture of `-` and `_`: CGI, WSGI, Rack and PHP read them as the same."""
    first, *rest = header.split("-")
    for dashes in product("-_", repeat=len(rest)):
        yield first + "".join(dash + part for dash, part in zip(dashes, rest, strict=True))


def parse_stripped_header(text: str) -> str:
    """Read the name of a header to remove, `_` as `-`; `PatternError` for one that cannot or must not be removed."""
    name = text.replace("_", "-")
    if len(text) > _LENGTH_AT_MOST or not _NAME.fullmatch(text):
        raise PatternError(
            f"header {text[:_LENGTH_AT_MOST]!r} cannot be removed, expected up to {_LENGTH_AT_MOST} letters, digits and"
            " single dashes, such as X-Debug"
        )
    if name.lower() in _NEEDED:
        raise PatternError(f"header {text!r} must stay: a request cannot be forwarded as it was decided without it")
    if name.lower() in _WORDS_OF_SQUID:
        raise PatternError(f"header {text!r} is a word of Squid's for several headers, expected the name of one")
    if name.count("-") > _DASHES_AT_MOST:
        raise PatternError(
            f"header {text!r} has {name.count('-')} dashes, expected {_DASHES_AT_MOST} at most: Squid needs a line for"
            " each mixture of - and _"
        )
    return name
