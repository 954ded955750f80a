"""Answers to metered requests, without a Squid: how they pass, and when they are
settled.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import InvalidIcap
from squidkeeper.policy.usage.tokens import Unmetered, Usage
from squidkeeper.record.usage_ledger import Amounts, MeteredRequest
from squidkeeper.services.bodies.answers import AnswerConnection
from squidkeeper.services.bodies.connection import IcapConnection
from squidkeeper.services.bodies.icap import CONTINUE, LAST_CHUNK, format_chunk
from squidkeeper.services.bodies.judge import BodyJudge, Room
from squidkeeper.services.bodies.new_connection import NewConnection
from squidkeeper.services.bodies.settlement import Metered

from .test_bodies_connection import Transport

METERED = Metered(
    MeteredRequest("gw.1.2.3", "192.0.2.1", "-", "chat", "abc", "llm.example"),
    "gpt-x",
    Amounts(5, 9, 2),
)
STREAM = (
    b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\ndata: [DONE]\n\n'
)
PREVIEW_ENDS = b"0\r\n\r\n"


class Settled:
    """What was settled."""

    def __init__(self) -> None:
        self.all: list[tuple[Metered, Usage | Unmetered, bool]] = []

    def settle(
        self, metered: Metered, outcome: Usage | Unmetered, *, whole: bool
    ) -> None:
        self.all.append((metered, outcome, whole))


class Service:
    """A connection, and what its process has."""

    def __init__(self) -> None:
        self.settled = Settled()
        self.judge = SimpleNamespace(
            connections=set(), drains=False, settler=self.settled, room=Room()
        )
        self.connection = AnswerConnection(cast(BodyJudge, self.judge))
        self.transport = Transport()
        self.connection.connection_made(cast(asyncio.Transport, self.transport))

    def receive(self, data: bytes) -> bytes:
        self.connection.data_received(data)
        return self.transport.take()

    @property
    def wholes(self) -> list[bool]:
        return [whole for _, _, whole in self.settled.all]


def answered(
    status: str = "200 OK",
    *headers: str,
    body: str = "res",
    metered: str = "",
    preview: bool = True,
    allow: str = "",
) -> bytes:
    sent = b"POST https://llm.example/v1/chat/completions HTTP/1.1\r\nHost: llm.example\r\n\r\n"
    http = "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()
    metered = metered or METERED.format().replace(" ", "%20")
    lines = ["RESPMOD icap://127.0.0.1:344/usage ICAP/1.0", f"X-SK-Metered: {metered}"]
    lines += [
        *(["Preview: 0"] if preview else []),
        *([f"Allow: {allow}"] if allow else []),
    ]
    lines += [
        f"Encapsulated: req-hdr=0, res-hdr={len(sent)}, {body}-body={len(sent) + len(http)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + sent + http


def test_each_event_passes_when_it_comes() -> None:
    service = Service()
    assert service.receive(answered("200 OK", "Content-Type: text/event-stream")) == b""
    begun = service.receive(PREVIEW_ENDS)
    assert begun.startswith(CONTINUE + b"ICAP/1.0 200 OK\r\n")
    assert begun.endswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        assert service.receive(format_chunk(event)) == format_chunk(event)
    # not held until the chunk is whole
    assert service.receive(b"5\r\nda") == format_chunk(b"da")
    assert service.receive(b"ta:\r\n") == format_chunk(b"ta:")
    assert service.wholes == []
    assert service.receive(LAST_CHUNK) == LAST_CHUNK
    assert service.wholes == [True]
    assert service.settled.all[0][0] == METERED


def test_a_usage_is_read_wherever_squid_cuts_the_answer() -> None:
    whole = PREVIEW_ENDS + format_chunk(STREAM) + LAST_CHUNK
    for place in range(len(whole)):
        service = Service()
        service.receive(answered("200 OK", "Content-Type: text/event-stream"))
        service.receive(whole[:place])
        service.receive(whole[place:])
        [(_, outcome, _)] = service.settled.all
        assert isinstance(outcome, Usage)
        assert (outcome.tokens_in, outcome.tokens_out) == (3, 4)


@pytest.mark.parametrize(
    ("status", "length"),
    [("204 No Content", ()), ("304 Not Modified", ("Content-Length: 9",))],
)
def test_an_answer_without_a_body_passes_unchanged(
    status: str, length: tuple[str, ...]
) -> None:
    service = Service()
    assert service.receive(answered(status, *length, body="null")).startswith(
        b"ICAP/1.0 204 "
    )
    assert service.wholes == [True]


def test_an_answer_that_squid_does_not_keep_is_sent_back() -> None:
    service = Service()
    sent = service.receive(answered("204 No Content", body="null", preview=False))
    assert sent.startswith(b"ICAP/1.0 200 OK\r\n")
    assert b"res-hdr=0, null-body=" in sent
    body = service.receive(answered(preview=False) + format_chunk(b"x") + LAST_CHUNK)
    assert body.endswith(b"HTTP/1.1 200 OK\r\n\r\n" + format_chunk(b"x") + LAST_CHUNK)
    assert service.wholes == [True, True]


def test_an_answer_with_an_empty_body_ends_with_its_preview() -> None:
    service = Service()
    assert service.receive(answered() + b"0; ieof\r\n\r\n").startswith(b"ICAP/1.0 204 ")
    assert service.wholes == [True]


def test_an_answer_is_not_whole_when_the_client_leaves_or_the_origin_breaks_off() -> (
    None
):
    service = Service()
    service.receive(
        answered("200 OK", "Content-Length: 10")
        + PREVIEW_ENDS
        + format_chunk(b"12345")
        + LAST_CHUNK
    )
    service.receive(answered() + PREVIEW_ENDS + format_chunk(b"12345"))
    service.connection.connection_lost(None)
    service.connection.connection_lost(None)
    assert service.wholes == [False, False]
    assert service.judge.connections == set()


def test_a_silent_answer_is_kept_alive_without_a_change_of_its_body() -> None:
    service = Service()
    service.receive(answered() + PREVIEW_ENDS)
    service.connection.check(service.connection._wrote + 4)
    assert service.transport.take() == b""
    service.connection.check(service.connection._wrote + 6)
    assert service.transport.take() == b"0"
    # Squid reads the length 01b
    assert service.receive(format_chunk(b"x" * 27)) == format_chunk(b"x" * 27)
    service.receive(LAST_CHUNK)
    service.connection.check(service.connection._wrote + 1_000)
    assert service.transport.take() == b""


@pytest.mark.parametrize(
    "data",
    [
        answered(metered="x"),
        answered(
            metered=METERED.format().replace(" ", "%20").replace("5%20", "five%20")
        ),
        answered("x y"),
        answered().replace(b"RESPMOD", b"REQMOD"),
        answered().replace(b"res-hdr=", b"res-hdr=9"),
    ],
)
def test_what_is_no_answer_of_squids_is_refused(data: bytes) -> None:
    service = Service()
    assert service.receive(data + PREVIEW_ENDS).startswith(b"ICAP/1.0 400 ")
    assert service.transport.closed
    assert service.settled.all == []


def test_its_options_ask_for_an_empty_preview() -> None:
    options = (
        Service()
        .receive(b"OPTIONS icap://127.0.0.1:344/usage ICAP/1.0\r\n\r\n")
        .decode()
    )
    assert {"Methods: RESPMOD", "Preview: 0", "Transfer-Preview: *"} < {
        *options.split("\r\n")
    }


def test_a_process_that_drains_answers_to_the_end() -> None:
    service = Service()
    service.receive(answered() + PREVIEW_ENDS)
    service.judge.drains = True
    service.connection.drain()
    assert not service.transport.closed
    service.receive(LAST_CHUNK)
    assert service.transport.closed


def test_reading_stops_while_squid_takes_nothing_and_what_waits_counts_for_the_client() -> (
    None
):
    service = Service()
    service.receive(answered() + PREVIEW_ENDS)
    service.transport.left = 70_000
    service.connection.pause_writing()
    assert not service.transport.reads
    assert service.judge.room._held == {"192.0.2.1": 70_000}
    service.receive(LAST_CHUNK)
    service.connection.resume_writing()
    assert service.transport.reads
    service.receive(answered() + PREVIEW_ENDS)
    service.connection.pause_writing()
    service.connection.connection_lost(None)
    assert service.judge.room.held == 0


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"OPTIONS icap://127.0.0.1:344/usage ICAP/1.0\r\n", AnswerConnection),
        (b"RESPMOD icap://127.0.0.1:344/usage ICAP/1.0\r\n", AnswerConnection),
        (b"OPTIONS icap://127.0.0.1:344/ ICAP/1.0\r\n", IcapConnection),
        (b"REQMOD icap://127.0.0.1:344/ ICAP/1.0\r\n", IcapConnection),
        (b"x" * 2_000, IcapConnection),
    ],
)
def test_the_first_line_names_who_answers(
    line: bytes, kind: type[asyncio.Protocol]
) -> None:
    judge = SimpleNamespace(connections=set(), drains=False)
    chosen: list[asyncio.Protocol] = []
    transport = Transport()
    transport.set_protocol = chosen.append  # type: ignore[attr-defined]  # asyncio has it
    arriving = NewConnection(cast(BodyJudge, judge))
    arriving.connection_made(cast(asyncio.Transport, transport))
    arriving.data_received(line[:10])
    assert chosen == []
    arriving.data_received(line[10:])
    assert [type(one) for one in chosen] == [kind]


TOKENS = st.integers(0, 2**53 - 1)


@given(st.text(max_size=120), TOKENS, TOKENS, TOKENS)
def test_what_squid_keeps_of_a_request_is_read_back(
    model: str, tokens_in: int, tokens_out: int, cost: int
) -> None:
    kept = Metered(
        METERED.request, model, Amounts(tokens_in, tokens_out, cost)
    ).format()
    found = Metered.parse(kept)
    assert found.reserve == Amounts(tokens_in, tokens_out, cost)
    assert found.format() == kept


@given(st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        Metered.parse(text)
    except InvalidIcap:
        return
    assert text.count(" ") == 9
