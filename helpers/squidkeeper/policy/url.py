"""One authority and every reading of a URL.

Squid, the origin and the policy must mean the same host and the same path. This module
is the only place that takes a URL, a host or an address apart; whatever it cannot take
apart with certainty raises `InvalidUrl`, and is denied.
"""

import re
import socket
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from ipaddress import (
    IPV4LENGTH,
    IPV6LENGTH,
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from squidkeeper.base.errors import InvalidUrl

OWN_HOST = (
    "squidkeeper.internal"  # the gateway itself, which answers for tickets under it
)
DEFAULT_PORTS = {"http": 80, "https": 443}

# --- hosts and addresses --------------------------------------------------------------

_ASCII_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
# in its one spelling, and no IPv4 address
_PLAIN_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z][a-z0-9_-]{0,62}")
# the label that makes a host an IPv4 address (WHATWG URL, 3.5)
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_NAME = 253
_UNSPECIFIED = "::"  # Squid writes this one address without its brackets

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the IPv4 address in the last 32 bits
_SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056: in the 32 bits after the prefix


def embeddings(network: IPv4Network) -> tuple[IPv6Network, ...]:
    """Return the IPv6 networks whose addresses lead to those of an IPv4 network: in
    NAT64 and in 6to4.

    Not in them: IPv4-mapped addresses, which `canonical_address` and Squid read as
    IPv4, and what is private whole.
    """
    return tuple(_embedded(network, prefix) for prefix in (_NAT64, _SIX_TO_FOUR))


def _embedded(network: IPv4Network, prefix: IPv6Network) -> IPv6Network:
    bits_below = IPV6LENGTH - IPV4LENGTH - prefix.prefixlen
    first = int(prefix.network_address) | int(network.network_address) << bits_below
    return IPv6Network((first, prefix.prefixlen + network.prefixlen))


_PRIVATE_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        *(
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
        ),
        *(
            "192.0.0.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
        "168.63.129.16/32",  # the host of an Azure VM
    )
)
_PRIVATE_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
        *(
            "::/96",
            "::ffff:0:0:0/96",
        ),  # IPv4-compatible (with :: and ::1), and SIIT (RFC 2765)
        "64:ff9b:1::/48",  # NAT64 of a local network (RFC 8215)
        # Teredo (RFC 4380): its embedded addresses are those of a relay and, in
        # complement, of a client
        "2001::/32",
    )
)
PRIVATE_NETWORKS: tuple[IPv4Network | IPv6Network, ...] = (
    *_PRIVATE_IPV4,
    *_PRIVATE_IPV6,
    *(embedding for network in _PRIVATE_IPV4 for embedding in embeddings(network)),
)
# Where a cloud machine gets its credentials: link-local, and Azure's, Alibaba's,
# Oracle's, AWS's and Google's own.
_CREDENTIALS_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "169.254.0.0/16",
        "168.63.129.16/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
    )
)
_CREDENTIALS_NETWORKS: tuple[IPv4Network | IPv6Network, ...] = (
    *_CREDENTIALS_IPV4,
    *(IPv6Network(text) for text in ("fe80::/10", "fd00:ec2::/32", "fd20:ce::/32")),
    *(embedding for network in _CREDENTIALS_IPV4 for embedding in embeddings(network)),
)
_PRIVATE_OF_VERSION = {
    version: tuple(
        network for network in PRIVATE_NETWORKS if network.version == version
    )
    for version in (4, 6)
}

Address = IPv4Address | IPv6Address


