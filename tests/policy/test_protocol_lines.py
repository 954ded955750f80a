"""Squid's helper lines."""

from __future__ import annotations

import shlex
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidLine, ReplyTooLong
from squidkeeper.policy.protocol.lines import (
    IN_FLIGHT_LIMIT,
    LINE_LIMIT,
    LONGEST_CHANNEL,
    LineBuffer,
    Reply,
    Result,
    decode_token,
    format_reply,
    parse_tokens,
    reply_limit,
    split_channel,
    split_tokens,
)

TOKENS = {
    b"a b": ["a", "b"],
    b"- -": [None, None],
    b"a%20b c%25": ["a b", "c%"],
    b"%5B::1%5D x": ["[::1]", "x"],
    b"a%0A0 b": ["a\n0", "b"],
    b"\xff %FF": ["\udcff", "\udcff"],
    b"caf%C3%A9 x": ["café", "x"],
}


@pytest.mark.parametrize(("request_line", "tokens"), TOKENS.items())
def test_tokens_are_percent_decoded_and_a_dash_is_nothing(
    request_line: bytes, tokens: list[str | None]
) -> None:
    assert parse_tokens(request_line, (2,)) == tokens


@given(
    st.lists(
        st.sampled_from([*b" -%2aF\xc3\xa9\xe2\xff\x00"]).map(
            lambda byte: bytes([byte])
        )
    ).map(b"".join)
)
def test_tokens_decoded_at_once_are_those_decoded_one_by_one(
    request_line: bytes,
) -> None:
    tokens = request_line.split(b" ")
    one_by_one = [None if token == b"-" else decode_token(token) for token in tokens]
    assert parse_tokens(request_line, (len(tokens),)) == one_by_one
    assert split_tokens(request_line, 1, (len(tokens),)) == tokens
    assert split_tokens(request_line, len(tokens), (len(tokens),)) == [request_line]


@given(
    st.lists(
        st.sampled_from(
            [b"%", b"%3A", b"%2F", b"%25", b"%3a", b"2F", b"3", b"A", b"\xff"]
        )
    ).map(b"".join)
)
def test_a_token_is_decoded_once_as_the_library_does(token: bytes) -> None:
    assert decode_token(token) == unquote_to_bytes(token).decode(
        "utf-8", "surrogateescape"
    )


@pytest.mark.parametrize("request_line", [b"", b"a", b"a b c", b"a  b", b"a b "])
def test_another_number_of_tokens_is_refused(request_line: bytes) -> None:
    with pytest.raises(InvalidLine, match="expected 2"):
        parse_tokens(request_line, (2,))


@pytest.mark.parametrize(
    ("line", "split"),
    [
        (b"0 a b", (b"0", b"a b")),
        (b"123456 a", (b"123456", b"a")),
        (b"7", (b"7", b"")),
        (b"7 ", (b"7", b"")),
        (b"", None),
        (b"a b", None),
        (b" 1 a", None),
        (b"1a b", None),
        (b"-1 a", None),
        (b"9" * 20 + b" a", None),
    ],
)
def test_a_channel_id_is_digits_and_a_space(
    line: bytes, split: tuple[bytes, bytes] | None
) -> None:
    assert split_channel(line) == split


REPLIES = {
    Reply(Result.OK): b"OK\n",
    Reply(Result.ERR, (("rule_", "no-wikipedia"),)): b"ERR rule_=no-wikipedia\n",
    Reply(Result.OK, (("rule_", "two words"),)): b'OK rule_="two words"\n',
    Reply(Result.OK, (("x_", 'a"b\\c'),)): b'OK x_="a\\"b\\\\c"\n',
    Reply(Result.OK, (("x_", "100%"),)): b'OK x_="100%"\n',
    Reply(Result.OK, (("x_", ""),)): b'OK x_=""\n',
    Reply(Result.OK, (("x_", "a\r\nERR"),)): b'OK x_="a?\\nERR"\n',
    Reply(Result.OK, (("x_", "\x00\udcff"),)): b'OK x_="??"\n',
    Reply(
        Result.ERR, (("rule_", "x"),), "é, U+2028:\u2028"
    ): 'ERR rule_=x reason_="é, U+2028:\u2028"\n'.encode(),
    Reply(
        Result.ERR, (("rule_", "a&b"),), 'A\n"b"\x07</p>'
    ): b'ERR rule_="a&b" reason_="A\\n\\"b\\"?< /p>"\n',
    Reply(Result.BH, message="é"): 'BH message="é"\n'.encode(),
}


