"""The URL of a record: its host, and a form that is safe to show. Hostile code may have chosen the URL."""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.url import DEFAULT_PORTS, Host, parse_authority, unrecorded_url
from squidkeeper.record.log.record import NONE

URL_LIMIT: Final = 1000  # characters of a URL that are stored and shown

_CACHED: Final = 65_536
_NO_HOST = Host(NONE)
_LONGEST: Final = 300  # characters of an authority: a name of 253 and a port
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
_USERINFO = re.compile(r"^([a-z][a-z0-9+.-]*://)?[^/?#]*@", re.IGNORECASE)


def host_of(url: str) -> Host:
    """Return the host of a record's URL, or of a CONNECT's `host:port`; `-` if it has none."""
    authority = authority_of(url)
    return _host(authority) if len(authority) <= _LONGEST else _NO_HOST


def authority_of(url: str) -> str:
    """Return `host` or `host:port` of a record's URL, as Squid read it; the whole text if it is no URL."""
    _, slashes, rest = url.partition("://")
    authority = rest.partition("/")[0].partition("?")[0] if slashes else url
    return unrecorded_url(authority) if "%" in authority else authority


def endpoint_of(url: str) -> str:
    """Return `host:port` of a record's URL or CONNECT, without a user; the port is its scheme's where it names none."""
    scheme, slashes, _ = url.partition("://")
    authority = authority_of(url).rpartition("@")[2]
    has_port = authority.rpartition(":")[2].isdecimal()
    return authority if has_port or not slashes else f"{authority}:{DEFAULT_PORTS.get(scheme, DEFAULT_PORTS['https'])}"


def redacted_url(url: str) -> str:
    """Remove query, fragment and password from a URL; encode everything but printable ASCII."""
    bare = url.partition("?")[0].partition("#")[0]
    if "@" in bare:
        bare = _USERINFO.sub(r"\1***@", bare)
    if bare.isascii() and bare.isprintable() and " " not in bare:
        return bare
    return quote(bare, safe=_PRINTABLE, errors="surrogatepass")


def truncate(value: str, length: int = URL_LIMIT) -> tuple[str, int]:
    """Truncate a text; return it and the number of characters that were removed."""
    return value[:length], max(0, len(value) - length)


@lru_cache(_CACHED)
def _host(authority: str) -> Host:
    try:
        return parse_authority(authority.rpartition("@")[2])[0]
    except InvalidUrl:
        return _NO_HOST
