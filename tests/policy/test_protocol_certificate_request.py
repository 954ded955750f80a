"""Squid's requests for the certificates of hosts."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidLine
from squidkeeper.policy.protocol.certificate_request import (
    REQUEST_LIMIT,
    LeafReply,
    LeafRequest,
    LeafRequestBuffer,
    Signing,
    format_leaf_reply,
    leaf_channel,
    parse_leaf_request,
)
from squidkeeper.policy.protocol.lines import Result

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB+/09==\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"
OTHER = CERTIFICATE.replace(b"MIIB", b"MIIC")
END = b"\nSign=signTrusted\nSignHash=SHA256\n" + CERTIFICATE + KEY


def request(body: bytes) -> bytes:
    return b"new_certificate %d %b" % (len(body), body)


A = LeafRequest("a.example", Signing.TRUSTED, "SHA256", CERTIFICATE, KEY)
EC_KEY = KEY.replace(b"PRIVATE", b"EC PRIVATE")
BODIES = {
    b"host=a.example" + END: A,
    b"host=[::1]" + END: replace(A, host="[::1]"),
    b"host=a.example" + END + b" " + OTHER: replace(A, origin=OTHER),
    b"host=a.example" + END.replace(b"Trusted", b"Untrusted"): replace(
        A, signing=Signing.UNTRUSTED
    ),
    b"host=a.example" + END.replace(b"signTrusted", b"signSelf"): replace(
        A, signing=Signing.SELF
    ),
    b"host=a.example\nsetCommonName=a.example\nsetValidAfter=on\nsetValidBefore=on"
    + END: replace(A, replaces_names=True, ignores_start=True, ignores_end=True),
    b"host=a.example\nsetValidAfter=on" + END: replace(A, ignores_end=True),
    b"host=a.example"
    + END.replace(KEY, EC_KEY).replace(b"SHA256", b"RSA-SHA512"): replace(
        A, hash_name="RSA-SHA512", key=EC_KEY
    ),
}


@pytest.mark.parametrize(("body", "wanted"), BODIES.items())
def test_a_request_is_parsed(body: bytes, wanted: LeafRequest) -> None:
    assert parse_leaf_request(request(body)) == wanted
    assert parse_leaf_request(b"12 " + request(body)) == wanted


HOSTILE = [  # server names that a client can give, and what Squid adds to them
    b"a\n-----BEGIN CERTIFICATE-----\n",
    b"a\nSign=signTrusted",
    b"a\nSign=signTrusted\nSignHash=SHA256\n" + CERTIFICATE + KEY,
    b"a" + END + b" -----BEGIN CERTIFICATE-----\n",
    b"a" + END + b" " + OTHER,
    b"a b",
    b"a\tb",
    b"a\x00b",
    b"\xff\xfe",
    b"",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "end", [END, END.replace(b"signTrusted", b"signSelf") + b" " + OTHER]
)
def test_a_server_name_that_holds_lines_of_the_protocol_is_a_name(
    name: bytes, end: bytes
) -> None:
    wanted = parse_leaf_request(request(b"host=" + name + end))
    expected = parse_leaf_request(request(b"host=x" + end))
    assert wanted == replace(expected, host=name.decode("utf-8", "replace"))


@given(
    st.binary(max_size=300),
    st.sampled_from(["signTrusted", "signUntrusted", "signSelf"]),
    st.booleans(),
)
def test_no_server_name_chooses_how_its_certificate_is_signed(
    name: bytes, signing: str, mimics: bool
) -> None:
    end = (
        b"\nSign=%b\nSignHash=SHA256\n%b%b" % (signing.encode(), CERTIFICATE, KEY)
        + (b" " + OTHER) * mimics
    )
    wanted = parse_leaf_request(request(b"host=" + name + end))
    assert wanted.host == name.decode("utf-8", "replace")
    assert (wanted.signing, wanted.ca, wanted.key) == (signing, CERTIFICATE, KEY)
    assert wanted.origin == (OTHER if mimics else None)


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        (b"", "not a request"),
        (b"new_certificate", "not a request"),
        (b"new_certificate x y", "not a request"),
        (b"1 new_certificate", "expected new_certificate LENGTH BODY"),
        (b"x new_certificate 3 abc", "not a request"),
        (b"1 new_certificate 3 abc", "does not end with"),
        (b"new_certificate 3 abc", "does not end with"),
        (b"new_certificate 0 ", "does not end with"),
        (b"new_certificate 4 abc", "longer than"),
        (request(b"host=a" + END[:-9]), "does not end with"),
        (request(b"host=a" + END.replace(KEY, b"")), "does not end with"),
        (
            request(b"host=a" + END.replace(b"\nSign=signTrusted", b"")),
            "does not end with",
        ),
        (request(b"host=a" + END + b"more"), "does not end with"),
        (
            request(b"host=a" + END.replace(b"signTrusted", b"signAll")),
            "Sign is none of",
        ),
        (request(END[1:]), "does not end with"),
        (request(b"name=a" + END), "does not begin with"),
    ],
)
def test_what_is_no_request_is_refused_with_what_it_lacks(
    text: bytes, lacks: str
) -> None:
    with pytest.raises(InvalidLine, match=lacks):
        parse_leaf_request(text)


@pytest.mark.parametrize(
    ("reply", "written"),
    [
        (LeafReply(Result.OK, b"pem"), b"OK 3 pem\x01"),
        (LeafReply(Result.ERR, b"why not"), b"ERR 7 why not\x01"),
    ],
)
def test_a_reply_has_its_length_and_ends_with_a_byte_1(
    reply: LeafReply, written: bytes
) -> None:
    assert format_leaf_reply(reply) == written


@pytest.mark.parametrize(
    ("text", "channel"),
    [(b"17 " + request(b""), b"17"), (request(b""), b""), (b"1 x", b"")],
)
def test_a_reply_has_the_channel_id_of_its_request(text: bytes, channel: bytes) -> None:
    assert leaf_channel(text) == channel
    assert (
        format_leaf_reply(LeafReply(Result.ERR, b"no"), channel)
        == (channel + b" " + b"ERR 2 no\x01").strip()
    )


def test_neither_the_key_nor_a_reply_shows_in_a_traceback() -> None:
    wanted = parse_leaf_request(request(b"host=a" + END))
    assert "PRIVATE" not in repr(wanted)
    assert "PRIVATE" not in repr(LeafReply(Result.OK, KEY))


# ── Cutting ───────────────────────────────────────────────────────────────────────────

BODY = st.one_of(st.sampled_from(sorted(BODIES)), st.binary(max_size=50))


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Feed a stream in pieces of these sizes, and then its rest."""
    buffer, found = LeafRequestBuffer(), []
    for size in sizes:
        found += buffer.feed(stream[:size])
        stream = stream[size:]
    return found + buffer.feed(stream)