@pytest.mark.parametrize(("reply", "line"), REPLIES.items())
def test_a_reply_is_one_line_of_squids_grammar(reply: Reply, line: bytes) -> None:
    assert format_reply(reply) == line
    assert format_reply(reply, b"12") == b"12 " + line


@given(st.text(), st.text())
def test_whatever_a_value_holds_the_reply_is_one_line_that_squid_reads_back(
    value: str, message: str
) -> None:
    line = format_reply(Reply(Result.ERR, (("rule_", value),), message), b"1")
    assert line.count(b"\n") == 1
    assert not set(line[:-1]) & set(range(0x20))
    _, _, *pairs = shlex.split(line.decode())
    keys = [pair.partition("=")[0] for pair in pairs]
    assert keys == ["rule_", "reason_"][: 1 + bool(message)]


@given(st.text(min_size=200), st.integers(1, 300))
def test_a_message_is_cut_so_that_all_replies_in_flight_stay_within_the_bound(
    text: str, concurrency: int
) -> None:
    limit = reply_limit(concurrency)
    line = format_reply(Reply(Result.ERR, (("rule_", "x"),), text), b"1", limit)
    assert line.endswith(b"\n")
    assert len(line) * concurrency <= IN_FLIGHT_LIMIT


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("a" * 1000, 600), ('"' * 1000, 300), ("\n" * 1000, 300), ("&" * 1000, 600)],
)
def test_a_page_has_the_documented_room_for_a_reason(reason: str, shown: int) -> None:
    head = (
        ("rule_", "r" * 60),
        ("revision_", "0123456789ab"),
        ("user_", "u" * 40),
        ("contact_", "c" * 60),
    )
    line = format_reply(Reply(Result.ERR, head, reason), b"123456789", reply_limit(32))
    [text] = [
        pair for pair in shlex.split(line.decode()) if pair.startswith("reason_=")
    ]
    assert (
        len(text.removeprefix("reason_=").replace("\\n", "\n").removesuffix("…"))
        >= shown
    )


def test_a_cut_message_fills_its_room() -> None:
    line = format_reply(Reply(Result.ERR, (), "a" * 1000), b"1", 100)
    assert (len(line), line[-6:]) == (100, '…"\n'.encode().rjust(6, b"a"))


def test_annotations_are_never_cut() -> None:
    with pytest.raises(ReplyTooLong, match="over the bound of 1993"):
        format_reply(
            Reply(Result.OK, (("authorization_", "x" * 2000),)), b"1", reply_limit(16)
        )


@given(st.binary(), st.lists(st.integers(1, 7)))
def test_a_stream_is_cut_into_its_lines_wherever_reads_end(
    data: bytes, sizes: list[int]
) -> None:
    buffer, got, at = LineBuffer(), [], 0
    for size in [*sizes, len(data)]:
        got += buffer.feed(data[at : at + size])
        at += size
    assert got == [line.removesuffix(b"\r") for line in data.split(b"\n")[:-1]]


@pytest.mark.parametrize("channel", [b"", b"1 ", LONGEST_CHANNEL + b" "])
@pytest.mark.parametrize("over", [b"x", b"\r2", b"x" * 20 * LINE_LIMIT])
def test_of_a_line_over_the_limit_a_little_is_kept_and_it_is_refused(
    channel: bytes, over: bytes
) -> None:
    buffer = LineBuffer()
    assert buffer.feed(channel + b"x" * LINE_LIMIT + over) == []
    [line, following] = buffer.feed(b"\n2 a\n")
    assert len(line) <= LINE_LIMIT + len(LONGEST_CHANNEL + b" ") + 1
    assert following == b"2 a"
    with pytest.raises(InvalidLine, match="longer than"):
        parse_tokens(line.removeprefix(channel), (1,))


def test_a_request_of_just_the_limit_is_taken() -> None:
    request = b"x" * LINE_LIMIT
    [line] = LineBuffer().feed(LONGEST_CHANNEL + b" " + request + b"\r\n")
    assert split_channel(line) == (LONGEST_CHANNEL, request)
    assert parse_tokens(request, (1,)) == [request.decode()]
