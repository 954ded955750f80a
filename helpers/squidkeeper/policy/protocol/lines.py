"""Squid's helper lines: what Squid writes, what it reads, and the bounds on both.

The grammar is Squid's own (src/helper/Reply.cc and `external_acl_type` in squid.conf):
a request is a line of percent-encoded tokens, after a channel-ID where `concurrency` is
above 0; a reply is `OK`, `ERR` or `BH` and `key=value` pairs.
"""

import re
from bisect import bisect
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from urllib.parse import unquote_to_bytes

from squidkeeper.base.errors import InvalidLine, ReplyTooLong

# bytes of a request: two URLs of 8,191 bytes, each byte escaped, and the other tokens
LINE_LIMIT = 128 * 1024
LONGEST_CHANNEL = b"9" * 19
_CHANNEL_ROOM = len(LONGEST_CHANNEL) + len(b" ")
# bytes; Squid's read buffer is 32 KB, and an ID that is torn there becomes another ID
IN_FLIGHT_LIMIT = 31_900
# characters of a proxy user's name in a reply, percent-encoded; longer names are cut
# off
USER_LENGTH = 256
UNNUMBERED_LIMIT = (
    100_000  # bytes; with concurrency=0 one reply is in flight, without an ID
)


class Result(StrEnum):
    """The three results that Squid knows; BH (broken helper) denies."""

    OK = "OK"
    ERR = "ERR"
    BH = "BH"


@dataclass(frozen=True)
class Reply:
    """A reply: its annotations in order and a message: why it denies, for the page, or
    what was wrong with a line (BH).

    `counts` are the counters that go up by one with each lookup that gets this reply;
    Squid does not see them. Until `hold_until`, by the monotonic clock, the line may be
    held and answered again: the reply may change soon.
    """

    result: Result
    # a credential can be among them
    annotations: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    message: str | None = None
    counts: tuple[tuple[str, ...], ...] = field(default=(), repr=False, compare=False)
    hold_until: float = field(default=0.0, compare=False)

    @cached_property
    def head(self) -> bytes:
        """The line without channel-ID and message: the same for every lookup that gets
        this reply.
        """
        pairs = (f"{key}={_value(value)}" for key, value in self.annotations)
        return " ".join([self.result, *pairs]).encode("utf-8", "replace")

    @cached_property
    def message_pair(self) -> bytes:
        """The uncut message, as it follows the head."""
        return _message_pairs(self, self.message or "")


class LineBuffer:
    """Cuts a stream into lines, and never holds more of a line than the limit.

    It keeps one byte more than the limit, so that a truncated line fails the length
    check of `parse_tokens` and is never decided.
    """

    def __init__(self, limit: int = LINE_LIMIT + _CHANNEL_ROOM) -> None:
        self._at_most = limit + 1
        # else a line that is cut at a bare CR would look complete
        self._held = limit + 1 + len(b"\r")
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read, and give the lines that are complete now, without their
        ends.
        """
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: self._held]
        return [
            line[: self._held].removesuffix(b"\r")[: self._at_most] for line in lines
        ]


def split_channel(line: bytes) -> tuple[bytes, bytes] | None:
    """Split `<channel-ID> <request>`; None for a line without a channel-ID, whose
    answer nobody waits for.
    """
    channel, _, request = line.partition(b" ")
    return (
        (channel, request)
        if channel.isdigit() and len(channel) <= len(LONGEST_CHANNEL)
        else None
    )


def split_tokens(line: bytes, first: int, counts: tuple[int, ...]) -> list[bytes]:
    """Split a line into its first tokens, as one, and each token after them, as they
    came.

    `counts` are the numbers of tokens that squid.conf can make.
    """
    return line.rsplit(b" ", _count_tokens(line, counts) - first)


def parse_tokens(request: bytes, counts: tuple[int, ...]) -> list[str | None]:
    """Parse the tokens of a request: percent-decoded, `-` as None.

    Bytes that are not UTF-8 stay as surrogates.
    """
    _count_tokens(request, counts)
    if b"%" in request:
        return [
            None if token == b"-" else decode_token(token)
            for token in request.split(b" ")
        ]
    # all at once, as no character holds a space
    text = request.decode("utf-8", "surrogateescape")
    return [None if word == "-" else word for word in text.split(" ")]


def _count_tokens(request: bytes, counts: tuple[int, ...]) -> int:
    if len(request) > LINE_LIMIT:
        raise InvalidLine(f"the line is longer than {LINE_LIMIT} bytes")
    found = request.count(b" ") + 1
    if found not in counts:
        expected = " or ".join(map(str, counts))
        raise InvalidLine(
            f"{found} tokens, expected {expected}: does squid.conf name the helper as documented?"
        )
    return found


def decode_token(token: bytes) -> str:
    """Percent-decode one token; bytes that are not UTF-8 stay as surrogates.

    Most URLs hold no other escapes than Squid's own of `:` and `/`: replacing those
    takes 0.6 us instead of 1.6.
    """
    text = token.replace(b"%3A", b":").replace(b"%2F", b"/")
    return (unquote_to_bytes(text) if b"%" in text else text).decode(
        "utf-8", "surrogateescape"
    )


def reply_limit(concurrency: int) -> int:
    """Return the bytes of the longest reply, so that `concurrency` replies stay within
    Squid's read buffer.
    """
    return IN_FLIGHT_LIMIT // concurrency if concurrency else UNNUMBERED_LIMIT


def format_reply(
    reply: Reply, channel: bytes = b"", limit: int = UNNUMBERED_LIMIT
) -> bytes:
    """Write a reply as one line of at most `limit` bytes; a message is cut to fit,
    annotations never are.
    """
    line = b"%b %b" % (channel, reply.head) if channel else reply.head
    room = limit - len(line) - len(b"\n")
    if room < 0:
        raise ReplyTooLong(
            f"a reply of {len(line)} bytes is over the bound of {limit} (squid.conf: concurrency=)"
        )
    return b"%b%b\n" % (line, _message(reply, room) if reply.message else b"")


def _message(reply: Reply, room: int) -> bytes:
    message = reply.message or ""
    if room < _MESSAGE_AT_LEAST:
        return b""
    if len(reply.message_pair) <= room:
        return reply.message_pair
    lengths = range(1, len(message))
    fitting = bisect(
        lengths,
        room,
        key=lambda length: len(_message_pairs(reply, f"{message[:length]}…")),
    )
    return _message_pairs(reply, f"{message[:fitting]}…") if fitting else b""


def _message_pairs(reply: Reply, message: str) -> bytes:
    """Write the message of a broken helper, or the reason of a denial: no page in HTML
    ends early by what it holds.
    """
    key, text = (
        ("message", message)
        if reply.result is Result.BH
        else ("reason_", message.replace("</", "< /"))
    )
    return f" {key}={_quoted(text)}".encode("utf-8", "replace")


def _value(text: str) -> str:
    return text if _BARE.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return f'"{_printable(text).translate(_ESCAPES)}"'


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)


_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_MESSAGE_AT_LEAST = 64
