"""The helper protocol: a stream cut anywhere is the same lines, tokens and replies
survive their round trip.

An input is a stream of Squid's: its first byte says how the reads cut it, its second
which limits hold. The same bytes are also tokens to send, and the annotations and
message of a reply, which is read back by Squid's own rules.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from html import unescape

from squidkeeper.base.errors import InvalidLine, ReplyTooLong
from squidkeeper.policy.protocol.lines import (
    LINE_LIMIT,
    LineBuffer,
    Reply,
    Result,
    format_reply,
    parse_tokens,
    reply_limit,
    split_channel,
)

from .target import Target

COUNTS = (9, 10, 11)
SHORT_LIMITS = (0, 1, 7, 64, 1000)
CONCURRENCIES = (0, 1, 16, 300, 3000)


def check(data: bytes) -> None:
    cuts, limits, stream = data[:1], data[1:2], data[2:]
    size, choice = (cuts or b"\0")[0], (limits or b"\0")[0]
    check_cutting(stream, size, SHORT_LIMITS[choice % len(SHORT_LIMITS)])
    for line in LineBuffer().feed(stream):
        check_line(line)
    check_tokens(stream.split(b" "))
    check_reply(stream, CONCURRENCIES[choice % len(CONCURRENCIES)])


# --- the stream -----------------------------------------------------------------------


def check_cutting(stream: bytes, size: int, limit: int) -> None:
    """Whatever the reads, the lines are the same; one over the limit stays over it, and
    nothing more is held.
    """
    whole = [line.removesuffix(b"\r") for line in stream.split(b"\n")[:-1]]
    buffer, got = LineBuffer(limit), []
    for piece in pieces(stream, size + 1):
        got += buffer.feed(piece)
    assert len(got) == len(whole)
    for found, line in zip(got, whole, strict=True):
        assert found == line if len(line) <= limit else len(found) == limit + 1
    assert LineBuffer(limit).feed(stream) == got
    assert LineBuffer().feed(stream) == whole


def pieces(stream: bytes, size: int) -> Iterator[bytes]:
    """Cut a stream into pieces of one to `size` bytes."""
    at = 0
    while at < len(stream):
        length = 1 + (at * 7 + size) % size
        yield stream[at : at + length]
        at += length


def check_line(line: bytes) -> None:
    """A line has a channel-ID and the right number of tokens, or is refused; one that
    is too long always is.
    """
    split = split_channel(line)
    digits, _, rest = line.partition(b" ")
    if digits.isdigit() and len(digits) <= 19:
        assert split == (digits, rest)
    else:
        assert split is None
    request = line if split is None else split[1]
    try:
        tokens = parse_tokens(request, COUNTS)
    except InvalidLine:
        assert len(request.split(b" ")) not in COUNTS or len(request) > LINE_LIMIT
        return
    assert len(tokens) in COUNTS
    assert [token is None for token in tokens] == [
        sent == b"-" for sent in request.split(b" ")
    ]


def check_tokens(values: list[bytes]) -> None:
    """What Squid escapes comes out as it went in, `-` as text too."""
    escaped = b" ".join(escape(value) for value in values)
    if len(escaped) <= LINE_LIMIT:
        tokens = parse_tokens(escaped, (len(values),))
        assert [
            (token or "").encode("utf-8", "surrogateescape") for token in tokens
        ] == values


def escape(value: bytes) -> bytes:
    """Escape as rfc1738_escape(3) of Squid does; a bare `-` would say that there is no
    value.
    """
    if value == b"-":
        return b"%2D"
    return b"".join(
        b"%c" % byte if 0x21 <= byte <= 0x7E and byte not in b'%"' else b"%%%02X" % byte
        for byte in value
    )


# --- the reply ------------------------------------------------------------------------


# What a denial says for each form of a page: which text it is, and how the page's
# reader gets it back.
FORMS: dict[str, tuple[str, Callable[[str], str]]] = {
    "reason_": ("reason_", str),
    "rule_html_": ("rule_", unescape),
    "rule_json_": ("rule_", lambda shown: str(json.loads(f'"{shown}"'))),
    "reason_html_": ("reason_", unescape),
    "reason_json_": ("reason_", lambda shown: str(json.loads(f'"{shown}"'))),
}


def check_reply(stream: bytes, concurrency: int) -> None:
    """Squid reads back the result and the annotations; of the message as much as fits
    the bound.
    """
    first, _, rest = stream.partition(b"\n")
    value, message = (part.decode("utf-8", "surrogateescape") for part in (first, rest))
    reply = Reply(Result.ERR, (("rule_", value), ("verdict_", "deny")), message)
    limit = reply_limit(concurrency)
    try:
        line = format_reply(reply, b"12", limit)
    except ReplyTooLong:
        assert len(value) > (limit - 64) // 6
        return
    assert len(line) <= limit
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    channel, result, pairs = squid_reads(line)
    assert (channel, result) == (b"12", b"ERR")
    assert pairs[:2] == [("rule_", printable(value)), ("verdict_", "deny")]
    texts = {"rule_": printable(value), "reason_": printable(message)}
    for key, shown in pairs[2:]:
        name, read = FORMS[key]
        text = read(shown)
        assert text == texts[name] or texts[name].startswith(text.removesuffix("…"))
    keys = [key for key, _ in pairs[2:]]
    assert keys in ([], ["reason_"], [*FORMS])


def printable(text: str) -> str:
    """Put '?' for each character that would end the line or reach a terminal; a line's
    end is Squid's `\\n`.
    """
    return "".join(
        "?" if unicodedata.category(one) in ("Cc", "Cs") and one != "\n" else one
        for one in text
    )


def squid_reads(line: bytes) -> tuple[bytes, bytes, list[tuple[str, str]]]:
    """Read a reply as Squid does (src/helper/Reply.cc, strwordtok() of src/compat and
    src/tools).
    """
    channel, _, rest = line.removesuffix(b"\n").partition(b" ")
    result, _, rest = rest.partition(b" ")
    pairs = []
    while rest:
        key, equals, rest = rest.partition(b"=")
        assert equals, (
            "a word without a value ends the annotations, and with them what the reply says"
        )
        assert b" " not in key
        assert rest[:1] != b" ", "Squid takes no space after '='"
        value, rest = squid_word(rest)
        pairs.append((key.decode(), value.decode()))
    return channel, result, pairs


def squid_word(text: bytes) -> tuple[bytes, bytes]:
    """Read one word, quoted or not; gives what follows it too."""
    word, at, quoted = bytearray(), 0, False
    escaping = text[:1] != b'"'  # a bare value is percent-decoded by Squid
    while at < len(text):
        character = text[at : at + 1]
        if character == b"\\" and quoted:
            character, at = text[at + 1 : at + 2], at + 1
            word += {b"n": b"\n", b"r": b"\r"}.get(character, character)
        elif character == b'"':
            quoted = not quoted
        elif character.isspace() and not quoted:
            break
        else:
            word += character
        at += 1
    assert not quoted, "the quote is never closed"
    assert not (escaping and b"%" in word), "Squid would decode the value once more"
    return bytes(word), text[at + 1 :]


# --- where to start -------------------------------------------------------------------

_PLACE = b"192.168.137.2 - GET https api.example 443 api.example api.example%3A443 -"


def seeds() -> Iterable[bytes]:
    yield b"\x00\x00"
    yield b"\x05\x01 1 \n9999999999999999999 \n99999999999999999999 a\n"
    yield b"\x03\x02" + b"".join(
        b"%d %b -\r\n" % (number, _PLACE) for number in range(4)
    )
    yield b"\xff\x03" + b"7 %b https://api.example/a%%20b -\n" % _PLACE
    yield b"\x40\x04" + b"x" * 1001 + b"\n1 -\n"
    yield b"\x00\x02" + b"1234567\r8\n1234567\r\n"
    yield 'Say "please", \\o/.\nRule: é\x00\ud800\n'.encode("utf-8", "surrogatepass")
    yield b"\x10\x03" + b"%20" * 400 + b"\n" + b'"\\' * 900 + b"\n"


WORDS = (
    b"\r\n",
    b"\n",
    b" ",
    b" - ",
    b"%20",
    b"%0A",
    b"%25",
    b'"',
    b"\\",
    b"=",
    b"9999999999999999999",
    b"\xc2\x85",
)
TARGET = Target(check, seeds, WORDS, longest_bytes=8192)