class Host(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """A host in its one spelling: a lower-case ASCII name without its trailing dot, or
    an address.
    """

    text: str
    address: Address | None = None

    @property
    def private(self) -> bool:
        """Whether this is an address that a policy has to open by `private: true`."""
        return self.address is not None and is_private(self.address)


def parse_host(text: str) -> Host:
    """Parse a host as it stands in a URL, a CONNECT or an SNI.

    Names: any case, one trailing dot, Unicode or punycode. Addresses: every form that
    getaddrinfo(3) takes for IPv4 (decimal, hex, octal, short), IPv6 in brackets; an
    IPv6 address that maps an IPv4 one is that IPv4 address.
    """
    if len(text) <= _MAX_NAME and _PLAIN_NAME.fullmatch(text):
        return Host(text)  # only a shorter way to what stands below
    if text.startswith("[") or text == _UNSPECIFIED:
        return _bracketed(text if text.startswith("[") else f"[{text}]")
    name = _ascii_name(text)
    if _NUMBER_LABEL.fullmatch(name.rpartition(".")[2]):
        return address_host(_ipv4(name))
    return Host(name)


def parse_address(text: str) -> Address:
    """Parse a client's address as Squid prints it (`%>a`): dotted IPv4 or bare IPv6."""
    try:
        return canonical_address(
            IPv6Address(text) if ":" in text else IPv4Address(text)
        )
    except AddressValueError as error:
        raise InvalidUrl(f"{text!r} is not an IP address") from error


def address_host(address: Address) -> Host:
    """Make the host that an address is."""
    return Host(str(address), address)


def canonical_address(address: Address) -> Address:
    """Return an IPv4-mapped IPv6 address as the IPv4 address it is; any other as it
    stands.
    """
    return getattr(address, "ipv4_mapped", None) or address


def is_private(address: Address) -> bool:
    """Whether an address, or the IPv4 address that it embeds, is not of the public
    internet.
    """
    canonical = canonical_address(address)
    return any(
        canonical in network for network in _PRIVATE_OF_VERSION[canonical.version]
    )


def gives_credentials(address: Address) -> bool:
    """Whether an address is link-local, or another at which a cloud machine gets its
    credentials.
    """
    canonical = canonical_address(address)
    # False for a network of the other version
    return any(canonical in network for network in _CREDENTIALS_NETWORKS)


def _bracketed(text: str) -> Host:
    try:
        address = IPv6Address(text.removeprefix("[").removesuffix("]"))
    except AddressValueError as error:
        raise InvalidUrl(f"{text!r} is not an IPv6 address in brackets") from error
    if address.scope_id is not None or not text.endswith("]"):
        raise InvalidUrl(f"{text!r} is not an IPv6 address in brackets without a zone")
    return address_host(canonical_address(address))


def _ipv4(name: str) -> IPv4Address:
    try:
        return IPv4Address(socket.inet_aton(name))
    except OSError as error:
        raise InvalidUrl(
            f"host {name!r} ends in a number but is not an IPv4 address"
        ) from error


def _ascii_name(text: str) -> str:
    name = text if text.isascii() or len(text) > _MAX_NAME else _punycode(text)
    name = name.lower().removesuffix(".")
    if len(name) > _MAX_NAME or not _ASCII_NAME.fullmatch(name):
        raise InvalidUrl(
            f"host {text!r} is not a host name of labels of 1 to 63 letters, digits, '-' and '_'"
        )
    return name


def _punycode(text: str) -> str:
    import idna  # late: most helpers never see a Unicode host

    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except UnicodeError as error:  # idna.IDNAError is one
        raise InvalidUrl(
            f"host {text!r} is not an internationalised name: {error}"
        ) from error


# --- URLs -----------------------------------------------------------------------------

_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL
)
# Has one reading, whoever reads: no dot begins or ends a segment, and no `$` can name a
# stream.
_PLAIN_PATH = r"(?:/[A-Za-z0-9_~!&'()*+,=:@-][A-Za-z0-9._~!&'()*+,=:@-]*+(?<!\.))*+/?"
_PLAIN_URL = re.compile(
    rf"(https?)://([A-Za-z0-9.:\[\]-]+)(?=/)({_PLAIN_PATH})(?:\?([!$-;=?-Z_a-z~]*))?"
)
_AUTHORITY = re.compile(r"(\[[^\]]*\]|::|[^:]*)(?::([0-9]*))?")
_MAX_PORT = 65535


