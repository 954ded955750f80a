"""One line of the record (floor 5): what the `logformat` of squid/squidkeeper-logformat.conf writes for each request.

The fields here, the logformat there and the table in the documentation are the same, in the same order; tests compare
them. Squid writes every value but the numbers as a string, text in percent-encoding, and `-` for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from typing import Final
from urllib.parse import unquote

import msgspec

from squidkeeper.errors import InvalidRecord
from squidkeeper.protocol.lines import USER_LENGTH
from squidkeeper.url import RECORDED_URL_LENGTH

VERSION: Final = 1
NONE: Final = "-"
CLIENT_ERRORS: Final[Mapping[str, str]] = {  # Squid's errors that are the client's doing: no origin has failed
    "ERR_SECURE_ACCEPT_FAIL": "TLS with the client failed: it does not trust the gateway's CA, or left during it",
    "ERR_PROTOCOL_UNKNOWN": "it spoke no TLS in a tunnel",
    "ERR_CLIENT_GONE": "it left before it had an answer",
}


class Record(msgspec.Struct, frozen=True, gc=False):
    """A request that has ended, as Squid wrote it: text is still percent-encoded, `-` stands for none."""

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
    tls_error: str = NONE  # lines of before it was added have none, nor those below
    cut: str = NONE
    hidden: str = NONE


# Characters of each text that others than Squid choose: `logformat squidkeeper` cuts off what is longer.
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
}
LINE_LENGTH: Final = 17_000  # bytes of a line at most: all of those, and what Squid chooses
_JUDGED_BY: Final = ("url", "user", "method", "sni", "tunnel", "fetched", "credential")


_decoder = msgspec.json.Decoder(Record)


def parse_record(line: bytes) -> Record:
    """Parse a line, its newline left out; `InvalidRecord` where it is no record of a version that is known here."""
    try:
        record = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord(f"not a line of the record: {error}") from error
    if record.v != VERSION:
        raise InvalidRecord(f"a record of version {record.v}, expected {VERSION}: was it written by another release?")
    return record


def moment_of(record: Record) -> datetime:
    """Give the time of a record; ValueError where it is none that can be reckoned with."""
    at = datetime.fromisoformat(record.time)
    if at.tzinfo is None or not MINYEAR < at.year < MAXYEAR:
        raise ValueError(f"{record.time} is no time of a request")
    return at


def time_of(at: datetime) -> str:
    """Write a time as Squid writes that of a record: these sort as text."""
    return f"{at.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"


def text(value: str) -> str | None:
    """Decode a field; None for none. Bytes that are not UTF-8 become U+FFFD."""
    return None if value == NONE else unquote(value)


def cut_fields(record: Record) -> tuple[str, ...]:
    """Name the fields that a request is judged by and that are cut off: as long as a line has room for."""
    return tuple(name for name in _JUDGED_BY if len(getattr(record, name)) == LENGTHS[name])


def client_of(record: Record) -> str:
    """Name who asked: the proxy user, where there is one, and the address."""
    return record.client if record.user == NONE else f"{record.user}@{record.client}"
