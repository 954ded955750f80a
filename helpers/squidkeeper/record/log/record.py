"""A record: one line of the access log, as the `logformat` of
squid/squidkeeper-logformat.conf writes it.

The fields here, the logformat and the table in the documentation have the same order;
tests compare them. Squid writes numbers as numbers and everything else as a
percent-encoded string; `-` means none.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import lru_cache
from operator import attrgetter, eq
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from squidkeeper.base.errors import InvalidRecord, InvalidUrl
from squidkeeper.policy.protocol.lines import USER_LENGTH
from squidkeeper.policy.url import (
    DEFAULT_PORTS,
    RECORDED_URL_LENGTH,
    Host,
    parse_authority,
    unrecorded_url,
)

VERSION: Final = 1
NONE: Final = "-"
TICKET_ANSWERED: Final = (
    "200:ERR_SQUIDKEEPER_TICKET"  # the page with the state of a ticket: no failure
)
CLIENT_ERRORS: Final[
    Mapping[str, str]
] = {  # errors of Squid that the client causes: no origin has failed
    "ERR_SECURE_ACCEPT_FAIL": "TLS with the client failed: it does not trust the gateway's CA, or it disconnected",
    "ERR_PROTOCOL_UNKNOWN": "the client sent no TLS inside a tunnel",
    "ERR_CLIENT_GONE": "the client disconnected before it had the whole response",
}
URL_LIMIT: Final = 1000  # characters of a URL that are stored and shown

_CACHED: Final = 65_536
_NO_HOST = Host(NONE)
_LONGEST: Final = 300  # characters of an authority: a name of 253 and a port
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
_USERINFO = re.compile(r"^([a-z][a-z0-9+.-]*://)?[^/?#]*@", re.IGNORECASE)


class Record(msgspec.Struct, frozen=True, gc=False):
    """A request that has ended, as Squid wrote it: text is percent-encoded, `-` means
    none.
    """

    v: int
    time: str
    client: str
    user: str
    method: str
    url: str
    status: int
    bytes: int
    duration_ms: int
    verdict: str
    rule: str
    revision: str
    credential: str
    fetched: str
    sni: str
    tunnel: str
    upstream: str
    upstream_ms: str
    error: str
    user_agent: str
    squid: str
    connection: str
    tls_error: str = NONE  # older lines lack this field and those below
    cut: str = NONE
    hidden: str = NONE
    request_id: str = NONE
    found: str = NONE
    request_bytes: int = 0
    client_port: str = NONE
    content_type: str = NONE
    referrer: str = NONE
    observed: str = NONE
    gateway: str = NONE
    worker: str = NONE
    page: str = NONE
    error_detail: str = NONE
    session: str = NONE


# Characters of each field that a client or server chooses: `logformat squidkeeper`
# truncates longer ones.
LENGTHS: Final = {
    "user": USER_LENGTH,
    "method": 96,
    "url": RECORDED_URL_LENGTH,
    "verdict": 8,
    "rule": 1200,
    "revision": 64,
    "credential": 2048,
    "fetched": RECORDED_URL_LENGTH,
    "sni": 1024,
    "tunnel": 2048,
    "error": 256,
    "user_agent": 256,
    "tls_error": 512,
    "cut": 64,
    "hidden": 32,
    "found": 256,
    "content_type": 128,
    "referrer": 256,
    "observed": 1200,
    "page": 32,
    "error_detail": 256,
}
GATEWAY_LENGTH: Final = (
    64  # characters of the name that install.sh writes into the logformat
)
LINE_LENGTH: Final = (
    19_700  # bytes of a line at most: all of these, and the fields that Squid chooses
)
_DECISIVE: Final = ("url", "user", "method", "sni", "tunnel", "fetched", "credential")


_decisive = attrgetter(*_DECISIVE)
_DECISIVE_LENGTHS: Final = tuple(LENGTHS[name] for name in _DECISIVE)
_decoder = msgspec.json.Decoder(Record)


def parse_record(line: bytes) -> Record:
    """Parse a line without its newline; raise `InvalidRecord` if it is no record of
    this version.

    A byte order mark ahead of it is ignored: DuckDB drops that of a file.
    """
    try:
        record = _decoder.decode(line.removeprefix(BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord(f"not a squidkeeper record: {error}") from error
    if record.v != VERSION:
        raise InvalidRecord(
            f"version {record.v} of the record format, expected {VERSION}: another release wrote it"
        )
    return record


def parse_timed_record(line: bytes) -> Record:
    """Parse a line as `parse_record` does; also raise `InvalidRecord` if its time is no
    time.
    """
    record = parse_record(line)
    try:
        parse_time(record)
    except ValueError as error:
        raise InvalidRecord(
            "not a squidkeeper record: its time is not a valid time"
        ) from error
    return record


def parse_time(record: Record) -> datetime:
    """Return the time of a record; raise ValueError if it has no zone or leaves the
    range of datetime.
    """
    at = datetime.fromisoformat(record.time)
    if at.tzinfo is None or not MINYEAR < at.year < MAXYEAR:
        raise ValueError(f"{record.time} is not a valid time of a request")
    return at


def format_time(at: datetime) -> str:
    """Write a time as Squid logs it; such times sort as text."""
    return f"{at.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"


def is_spliced(record: Record) -> bool:
    """Whether a record is of a tunnel that passed through, in which Squid saw the TLS
    server name alone.
    """
    return record.method == "CONNECT" and is_unseen(record)


def is_unseen(record: Record) -> bool:
    """Whether Squid passed bytes on without reading them: a tunnel that passed through,
    or a WebSocket.
    """
    return record.squid.startswith("TCP_TUNNEL")


def decode_field(value: str) -> str | None:
    """Decode a field; `-` becomes None, and bytes that are not UTF-8 become U+FFFD."""
    return None if value == NONE else unquote(value)


def truncated_fields(record: Record) -> tuple[str, ...]:
    """Name the fields that decide a request and that Squid truncated: they have the
    full length of their column.
    """
    if not any(map(eq, map(len, _decisive(record)), _DECISIVE_LENGTHS)):
        return ()
    return tuple(
        name for name in _DECISIVE if len(getattr(record, name)) == LENGTHS[name]
    )


def client_name(record: Record) -> str:
    """Return `user@address`, or the address where there is no proxy user."""
    return record.client if record.user == NONE else f"{record.user}@{record.client}"


def host_of(url: str) -> Host:
    """Return the host of a record's URL, or of a CONNECT's `host:port`; `-` if it has
    none.
    """
    authority = authority_of(url)
    return _host(authority) if len(authority) <= _LONGEST else _NO_HOST


def authority_of(url: str) -> str:
    """Return `host` or `host:port` of a record's URL, as Squid read it; the whole text
    if it is no URL.
    """
    _, slashes, rest = url.partition("://")
    authority = rest.partition("/")[0].partition("?")[0] if slashes else url
    return unrecorded_url(authority) if "%" in authority else authority


def endpoint_of(url: str) -> str:
    """Return `host:port` of a record's URL or CONNECT, without a user; the port is its
    scheme's where it names none.
    """
    scheme, slashes, _ = url.partition("://")
    authority = authority_of(url).rpartition("@")[2]
    has_port = authority.rpartition(":")[2].isdecimal()
    return (
        authority
        if has_port or not slashes
        else f"{authority}:{DEFAULT_PORTS.get(scheme, DEFAULT_PORTS['https'])}"
    )


def redacted_url(url: str) -> str:
    """Remove query, fragment and password from a URL; encode everything but printable
    ASCII.
    """
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