class Url(NamedTuple):  # cheaper to make than a dataclass, and made for each line
    """An absolute http or https URL: the path in its `sent` reading, the query without
    its `?` or None.
    """

    scheme: str
    host: Host
    port: int
    path: str
    query: str | None = None

    def __str__(self) -> str:
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        query = "" if self.query is None else f"?{self.query}"
        return f"{self.scheme}://{bracketed(self.host)}{port}{self.path}{query}"


def parse_url(text: str) -> Url:
    """Parse a request target in absolute form; userinfo, a fragment and other schemes
    are `InvalidUrl`.
    """
    plain = _PLAIN_URL.fullmatch(text)
    if (
        plain
    ):  # nothing in it has a second meaning; only a shorter way to what stands below
        scheme, authority, path, query = plain.groups()
        return Url(*_parse_origin(scheme, authority), path, query)
    match = _URL.fullmatch(text)
    if not match:
        raise InvalidUrl("the request target is not an absolute URL")
    scheme, authority, path, query, fragment = match.groups()
    check_scheme(scheme.lower())
    if fragment is not None:
        raise InvalidUrl(
            "the request target has a fragment ('#'), which a client must not send"
        )
    if "@" in authority:
        raise InvalidUrl("the URL carries userinfo ('user@host')")
    return Url(
        *_parse_origin(scheme, authority), sent(path or "/"), _ascii_query(query)
    )


def origin_of(text: str) -> tuple[str, Host, int]:
    """Read scheme, host and port of a URL; its path, query and fragment may be invalid.

    Raises `InvalidUrl`.
    """
    match = _URL.fullmatch(text)
    if not match or "@" in match[2]:
        raise InvalidUrl(
            "the request target is not an absolute URL without userinfo ('user@host')"
        )
    return _parse_origin(match[1], match[2])


def _parse_origin(scheme: str, authority: str) -> tuple[str, Host, int]:
    scheme = check_scheme(scheme.lower())
    host, port = parse_authority(authority)
    return scheme, host, DEFAULT_PORTS[scheme] if port is None else port


def check_scheme(scheme: str) -> str:
    """Return the scheme back if it is http or https."""
    if scheme not in DEFAULT_PORTS:
        raise InvalidUrl(f"scheme {scheme!r} is neither http nor https")
    return scheme


@lru_cache(maxsize=1024)  # a new URL of a known host takes 6.7 us instead of 7.3
def parse_authority(text: str) -> tuple[Host, int | None]:
    """Parse `host` or `host:port`; a port left out is None."""
    match = _AUTHORITY.fullmatch(text)
    if not match:
        raise InvalidUrl(f"authority {text!r} is not host or host:port")
    host, port = match.groups()
    return parse_host(host), parse_port(port) if port else None


