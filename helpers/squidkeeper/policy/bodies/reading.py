"""The content of a request: its body without its Content-Encoding, as far as every
server reads it alike.

Squid undoes the Transfer-Encoding before. `UnreadableBody` says why a body is not read.
"""

from __future__ import annotations

import re
import zlib
from typing import Final, NamedTuple

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.sent_request import SentRequest

CONTENT_TYPE: Final = "content-type"
_CONTENT_ENCODING: Final = "content-encoding"
_TRANSFER_ENCODING: Final = "transfer-encoding"
_NOT_IN_A_NAME: Final = re.compile("[^a-z0-9]")
_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
# RFC 9110, 8.4.1. Some servers take deflate without its zlib wrapper. Such a stream can
# be plain text at the same time.
_WINDOW_BITS: Final = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
_STORED_BLOCK: Final = 5  # bytes of the header of a stored block (RFC 1951, 3.2.4)


class ContentStart(NamedTuple):
    """The first bytes of a content. `whole`: nothing follows them."""

    data: bytes
    whole: bool


def read_content(request: SentRequest, max_bytes: int) -> bytes | None:
    """Return all of a content; None where more of the body has to come.

    `max_bytes` bounds the body as it was sent, and its content. `UnreadableBody` where
    that is exceeded.
    """
    check_headers(request)
    if len(request.body) > max_bytes:
        raise UnreadableBody(f"the body is longer than {max_bytes} bytes")
    if not request.complete:
        return None
    content = read_beginning(request, max_bytes)
    if not content.whole:
        raise UnreadableBody(f"the body is longer than {max_bytes} bytes")
    return content.data


def read_beginning(request: SentRequest, at_most: int) -> ContentStart:
    """Return as much of a content as has come, `at_most` bytes of it."""
    encoding = _encoding(request)
    if encoding is None:
        return ContentStart(
            request.body[:at_most], request.complete and len(request.body) <= at_most
        )
    return _inflated(request, _WINDOW_BITS[encoding], at_most)


def check_headers(request: SentRequest) -> None:
    """Raise `UnreadableBody` where servers can differ on the type or the encoding of a
    body.
    """
    content_type(request)
    _encoding(request)


def content_type(request: SentRequest) -> str:
    """Return the Content-Type in lower case, empty where there is none."""
    return (single_value(request, CONTENT_TYPE) or "").lower()


def _encoding(request: SentRequest) -> str | None:
    if (single_value(request, _TRANSFER_ENCODING) or "chunked").lower() != "chunked":
        raise UnreadableBody("the Transfer-Encoding is not chunked")
    value = single_value(request, _CONTENT_ENCODING)
    encoding = None if value is None else value.lower()
    if encoding is None or encoding == "identity":
        return None
    if encoding not in _WINDOW_BITS:
        raise UnreadableBody("the Content-Encoding is neither gzip nor deflate")
    return encoding


def single_value(request: SentRequest, name: str) -> str | None:
    """Return the one value of a header.

    A gateway to CGI reads `Content_Encoding` as `Content-Encoding`.
    """
    values = []
    word = name.rpartition("-")[2]
    for header, value in request.headers:
        lower = header.lower()
        if lower == name:
            values.append(value.strip(" \t"))
        elif word in lower and _NOT_IN_A_NAME.sub("-", lower).strip("-") == name:
            raise UnreadableBody(f"a header is spelled almost as {name.title()}")
    if len(values) > 1:
        raise UnreadableBody(f"there are two headers {name.title()}")
    return values[0] if values else None


def _inflated(request: SentRequest, window_bits: int, at_most: int) -> ContentStart:
    """Inflate up to `at_most` bytes, and no more: a small body can become gigabytes."""
    if window_bits == _ZLIB and not _is_zlib_alone(request):
        return ContentStart(b"", whole=False)
    inflater = zlib.decompressobj(window_bits)
    try:
        data = inflater.decompress(request.body, at_most + 1)
    except zlib.error:
        raise UnreadableBody("the body cannot be inflated") from None
    if len(data) > at_most:
        return ContentStart(data[:at_most], whole=False)
    if inflater.eof and inflater.unused_data:
        raise UnreadableBody("something follows the compressed body")
    if request.complete and not inflater.eof:
        raise UnreadableBody("the compressed body is cut off")
    return ContentStart(data, request.complete)


def _is_zlib_alone(request: SentRequest) -> bool:
    """Return False where that cannot be told yet.

    The first byte of a zlib stream, read as deflate without zlib, begins a stored
    block. Its length follows, and then the complement of its length. A server that
    expects no zlib fails on any other bytes there.
    """
    head = request.body[:_STORED_BLOCK]
    if len(head) < _STORED_BLOCK:
        return request.complete
    if head[1] ^ head[3] == head[2] ^ head[4] == 0xFF:
        raise UnreadableBody("the body is deflated in two ways at once")
    return True
