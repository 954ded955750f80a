"""One connection of Squid's about answers to metered requests: each passes on as it
comes, while its usage is read.

Squid sends the heads of request and answer, then the answer's body in chunks (RESPMOD).
With any preview but an empty one Squid would hold a stream until its end.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final, cast
from urllib.parse import unquote

from squidkeeper.base.errors import InvalidIcap
from squidkeeper.policy.usage.reader import UsageReader, reader_for
from squidkeeper.services.bodies.icap import (
    CONTINUE,
    LAST_CHUNK,
    Event,
    IcapParser,
    IcapRequest,
    Mark,
    chunk_parts,
    format_malformed,
    format_options,
    format_response,
    format_unchanged,
    parse_fields,
    parse_http,
)
from squidkeeper.services.bodies.judge import BodyJudge, SquidConnection
from squidkeeper.services.bodies.settlement import Metered

_METERED: Final = "x-sk-metered"
_ALIVE_SECONDS: Final = (
    5.0  # Squid ends an answer of which nothing comes for icap_io_timeout
)
_ENCAPSULATED: Final = re.compile(
    r"req-hdr=0, res-hdr=(\d{1,6}), (res|null)-body=(\d{1,6})", re.ASCII
)
_STATUS: Final = re.compile(
    rb"HTTP/\d\.\d (\d{3})(?: [^\r\n]*)?\r\n((?:[^\r\n]+\r\n)*)\r\n"
)
_HEADER: Final = re.compile(rb"([^\x00-\x20\x7f:]+):([^\r\n]*)")
_LONGEST_HTTP: Final = 256 * 1024


class PassingAnswer:
    """An answer that passes: its head, and what is read of it."""

    def __init__(self, request: IcapRequest) -> None:
        place = _ENCAPSULATED.fullmatch(request.headers["encapsulated"])
        start = int(place[1]) if place else 0
        sent, self.head = parse_http(request.http[:start]), request.http[start:]
        found = _STATUS.fullmatch(self.head)
        if found is None:
            raise InvalidIcap("the head of an answer is not valid")
        headers = [
            (one[1].decode("latin-1").lower(), one[2].strip().decode("latin-1"))
            for one in _HEADER.finditer(found[2])
        ]
        self.metered = Metered.parse(unquote(request.headers.get(_METERED, "")))
        self.reader: UsageReader = reader_for(
            sent.method, sent.target, int(found[1]), headers
        )
        self.may_skip = request.may_skip
        self.has_body = request.has_body
        self._lengths = {value for name, value in headers if name == "content-length"}
        self._came = 0

    def feed(self, data: bytes) -> None:
        """Read a part of the body."""
        self._came += len(data)
        self.reader.feed(data)

    @property
    def is_whole(self) -> bool:
        """Whether as much has come as the origin has announced.

        Squid ends a broken answer as it ends any.
        """
        return not self.has_body or self._lengths <= {str(self._came)}


class AnswerConnection(SquidConnection):
    """One connection of Squid's, for RESPMOD."""

    def __init__(self, judge: BodyJudge) -> None:
        self._judge = judge
        self._parser = IcapParser(_parse_head)
        self._transport: asyncio.Transport | None = None
        self._answer: PassingAnswer | None = None
        self._passes = False  # the head of the answer was sent back
        self._wrote = 0.0
        self._held = 0  # bytes that the room counts for the client
        self._client = ""

    # --- what asyncio calls -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._judge.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Settle an answer that did not end: the client has left, or Squid
        was killed.
        """
        self._judge.connections.discard(self)
        self._transport = None
        self._hold(0)
        self._settle(whole=False)

    def data_received(self, data: bytes) -> None:
        """Take bytes of Squid's."""
        self._parser.receive(data)
        try:
            while (
                self._transport is not None
                and (event := self._parser.next_event()) is not None
            ):
                self._take(event)
        except InvalidIcap:
            self._write(format_malformed())
            self._close()

    def pause_writing(self) -> None:
        """Read no more than Squid takes back, and have what it does not take counted
        for the client.
        """
        if self._transport is not None:
            self._transport.pause_reading()
            self._hold(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Read on."""
        self._hold(0)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _hold(self, size: int) -> None:
        if size and self._answer is not None:
            self._client = self._answer.metered.request.client
        more, self._held = size - self._held, size
        if more:
            self._judge.room.take(self._client, more)

    # --- what the process calls -------------------------------------------------------

    def check(self, now: float) -> None:
        """Keep Squid from giving up a silent answer: a zero ahead of the length of the
        next chunk changes nothing.
        """
        if self._passes and now - self._wrote > _ALIVE_SECONDS:
            self._write(b"0")

    def drain(self) -> None:
        """Close the connection, after an answer that is under way."""
        if self._answer is None and self._parser.is_idle:
            self._close()

    # --- events -----------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, bytes):
            self._take_body(event)
        elif isinstance(event, IcapRequest):
            self._take_request(event)
        elif event is Mark.PREVIEW_ENDS:
            self._write(CONTINUE)
            self._parser.resume()
            self._pass_on()
        else:
            self._take_end()

    def _take_request(self, request: IcapRequest) -> None:
        if request.method == "RESPMOD":
            self._answer = PassingAnswer(request)
            if request.has_body and not request.has_preview:
                self._pass_on()

    def _pass_on(self) -> None:
        if self._answer is not None:
            self._passes = True
            self._write(
                format_response(
                    self._answer.head, self._headers(), has_body=self._answer.has_body
                )
            )

    def _take_body(self, data: bytes) -> None:
        if self._answer is not None and self._transport is not None:
            self._transport.writelines(chunk_parts(data))
            self._wrote = time.monotonic()
            self._answer.feed(data)

    def _take_end(self) -> None:
        if self._answer is None:
            self._write(format_options("RESPMOD", 0))
        elif self._passes:
            self._write(LAST_CHUNK)
        elif self._answer.may_skip:
            self._write(format_unchanged(self._headers()))
        else:
            self._pass_on()
        self._settle(whole=True)
        if self._judge.drains:
            self._close()

    def _settle(self, *, whole: bool) -> None:
        answer, self._answer, self._passes = self._answer, None, False
        if answer is not None:
            whole = whole and answer.is_whole
            self._judge.settler.settle(
                answer.metered, answer.reader.end(whole=whole), whole=whole
            )

    def _headers(self) -> dict[str, str]:
        return {"Connection": "close"} if self._judge.drains else {}

    # --- the transport ----------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
            self._wrote = time.monotonic()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _parse_head(head: bytes) -> tuple[IcapRequest, int]:
    """Parse the head of ICAP; returns the request without its HTTP heads, and their
    length.
    """
    method, headers = parse_fields(head)
    if method == "OPTIONS":
        return IcapRequest(
            method, headers, b"", has_body=False, has_preview=False, may_skip=False
        ), 0
    holds = _ENCAPSULATED.fullmatch(headers.get("encapsulated", ""))
    if (
        method != "RESPMOD"
        or holds is None
        or not 0 < int(holds[1]) < int(holds[3]) <= _LONGEST_HTTP
    ):
        raise InvalidIcap("Encapsulated is not valid, or its heads are too long")
    has_preview = "preview" in headers
    may_skip = has_preview or "204" in headers.get("allow", "")
    return IcapRequest(
        method, headers, b"", holds[2] == "res", has_preview, may_skip
    ), int(holds[3])