def format_authority(host: Host, port: int) -> str:
    """Write `host:port`, an IPv6 address in brackets."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: Host) -> str:
    """Write a host as it stands in a URL."""
    return f"[{host.text}]" if isinstance(host.address, IPv6Address) else host.text


def parse_port(text: str) -> int:
    """Parse a port, 1 to 65535."""
    if not (
        text.isascii()
        and text.isdigit()
        and len(text) <= len("0065535")
        and 1 <= int(text) <= _MAX_PORT
    ):
        raise InvalidUrl(f"port {text!r} is not a number from 1 to {_MAX_PORT}")
    return int(text)


def _ascii_query(query: str | None) -> str | None:
    return (
        None if query is None else _quote_unsafe(query).translate(_WILDCARDS_AS_ESCAPES)
    )


# --- URLs in the access log -----------------------------------------------------------

RECORDED_URL_LENGTH = 4096  # characters of a URL that the access log holds
# bytes of a URL, each escape counted as one, from which on its logged form can be that
# long
LONG_URL = 1366
OWN_PAGES = "/squid-internal-"

UNUSUAL_CHARACTER = re.compile(r"[^]!$&-[^-~]")
_RECORDED = re.compile(rb"[^!$-&(-;=?-Z_a-z]")
_RECORDED_AS_SENT = re.compile(r"[!$-&(-;=?-Z_a-z]*")
_UP_TO_PATH = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?[^/?#]*")
_ESCAPES_IN_HOST = re.compile(r"(?:%(?:[89A-F][0-9A-F]|5B|5D))+")


def is_unusual(url: str) -> bool:
    """Whether squid.conf asks helpers about a URL because it looks unusual
    (`sk_is_unusual_url`), sent or logged.
    """
    decoded = (
        unquote_to_bytes(url) if "%" in url else url.encode("utf-8", "surrogateescape")
    )
    return (
        len(decoded) >= LONG_URL
        or UNUSUAL_CHARACTER.search(decoded.decode("latin-1")) is not None
    )


def recorded_url(url: str) -> str:
    """Write a URL as Squid logs it (`%>ru`): escape the characters that it calls
    unsafe, but no `%` (lib/rfc1738.c).
    """
    if _RECORDED_AS_SENT.fullmatch(url):
        return url
    escaped = _RECORDED.sub(
        lambda match: b"%%%02X" % match[0][0], url.encode("utf-8", "surrogateescape")
    )
    return escaped.decode("ascii")


def unrecorded_url(text: str) -> str:
    """Decode Squid's escapes in the host of a logged URL, or of a CONNECT's authority:
    Unicode, and brackets.

    Squid writes a host in lower case and its own escapes in upper case: `%c3%bc`, which
    is denied, is not one of them.
    """
    ahead = _UP_TO_PATH.match(text)
    if ahead is None or "%" not in ahead[0]:
        return text
    host = _ESCAPES_IN_HOST.sub(
        lambda match: unquote_to_bytes(match[0]).decode("utf-8", "surrogateescape"),
        ahead[0],
    )
    return host + text[ahead.end() :]


def is_own_page(url: str) -> bool:
    """Whether Squid denies a URL as one of its own pages (`sk_is_own_page`)."""
    match = _URL.fullmatch(url)
    path = unquote_to_bytes(match[3][: 3 * len(OWN_PAGES)]) if match else b""
    return path[: len(OWN_PAGES)].lower() == OWN_PAGES.encode()


# --- readings of a path ---------------------------------------------------------------


class Reading(StrEnum):
    """The ways in which a server may understand a path, from the literal to the
    lenient; then each as a file's name.
    """

    SENT = "sent"
    RESOLVED = "resolved"
    MERGED = "merged"
    STRIPPED = "stripped"
    DECODED = "decoded"
    PLAIN = "plain"
    TWICE = "twice"
    FILE = "file"
    STRIPPED_FILE = "stripped-file"
    DECODED_FILE = "decoded-file"
    PLAIN_FILE = "plain-file"
    TWICE_FILE = "twice-file"


class ReadPath(NamedTuple):
    """A path as one kind of server understands it."""

    reading: Reading
    path: str


_ONE_READING = re.compile(_PLAIN_PATH)
_SAFE = re.compile(r"[!#-;=?-Z_a-z~]*")
# What a URL must not hold bare (RFC 3986, 2). \x01 and \x02 stand for the wildcards of
# a path pattern.
_UNSAFE = re.compile(rb"[^\x01\x02!#-;=?-Z_a-z~]")
_WILDCARDS_AS_ESCAPES = {1: "%01", 2: "%02"}  # where they stand for themselves
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# The apostrophe is one of them: Squid forwards it unchanged and escapes it in the
# access log (lib/rfc1738.c).
_UNRESERVED = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~'"
)
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"/{2,}")
# A name in NTFS with a stream and its type: `x::$DATA` is x, `x:$I30:$INDEX_ALLOCATION`
# the folder x.
_STREAM = re.compile(r"(?<=/)([^/:]*):[^/:]*:\$[^/:]*(?=/|\Z)")
_END_OF_NAME = re.compile(r"(?<=[^/. ])[. ]+(?=/|\Z)")
_SPACES_AFTER_DOTS = re.compile(r"(?<=/)([. ]*\.|) +(?=/|\Z)")
# Default_Ignorable_Code_Point of Unicode: soft hyphen, zero width, variation selectors,
# …
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_DECODINGS_AT_MOST = 4
_LONGEST_NORMALIZED = (
    8_191  # as long as a URL can be for Squid; one character can become eighteen
)
# a path in honest use has two; the bound keeps hostile ones from costing more than
# their length
_READINGS_AT_MOST = 24


def sent(path: str) -> str:
    """Read a path as RFC 3986, 6.2.2 makes equal paths equal.

    Escapes of unreserved characters are decoded, the digits of the others upper-case,
    bytes that a URL must not hold bare are escaped. A control character and a `%` that
    escapes nothing are `InvalidUrl`.
    """
    if _ONE_READING.fullmatch(path):
        return path
    if not path.startswith("/"):
        raise InvalidUrl(f"the path {path[:40]!r} does not start with '/'")
    if _STRAY_PERCENT.search(path):
        raise InvalidUrl(
            "the path holds a '%' that is not followed by two hexadecimal digits"
        )
    _check_characters(path)
    return normalize_escapes(path)


class _Way(NamedTuple):
    """How a path was read: the reading as a path, the decodings for it, and whether as
    a file's name too.
    """

    reading: Reading
    decodings: int
    as_file: bool


def readings(path: str) -> tuple[ReadPath, ...]:
    """Return every reading of a `sent` path, `sent` itself first: all that `_STEPS`
    make of it in any order.

    The order is left open because servers disagree about it, leave steps out, and stand
    behind each other: `/a//../b` is `/a/b` to one that resolves dots first, `/b` to one
    that merges slashes first; and `..;` is a name, or leads up. `InvalidUrl` where
    decoding brings up a control character, bytes that are not UTF-8, or escapes under
    escapes under escapes, and where there are too many readings.
    """
    if _ONE_READING.fullmatch(path):
        return (ReadPath(Reading.SENT, path),)
    found = {path: _Way(Reading.SENT, 0, as_file=False)}
    waiting = [path]
    for text in waiting:  # it grows meanwhile
        before = found[text]
        for reading, step in _STEPS:
            made = step(text)
            if made not in found:
                found[made] = _made_by(reading, before, made)
                waiting.append(made)
        if len(found) > _READINGS_AT_MOST:
            raise InvalidUrl(
                f"the path can be read in more than {_READINGS_AT_MOST} ways"
            )
    return tuple(
        ReadPath(_FILE[way.reading] if way.as_file else way.reading, text)
        for text, way in found.items()
    )


def read(reading: Reading, path: str) -> str:
    """Read a path pattern the way `reading` reads paths, so that the two can be
    compared.
    """
    return _READ[reading](path)


def normalize_escapes(path: str) -> str:
    """Decode escapes of unreserved characters, write the others upper-case and escape
    what must not stand bare.
    """
    return _ESCAPE.sub(_normal_escape, _quote_unsafe(path))


def _normal_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def _quote_unsafe(text: str) -> str:
    if _SAFE.fullmatch(text):
        return text
    quoted = _UNSAFE.sub(
        lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "surrogateescape")
    )
    return quoted.decode("ascii")


def _check_characters(path: str) -> None:
    if _CONTROL.search(path):
        raise InvalidUrl("the path holds a control character")


def _resolve_dots(path: str) -> str:
    """Remove dot segments (RFC 3986, 5.2.4)."""
    out: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del out[-1:]
        elif segment != ".":
            out.append(segment)
    if segments[-1] in (".", ".."):
        out.append("")
    return "/" + "/".join(out)


def _merge_slashes(path: str) -> str:
    return _SLASHES.sub("/", path)


def _resolve_then_merge(path: str) -> str:
    return _merge_slashes(_resolve_dots(path))


def _decode(path: str) -> str:
    """Decode every escape once."""
    try:
        return unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidUrl(
            "the path holds bytes that are not UTF-8 after decoding"
        ) from error


def _drop_parameters(path: str) -> str:
    return _PARAMETERS.sub("", path)


def _take_backslashes(path: str) -> str:
    return path.replace("\\", "/")


def _drop_streams(path: str) -> str:
    return _STREAM.sub(r"\1", path) if ":$" in path else path


def _drop_ends(path: str) -> str:
    """Drop what Windows drops from the end of a file's name: dots and spaces; `.` and
    `..` are no names.
    """
    if not (
        "./" in path or " /" in path or path.endswith((".", " "))
    ):  # a hundred times as fast as the expressions
        return path
    return _SPACES_AFTER_DOTS.sub(r"\1", _END_OF_NAME.sub("", path))


def _normalize(path: str) -> str:
    """Take full-width and other compatibility characters for the usual ones (Unicode's
    NFKC).
    """
    if path.isascii():
        return path
    normalized = unicodedata.normalize("NFKC", path)
    if len(normalized) > max(len(path), _LONGEST_NORMALIZED):
        raise InvalidUrl(
            f"the path is longer than {_LONGEST_NORMALIZED} characters when it is normalized (NFKC)"
        )
    return normalized


def _drop_invisible(path: str) -> str:
    return path if path.isascii() else _INVISIBLE.sub("", path)


def _made_by(step: Reading, before: _Way, path: str) -> _Way:
    """Tell how a path was read that a step makes of another one."""
    decodings = before.decodings + (step is Reading.DECODED)
    if step is Reading.DECODED:
        _check_characters(path)
    if decodings > _DECODINGS_AT_MOST:
        raise InvalidUrl("the path is escaped more than four times over")
    as_file = before.as_file or step is Reading.FILE
    return _Way(_reading_by(step, before.reading, decodings, path), decodings, as_file)


def _reading_by(step: Reading, before: Reading, decodings: int, path: str) -> Reading:
    if decodings > 1:
        return Reading.TWICE
    reading = before if step is Reading.FILE else max(step, before, key=_ORDER.index)
    if reading in _LITERAL or (not decodings and _ESCAPE.search(path)):
        return reading
    return Reading.DECODED if "\\" in path or ";" in path else Reading.PLAIN


def _stripped(path: str) -> str:
    return _resolve_then_merge(
        _drop_parameters(_take_backslashes(_resolve_then_merge(path)))
    )


def _decoded(path: str) -> str:
    return _resolve_then_merge(_decode(_resolve_then_merge(path)))


def _plain(path: str) -> str:
    return _stripped(_decoded(path))


def _file(path: str) -> str:
    return _resolve_then_merge(
        _drop_ends(_drop_streams(_normalize(_drop_invisible(_normalize(path)))))
    )


_STEPS: tuple[tuple[Reading, Callable[[str], str]], ...] = (
    (Reading.RESOLVED, _resolve_dots),
    (Reading.MERGED, _merge_slashes),
    (Reading.DECODED, _decode),
    (Reading.STRIPPED, _take_backslashes),
    (Reading.STRIPPED, _drop_parameters),
    (Reading.FILE, _drop_streams),
    (Reading.FILE, _drop_ends),
    (Reading.FILE, _normalize),
    (Reading.FILE, _drop_invisible),
)
_ORDER = tuple(Reading)
_LITERAL = (Reading.SENT, Reading.RESOLVED, Reading.MERGED)
_READ: dict[Reading, Callable[[str], str]] = {
    Reading.SENT: str,
    Reading.RESOLVED: _resolve_dots,
    Reading.MERGED: _resolve_then_merge,
    Reading.STRIPPED: _stripped,
    Reading.DECODED: _decoded,
    Reading.PLAIN: _plain,
    Reading.TWICE: lambda path: _plain(_plain(path)),
    Reading.FILE: lambda path: _file(_resolve_then_merge(path)),
    Reading.STRIPPED_FILE: lambda path: _file(_stripped(path)),
    Reading.DECODED_FILE: lambda path: _file(_decoded(path)),
    Reading.PLAIN_FILE: lambda path: _file(_plain(path)),
    Reading.TWICE_FILE: lambda path: _file(_plain(_plain(path))),
}
_FILE = {
    **dict.fromkeys(_LITERAL, Reading.FILE),
    Reading.STRIPPED: Reading.STRIPPED_FILE,
    Reading.DECODED: Reading.DECODED_FILE,
    Reading.PLAIN: Reading.PLAIN_FILE,
    Reading.TWICE: Reading.TWICE_FILE,
}
