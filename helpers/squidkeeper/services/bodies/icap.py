"""ICAP (RFC 3507), as Squid speaks it: REQMOD, RESPMOD and OPTIONS. It parses and
writes bytes, and does no input.

Squid sends the head of an HTTP request, then its body in chunks. It stops after
`PREVIEW` bytes of a longer body, and waits: for an answer, or for `100 Continue`. A
request without a body has an empty preview.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from squidkeeper.base.errors import InvalidIcap

PREVIEW: Final = 65_535  # with 65,536 Squid 6 hangs on every longer body
# of ICAP. Squid's own request_header_max_size is 16 KB
_LONGEST_HEAD: Final = 64 * 1024
_LONGEST_HTTP: Final = 128 * 1024
_LONGEST_CHUNK_LINE: Final = 64
_CRLF: Final = b"\r\n"
_REQUEST_LINE: Final = re.compile(
    r"(OPTIONS|REQMOD|RESPMOD) icap://\S{1,512} ICAP/1\.0", re.ASCII
)
_HEADER: Final = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)"
)
# Squid copies such headers as the client sent them
_OF_THE_CLIENT: Final = re.compile("proxy-auth", re.IGNORECASE)
_HTTP_LINE: Final = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e\x80-\xff]+) HTTP/\d\.\d"
)
_HTTP_HEADER: Final = re.compile(r"([^\x00-\x20\x7f:]+):([^\x00\r\n]*)")
_ENCAPSULATED: Final = re.compile(r"req-hdr=0, (req|null)-body=(\d{1,6})", re.ASCII)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(; ieof)?")


class Mark(Enum):
    """What ends in a request."""

    # there is more of the body: Squid waits for `resume` or `finish`
    PREVIEW_ENDS = auto()
    REQUEST_ENDS = auto()


class IcapRequest(NamedTuple):
    """A request of ICAP. `headers` are by their names in lower case; `http` is the HTTP
    request's head, to its end.

    `may_skip`: Squid takes 204 for an answer to it. It keeps what it has sent of the
    body until then.
    """

    method: str
    headers: Mapping[str, str]
    http: bytes
    has_body: bool
    has_preview: bool
    may_skip: bool


@dataclass(frozen=True, slots=True)
class HttpHead:
    """The head of an HTTP request, with each copy of a header."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        """Path and query of the URL."""
        _, separator, rest = self.url.partition("://")
        if not separator:
            return self.url
        start = next(
            (place for place, character in enumerate(rest) if character in "/?"),
            len(rest),
        )
        return rest[start:] or "/"


Event = IcapRequest | bytes | Mark  # bytes are of the body


class IcapParser:
    """Parses what Squid sends on one connection, in any pieces.

    `receive` takes bytes. `next_event` returns the next event, or None where it needs
    more bytes. It raises `InvalidIcap` for bytes that are none of Squid's: nothing
    after them can be understood. `parse_head` reads the head of a request; it returns
    the length of what follows ahead of the body, too.
    """

    def __init__(
        self, parse_head: Callable[[bytes], tuple[IcapRequest, int]] | None = None
    ) -> None:
        self._parse_head = parse_head or _parse_head
        self._buffer = bytearray()
        self._searched = 0  # bytes that hold no end of a line, or of a head
        self._left = 0  # bytes of what is being read
        self._in_preview = self._is_whole = False
        self._request: IcapRequest | None = None
        self._step: Callable[[], Event | None] = self._read_head

    @property
    def buffered(self) -> int:
        """How many bytes wait to be parsed."""
        return len(self._buffer)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come."""
        return self._step == self._read_head and not self._buffer

    def receive(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data

    def next_event(self) -> Event | None:
        """Return the next event; None where more bytes have to come."""
        return self._step()

    def resume(self) -> None:
        """Read the body on after its preview: `CONTINUE` was sent."""
        self._in_preview, self._step = False, self._read_chunk_line

    def finish(self) -> None:
        """End the request with its preview: it was answered."""
        self._step = self._read_head

    def _read_head(self) -> Event | None:
        head = self._until(_CRLF * 2, _LONGEST_HEAD)
        if head is None:
            return None
        self._request, self._left = self._parse_head(head)
        self._step = self._read_http
        return self._step()

    def _read_http(self) -> Event | None:
        if len(self._buffer) < self._left or self._request is None:
            return None
        request = self._request._replace(http=self._take(self._left))
        if request.http and not request.http.endswith(_CRLF * 2):
            raise InvalidIcap(
                "the head of an HTTP request has no end where Encapsulated says"
            )
        self._in_preview = request.has_preview
        self._step = self._read_chunk_line if request.has_body else self._end
        return request

    def _read_chunk_line(self) -> Event | None:
        line = self._until(_CRLF, _LONGEST_CHUNK_LINE)
        if line is None:
            return None
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise InvalidIcap("the first line of a chunk is not valid")
        self._left, self._is_whole = (
            int(found[1], 16),
            found[2] is not None or not self._in_preview,
        )
        if found[2] and (self._left or not self._in_preview):
            raise InvalidIcap("ieof stands at the end of a preview alone")
        self._step = self._read_data if self._left else self._read_last
        return self._step()

    def _read_data(self) -> Event | None:
        data = self._take(min(self._left, len(self._buffer)))
        self._left -= len(data)
        if not self._left:
            self._step = self._read_data_end
        return data or None

    def _read_data_end(self) -> Event | None:
        return self._after_line_end(self._read_chunk_line)

    def _read_last(self) -> Event | None:
        return self._after_line_end(self._end if self._is_whole else self._pause)

    def _after_line_end(self, step: Callable[[], Event | None]) -> Event | None:
        if len(self._buffer) < len(_CRLF):
            return None
        if self._take(len(_CRLF)) != _CRLF:
            raise InvalidIcap("a chunk has no end where its length says")
        self._step = step
        return step()

    def _pause(self) -> Event | None:
        self._step = self._wait
        return Mark.PREVIEW_ENDS

    def _wait(self) -> Event | None:
        return None

    def _end(self) -> Event | None:
        self._step = self._read_head
        return Mark.REQUEST_ENDS

    def _until(self, end: bytes, longest: int) -> bytes | None:
        """Take what is ahead of an end, and drop the end; None where it has not come
        yet.
        """
        place = self._buffer.find(
            end, max(0, self._searched - len(end)), longest + len(end)
        )
        if place < 0 and len(self._buffer) >= longest + len(end):
            raise InvalidIcap(f"a head or line is over {longest} bytes")
        self._searched = 0 if place >= 0 else len(self._buffer)
        if place < 0:
            return None
        text = self._take(place)
        del self._buffer[: len(end)]
        return text

    def _take(self, length: int) -> bytes:
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken


def parse_http(head: bytes) -> HttpHead:
    """Parse the head of an HTTP request; `InvalidIcap` where it is none as Squid writes
    it.
    """
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    found = _HTTP_LINE.fullmatch(first)
    headers = [_HTTP_HEADER.fullmatch(line) for line in lines]
    if found is None or not all(headers):
        raise InvalidIcap("the head of an HTTP request is not valid")
    return HttpHead(
        found[1],
        found[2],
        tuple((one[1], one[2].strip(" \t")) for one in headers if one),
    )


def parse_fields(head: bytes) -> tuple[str, dict[str, str]]:
    """Parse the head of ICAP: its method, and its headers by their names in
    lower case.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    lines = [line for line in lines if not _OF_THE_CLIENT.match(line)]
    found = _REQUEST_LINE.fullmatch(first)
    fields = [_HEADER.fullmatch(line) for line in lines]
    headers = {one[1].lower(): one[2].strip(" \t") for one in fields if one}
    if found is None or len(headers) < len(lines):
        raise InvalidIcap("the head is not valid, or has a header twice")
    return found[1], headers


def with_length(http: bytes, length: int) -> bytes:
    """Return the head of an HTTP request for a body of another length."""
    first, *lines = http.removesuffix(_CRLF * 2).split(_CRLF)
    kept = [line for line in lines if not line.lower().startswith(b"content-length:")]
    return _CRLF.join([first, *kept, b"Content-Length: %d" % length, b"", b""])


def _parse_head(head: bytes) -> tuple[IcapRequest, int]:
    """Parse the head of ICAP; returns the request without its HTTP head, and the length
    of that.
    """
    method, headers = parse_fields(head)
    if method == "OPTIONS":
        if headers.get("encapsulated", "null-body=0") != "null-body=0":
            raise InvalidIcap("OPTIONS has a body")
        return IcapRequest(
            method, headers, b"", has_body=False, has_preview=False, may_skip=False
        ), 0
    holds = _ENCAPSULATED.fullmatch(headers.get("encapsulated", ""))
    if holds is None or not 0 < int(holds[2]) <= _LONGEST_HTTP:
        raise InvalidIcap("Encapsulated is not valid, or its head is too long")
    has_preview = "preview" in headers
    allows = {item.strip() for item in headers.get("allow", "").split(",")}
    may_skip = has_preview or "204" in allows
    request = IcapRequest(
        method, headers, b"", holds[1] == "req", has_preview, may_skip
    )
    return request, int(holds[2])


# --- answers --------------------------------------------------------------------------

CONTINUE: Final = b"ICAP/1.0 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


def format_options(method: str = "REQMOD", preview: int = PREVIEW) -> bytes:
    """Write the answer to OPTIONS.

    Without `Transfer-Preview` Squid sends no preview. Then a 204 to a body of over 64
    KB ends Squid (ModXact.cc, virginConsume). While Squid has no valid answer it serves
    nothing, so the answer holds for a week.
    """
    offer = {
        "Methods": method,
        "Service": "squidkeeper",
        "Allow": "204",
        "Preview": str(preview),
    }
    lasting = {
        "Transfer-Preview": "*",
        "Options-TTL": "604800",
        "Encapsulated": "null-body=0",
    }
    return _head("200 OK", offer | lasting)


def format_unchanged(headers: Mapping[str, str]) -> bytes:
    """Write that Squid sends the request on, with the body that it has kept."""
    return _head("204 No Content", headers)


def format_echo(http: bytes, headers: Mapping[str, str]) -> bytes:
    """Write the request's own head back. Its body follows, in chunks."""
    encapsulated = {"Encapsulated": f"req-hdr=0, req-body={len(http)}"}
    return _head("200 OK", {**headers, **encapsulated}) + http


def format_response(
    http: bytes, headers: Mapping[str, str], *, has_body: bool
) -> bytes:
    """Write the head of an answer back. Its body follows, in chunks."""
    encapsulated = {
        "Encapsulated": f"res-hdr=0, {'res' if has_body else 'null'}-body={len(http)}"
    }
    return _head("200 OK", {**headers, **encapsulated}) + http


def format_answer(http: bytes, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Write an answer for the client, whole: the head and the body of an HTTP
    response.
    """
    encapsulated = {"Encapsulated": f"res-hdr=0, res-body={len(http)}"}
    return (
        _head("200 OK", {**headers, **encapsulated})
        + http
        + format_chunk(body)
        + LAST_CHUNK
    )


def format_malformed() -> bytes:
    """Write that a request was not understood: Squid denies it."""
    return _head(
        "400 Bad Request", {"Connection": "close", "Encapsulated": "null-body=0"}
    )


def format_chunk(data: bytes) -> bytes:
    """Write a part of a body; nothing for no bytes, because an empty chunk would be the
    last one.
    """
    return b"".join(chunk_parts(data))


def chunk_parts(data: bytes) -> tuple[bytes, ...]:
    """Write a part of a body, without another copy of it."""
    return (b"%x\r\n" % len(data), data, _CRLF) if data else ()


def _head(status: str, headers: Mapping[str, str]) -> bytes:
    fields = {"ISTag": '"squidkeeper"', **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"ICAP/1.0 {status}\r\n{lines}\r\n".encode("latin-1")
