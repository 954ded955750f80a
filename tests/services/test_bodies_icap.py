"""ICAP, as bytes: each request in every cut, what is refused, and the answers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidIcap
from squidkeeper.services.bodies.icap import (
    Event,
    IcapParser,
    IcapRequest,
    Mark,
    format_answer,
    format_chunk,
    format_echo,
    format_malformed,
    format_options,
    format_unchanged,
    parse_http,
)
from tests.conftest import few_and_many, hold_for

HTTP = b"POST https://llm.example/v1/chat?x=1 HTTP/1.1\r\nHost: llm.example\r\nAccept: a\r\nAccept: b\r\n\r\n"
FIRST = "REQMOD icap://127.0.0.1:1344/ ICAP/1.0\r\nHost: 127.0.0.1:1344\r\n"


def reqmod(*headers: str, body: str | None = "req", http: bytes = HTTP) -> bytes:
    lines = (f"Encapsulated: req-hdr=0, {body}-body={len(http)}", *headers)
    return (FIRST + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode() + http


OPTIONS = b"OPTIONS icap://127.0.0.1:1344/ ICAP/1.0\r\nHost: 127.0.0.1:1344\r\nAllow: trailers\r\n\r\n"
WITHOUT_BODY = reqmod(
    "Preview: 0", "Allow: 204, trailers", "X-SK-Bodies: r3,d", body="null"
)
IN_PREVIEW = reqmod("Preview: 5") + b"2\r\nab\r\n3\r\ncde\r\n0; ieof\r\n\r\n"
OVER_PREVIEW = reqmod("Preview: 2") + b"2\r\nab\r\n0\r\n\r\n"
REST = b"3\r\ncde\r\n0\r\n\r\n"
WITHOUT_PREVIEW = reqmod() + b"5\r\nabcde\r\n0\r\n\r\n"


def test_what_squid_copies_of_the_client_is_not_read() -> None:
    """Otherwise a client could have its requests refused as none of Squid's, and so an
    alert raised.
    """
    copied = (
        "Proxy-Authenticate: \x01",
        "proxy-authorization: a",
        "Proxy-Authorization: b",
    )
    parser = IcapParser()
    parser.receive(reqmod("X-SK-Asked: a", *copied))
    request = parser.next_event()
    assert isinstance(request, IcapRequest)
    assert request.headers.keys() == {"host", "encapsulated", "x-sk-asked"}


def events(parser: IcapParser, *, reads_on: bool = True) -> list[Event]:
    found: list[Event] = []
    while (event := parser.next_event()) is not None:
        found.append(event)
        if event is Mark.PREVIEW_ENDS and reads_on:
            parser.resume()
    return found


def parsed(*pieces: bytes) -> list[Event]:
    """The events of what comes in pieces, its bytes joined.

    After a preview the body is read on.
    """
    parser = IcapParser()
    found: list[Event] = []
    for piece in pieces:
        parser.receive(piece)
        for event in events(parser):
            before = found[-1] if found else None
            if isinstance(event, bytes) and isinstance(before, bytes):
                found[-1] = before + event
            else:
                found.append(event)
    return found


def marks(found: list[Event]) -> list[object]:
    return [
        event.method if isinstance(event, IcapRequest) else event for event in found
    ]


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (OPTIONS, ["OPTIONS", Mark.REQUEST_ENDS]),
        (WITHOUT_BODY, ["REQMOD", Mark.REQUEST_ENDS]),
        (IN_PREVIEW, ["REQMOD", b"abcde", Mark.REQUEST_ENDS]),
        (OVER_PREVIEW, ["REQMOD", b"ab", Mark.PREVIEW_ENDS]),
        (
            OVER_PREVIEW + REST,
            ["REQMOD", b"ab", Mark.PREVIEW_ENDS, b"cde", Mark.REQUEST_ENDS],
        ),
        (WITHOUT_PREVIEW, ["REQMOD", b"abcde", Mark.REQUEST_ENDS]),
        (reqmod("Preview: 0") + b"0; ieof\r\n\r\n", ["REQMOD", Mark.REQUEST_ENDS]),
        (
            OPTIONS + WITHOUT_BODY,
            ["OPTIONS", Mark.REQUEST_ENDS, "REQMOD", Mark.REQUEST_ENDS],
        ),
    ],
)
def test_a_request_is_the_same_in_every_cut(sent: bytes, found: list[object]) -> None:
    assert marks(parsed(sent)) == found
    for cut in range(1, len(sent)):
        assert marks(parsed(sent[:cut], sent[cut:])) == found
    assert (
        marks(parsed(*(sent[place : place + 1] for place in range(len(sent))))) == found
    )


def test_the_head_of_a_request_is_read() -> None:
    request = parsed(WITHOUT_BODY)[0]
    assert isinstance(request, IcapRequest)
    assert (request.has_body, request.has_preview, request.may_skip) == (
        False,
        True,
        True,
    )
    assert (request.headers["x-sk-bodies"], request.http) == ("r3,d", HTTP)
    http = parse_http(request.http)
    assert (http.method, http.target) == ("POST", "/v1/chat?x=1")
    assert http.headers == (("Host", "llm.example"), ("Accept", "a"), ("Accept", "b"))


@pytest.mark.parametrize(
    ("headers", "may_skip"),
    [((), False), (("Allow: trailers",), False), (("Allow: 204, trailers",), True)],
)
def test_without_a_preview_204_has_to_be_allowed(
    headers: tuple[str, ...], may_skip: bool
) -> None:
    request = parsed(reqmod(*headers))[0]
    assert isinstance(request, IcapRequest)
    assert request.may_skip is may_skip


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://a.example", "/"),
        ("http://a.example?q=/x", "?q=/x"),
        ("https://a.example:8443/x?y", "/x?y"),
        ("/x", "/x"),
    ],
)
def test_the_target_is_path_and_query(url: str, target: str) -> None:
    assert parse_http(f"GET {url} HTTP/1.1\r\n\r\n".encode()).target == target


def test_a_request_ends_with_its_preview_where_it_was_answered_then() -> None:
    parser = IcapParser()
    parser.receive(OVER_PREVIEW)
    assert events(parser, reads_on=False)[-1] is Mark.PREVIEW_ENDS
    assert not parser.is_idle
    parser.finish()
    assert parser.is_idle
    parser.receive(WITHOUT_BODY)
    assert marks(events(parser)) == ["REQMOD", Mark.REQUEST_ENDS]


MALFORMED = {
    "another method": b"RESPMOD icap://x/ ICAP/1.0\r\n\r\n",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another version": OPTIONS.replace(b"ICAP/1.0", b"ICAP/1.1"),
    "a header twice": reqmod("Preview: 0", "preview: 5"),
    "a folded header": reqmod("X-A: 1", " 2"),
    "a bare line feed": reqmod("X-A: 1\nX-B: 2"),
    "no encapsulated": (FIRST + "\r\n").encode(),
    "a body of OPTIONS": OPTIONS.replace(
        b"Allow: trailers", b"Encapsulated: opt-body=0"
    ),
    "an encapsulated response": reqmod().replace(b"req-hdr", b"res-hdr"),
    "a wrong length of the head": reqmod().replace(
        f"body={len(HTTP)}".encode(), b"body=20"
    ),
    "an empty head": reqmod(http=b""),
    "a head that is too long": reqmod(http=b"x" * 200_000),
    "an endless head": FIRST.encode() + b"X-A: 1\r\n" * 10_000,
    "no length of a chunk": reqmod() + b"\r\n",
    "a negative length": reqmod() + b"-1\r\n",
    "a long length": reqmod() + b"0" * 9 + b"\r\n",
    "an endless line of a chunk": reqmod() + b"5;" + b"x" * 100,
    "another extension": reqmod("Preview: 5") + b"0; xeof\r\n\r\n",
    "ieof beside bytes": reqmod("Preview: 5") + b"2; ieof\r\nab\r\n",
    "ieof without a preview": reqmod() + b"0; ieof\r\n\r\n",
    "a chunk that is too long": reqmod() + b"2\r\nabc\r\n",
    "a trailer": reqmod() + b"0\r\nX-A: 1\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_what_squid_does_not_send_is_refused_in_every_cut(sent: bytes) -> None:
    with pytest.raises(InvalidIcap):
        parsed(sent)
    with pytest.raises(InvalidIcap):
        parsed(*(sent[place : place + 7] for place in range(0, len(sent), 7)))


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://x/ HTTP/1.1\r\nX\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\nA: 1\r\n b\r\n\r\n",
        b"GET  http://x/ HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\nA : 1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\nA: 1\nB: 2\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_a_malformed_http_head_is_refused(head: bytes) -> None:
    with pytest.raises(InvalidIcap):
        parse_http(head)


@few_and_many(200, 20_000)
def test_any_bytes_are_parsed_alike_in_any_pieces_or_refused(examples: int) -> None:
    whole = st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [OPTIONS, WITHOUT_BODY, IN_PREVIEW, OVER_PREVIEW, REST, WITHOUT_PREVIEW]
            ),
            st.sampled_from(
                [b"0\r\n\r\n", b"3\r\n", b"0; ieof\r\n\r\n", b"\r\n", FIRST.encode()]
            ),
        ),
        max_size=5,
    ).map(b"".join)

    def outcome(pieces: list[bytes]) -> list[object]:
        found: list[Event] = []
        try:
            found = parsed(*pieces)
        except InvalidIcap:
            return ["refused"]
        return marks(found)

    def check(sent: bytes, cuts: list[int]) -> None:
        places = sorted({min(cut, len(sent)) for cut in cuts} | {0, len(sent)})
        pieces = [sent[start:end] for start, end in pairwise(places)]
        assert outcome(pieces) == outcome([sent])

    hold_for(check, whole, st.lists(st.integers(0, 900), max_size=8), examples=examples)


@given(st.binary(max_size=200))
def test_a_chunk_is_read_as_it_was_written(data: bytes) -> None:
    assert marks(parsed(reqmod() + format_chunk(data) + b"0\r\n\r\n")) == [
        "REQMOD",
        *([data] if data else []),
        Mark.REQUEST_ENDS,
    ]


def test_the_answers_are_those_of_rfc_3507() -> None:
    told = {"X-SK-Rule": "chat"}
    assert format_unchanged(told).startswith(
        b'ICAP/1.0 204 No Content\r\nISTag: "squidkeeper"\r\nX-SK-Rule: chat\r\n'
    )
    echo = format_echo(HTTP, told)
    assert (
        f"\r\nEncapsulated: req-hdr=0, req-body={len(HTTP)}\r\n\r\n".encode() + HTTP
        in echo
    )
    answer = format_answer(b"HTTP/1.1 403 Forbidden\r\n\r\n", b"no", told)
    assert answer.endswith(
        b"\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n2\r\nno\r\n0\r\n\r\n"
    )
    assert b"Encapsulated: res-hdr=0, res-body=26\r\n" in answer
    assert b"\r\nConnection: close\r\n" in format_malformed()


def test_the_options_keep_squid_from_its_two_faults() -> None:
    lines = format_options().decode().split("\r\n")
    assert {
        "Preview: 65535",
        "Transfer-Preview: *",
        "Allow: 204",
        "Methods: REQMOD",
    } <= {*lines}
    assert not any(line.startswith("Max-Connections") for line in lines)
