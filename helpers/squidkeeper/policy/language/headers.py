"""The request headers that a rule removes and a credential injects: which names, and
how each is spelled.
"""

import re
from collections.abc import Iterator
from itertools import product

from squidkeeper.base.errors import PatternError

# The headers that squid.conf itself removes and adds, spelled as they are sent. Others
# need lines of the policy's own.
INJECTABLE_HEADERS = (
    "Authorization",
    "X-Api-Key",
    "Api-Key",
    "X-Goog-Api-Key",
    "Private-Token",
    "X-Auth-Token",
)

# A header that makes servers answer for another method, path or host than the request
# names. Each is read by some framework, front end or server; squid/README.md says
# which.
METHOD_HEADERS = (
    *(
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "Method-Override",
    ),
    *("HTTP-Method-Override", "X-Original-Method", "X-Forwarded-Method"),
)
PATH_HEADERS = (
    *(
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Override-URL",
        "X-Forwarded-URL",
        "X-Real-URL",
        "X-Proxy-URL",
    ),
    *(
        "X-Original-URI",
        "X-Rewrite-URI",
        "X-Forwarded-URI",
        "X-Request-URI",
        "Request-URI",
    ),
    *("X-Original-Path", "X-Forwarded-Path", "X-Envoy-Original-Path"),
    *("X-Forwarded-Prefix", "X-Script-Name"),
    "Destination",
)
HOST_HEADERS = (
    *(
        "X-Forwarded-Host",
        "X-Original-Host",
        "X-HTTP-Host-Override",
        "X-Forwarded-Server",
        "X-Host",
        "X-Real-Host",
    ),
    *("X-Forward-Host", "X-Backend-Host", "X-Proxy-Host", "X-Envoy-Original-Host"),
    "Forwarded",
)

_DASHES_AT_MOST = 5  # each doubles the lines in Squid's configuration
_LENGTH_AT_MOST = 64
# goes into Squid's configuration as it is
_NAME = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
# Without these a request ends elsewhere, goes elsewhere or is no longer the one that
# was decided. Lower case.
_NEEDED = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "expect", "via"),
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"),
        *("proxy-authorization", "proxy-authenticate", "proxy-authentication-info"),
    }
)
# What an injected header must not be, and why. A name that ends with `-` stands for all
# that begin with it.
_NEVER_INJECTED = {
    **dict.fromkeys(
        _NEEDED, "it frames or routes the request, or concerns one connection alone"
    ),
    **dict.fromkeys(
        ("proxy-", "sec-websocket-", "http2-settings", "max-forwards"),
        "it concerns one connection alone",
    ),
    **dict.fromkeys(
        (
            *METHOD_HEADERS,
            *PATH_HEADERS,
            *HOST_HEADERS,
            "x-forwarded-",
            "x-real-ip",
            "content-",
            "range",
            "if-",
        ),
        "it changes which request a server answers, or to whom",
    ),
    **dict.fromkeys(
        ("x-squid-", "x-cache", "surrogate-", "cache-control", "pragma", "date"),
        "it is Squid's own",
    ),
    **dict.fromkeys(
        ("cookie", "cookie2", "set-cookie"),
        "a server renews it by Set-Cookie, which would show it to the client",
    ),
}
# Stands for all headers that no helper reads (`headers: known`). As Squid's
# configuration names them.
UNKNOWN_HEADERS = "All"
# request_header_access takes them for groups of headers
_WORDS_OF_SQUID = frozenset({"all", "other"})


def spellings(header: str) -> Iterator[str]:
    """Yield a header with every mixture of `-` and `_`: CGI, WSGI, Rack and PHP read
    them as the same.
    """
    first, *rest = header.split("-")
    for dashes in product("-_", repeat=len(rest)):
        yield first + "".join(
            dash + part for dash, part in zip(dashes, rest, strict=True)
        )


def shipped_header(text: str) -> str | None:
    """Find a header that squid.conf itself injects, in any case; give it as
    it is sent.
    """
    return next(
        (header for header in INJECTABLE_HEADERS if header.lower() == text.lower()),
        None,
    )


def parse_stripped_header(text: str) -> str:
    """Read the name of a header to remove, `_` as `-`; `PatternError` for one that
    cannot or must not be removed.
    """
    name = text.replace("_", "-")
    if len(text) > _LENGTH_AT_MOST or not _NAME.fullmatch(text):
        raise PatternError(
            f"header {text[:_LENGTH_AT_MOST]!r} cannot be removed, expected up to {_LENGTH_AT_MOST} letters, digits and"
            " single dashes, such as X-Debug"
        )
    if name.lower() in _NEEDED:
        raise PatternError(
            f"header {text!r} must stay: a request cannot be forwarded as it was decided without it"
        )
    if name.lower() in _WORDS_OF_SQUID:
        raise PatternError(
            f"header {text!r} is a word of Squid's for several headers, expected the name of one"
        )
    if name.count("-") > _DASHES_AT_MOST:
        raise PatternError(
            f"header {text!r} has {name.count('-')} dashes, expected {_DASHES_AT_MOST} at most: Squid needs a line for"
            " each mixture of - and _"
        )
    return name


def parse_injected_header(text: str) -> str:
    """Read the name of a header to inject, spelled as it is sent; `PatternError` for
    one that must not be injected.
    """
    if shipped := shipped_header(text):
        return shipped
    if (
        len(text) > _LENGTH_AT_MOST
        or not _NAME.fullmatch(text)
        or "_" in text
        or text.count("-") > _DASHES_AT_MOST
    ):
        raise PatternError(
            f"this header cannot be injected, expected up to {_LENGTH_AT_MOST} letters, digits and single dashes, of"
            f" which {_DASHES_AT_MOST} at most, such as X-Acme-Key"
        )
    name = text.lower()
    if name in _WORDS_OF_SQUID:
        raise PatternError(
            f"header {text!r} is a word of Squid's for several headers, expected the name of one"
        )
    for forbidden, reason in _NEVER_INJECTED.items():
        forbidden = forbidden.lower()
        if name == forbidden:
            raise PatternError(f"header {text!r} is never injected: {reason}")
        if forbidden.endswith("-") and name.startswith(
            forbidden
        ):  # the rest may be a value
            raise PatternError(
                f"a header that begins with {forbidden!r} is never injected: {reason}"
            )
    return text