@given(st.lists(BODY, max_size=6), st.lists(st.integers(1, 400), max_size=30))
def test_every_request_is_cut_once_however_it_arrives(
    bodies: list[bytes], sizes: list[int]
) -> None:
    requests = [
        b"%d " % number * (number % 2) + request(body)
        for number, body in enumerate(bodies)
    ]
    assert cut(b"".join(request + b"\n" for request in requests), sizes) == requests


@given(
    st.lists(
        st.binary(min_size=1, max_size=80).map(lambda text: text.replace(b"\n", b"x")),
        max_size=5,
    ),
    st.lists(st.integers(1, 60), max_size=30),
)
def test_lines_of_garbage_are_cut_once_each_and_the_next_request_is_whole(
    lines: list[bytes], sizes: list[int]
) -> None:
    garbage = [
        line
        for line in lines
        if line.strip() and not line.startswith(b"\r") and b"new_" not in line
    ]
    wanted = request(min(BODIES))
    found = cut(b"".join(line + b"\n" for line in garbage) + wanted + b"\n", sizes)
    assert found[-1] == wanted
    assert len(found) == len(garbage) + 1
    for one, line in zip(found, garbage, strict=False):
        assert line.startswith(one)


@given(st.binary(max_size=2000), st.lists(st.integers(1, 100), max_size=30))
def test_no_bytes_break_it(stream: bytes, sizes: list[int]) -> None:
    cut(stream, sizes)


@pytest.mark.parametrize("length", [REQUEST_LIMIT + 1, 5_000_000])
def test_a_request_over_the_limit_is_answered_at_once_and_never_held(
    length: int,
) -> None:
    buffer, wanted = LeafRequestBuffer(), request(min(BODIES))
    tracemalloc.start()
    [header] = buffer.feed(b"new_certificate %d " % length)
    for _ in range(length // 50_000):
        assert buffer.feed(b"x" * 50_000) == []
    assert buffer.feed(b"x" * (length % 50_000) + b"\n" + wanted) == [wanted]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * REQUEST_LIMIT
    with pytest.raises(InvalidLine, match="longer than"):
        parse_leaf_request(header)


def test_a_line_without_end_is_answered_once_and_never_held() -> None:
    buffer, wanted = LeafRequestBuffer(), request(min(BODIES))
    tracemalloc.start()
    assert len(buffer.feed(b"x" * 50_000)) == 1
    for _ in range(100):
        assert buffer.feed(b"x" * 50_000) == []
    assert buffer.feed(b"\n" + wanted) == [wanted]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < REQUEST_LIMIT


def test_what_a_torn_request_can_hold_is_bounded() -> None:
    buffer, held = LeafRequestBuffer(), 0
    buffer.feed(b"new_certificate %d " % REQUEST_LIMIT)
    for _ in range(100):
        buffer.feed(b"x" * 50_000)
        held = max(held, len(buffer._held))
    assert REQUEST_LIMIT - 50_000 < held < REQUEST_LIMIT + 100
