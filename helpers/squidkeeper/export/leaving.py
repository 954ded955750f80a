"""What may leave of a record (floor 7), still in percent-encoding: every format is written from this alone.

URLs have no query and no fragment, unless the caller wants them whole. The referrer never has them: a client of one
host can hold there what it has from another. No URL has a password. A referrer in another form than a browser writes
does not leave: what its password is depends on who reads it.
"""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import msgspec

from squidkeeper.record.record import LENGTHS, NONE, Record, decode_field
from squidkeeper.record.urls import redacted_url

_PLAIN: Final = re.compile(r"https?://[^/\\?#\s]", re.IGNORECASE)
_UNESCAPED: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%<>\\')


def leaving(record: Record, *, full_urls: bool) -> Record:
    """Return a record without what must not leave."""
    return msgspec.structs.replace(
        record,
        url=record.url if full_urls else redacted_url(record.url),
        fetched=record.fetched if full_urls else _changed(record.fetched, redacted_url),
        referrer=_changed(record.referrer, redacted_url) if _is_plain(record.referrer) else NONE,
    )


def shortened(record: Record, characters: int) -> Record:
    """Cut off each text that others choose at a number of characters. An escape may be cut too, as Squid does it."""
    cut = {name: value[:characters] for name in LENGTHS if len(value := getattr(record, name)) > characters}
    return msgspec.structs.replace(record, **cut)


def _changed(field: str, change: Callable[[str], str]) -> str:
    url = decode_field(field)
    return NONE if url is None else quote(change(url), safe=_UNESCAPED)


def _is_plain(referrer: str) -> bool:
    """Tell whether a referrer is an http(s) URL, and not cut off so early that a password in it does not end in `@`."""
    url = decode_field(referrer) or ""
    return bool(_PLAIN.match(url)) and (len(referrer) < LENGTHS["referrer"] or "/" in url.partition("://")[2])
