"""One connection of Squid's: it reads requests one after another, has each judged, and
answers.

A request is answered in one of three ways:

- 204, within the preview: Squid sends the request on with the body that it has kept,
  and this process reads no more.
- An echo, where more than the preview had to be read: all of the body passes through
  this process.
- A denial. The client is still sending: the rest is read first, because a client that
  is sending reads no answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Final, cast

from squidkeeper.base.errors import InvalidIcap
from squidkeeper.policy.engine import Decision
from squidkeeper.services.bodies.body_judgement import JUDGED_AT_ONCE, Judgement
from squidkeeper.services.bodies.body_question import AskedBody, asked_by
from squidkeeper.services.bodies.icap import (
    CONTINUE,
    LAST_CHUNK,
    PREVIEW,
    Event,
    IcapParser,
    IcapRequest,
    Mark,
    chunk_parts,
    format_answer,
    format_chunk,
    format_echo,
    format_malformed,
    format_options,
    format_unchanged,
    with_length,
)
from squidkeeper.services.bodies.judge import (
    DECIDE_SECONDS,
    EDITED,
    EDITED_SECONDS,
    LATE,
    TOO_MUCH,
    BodyJudge,
    SquidConnection,
)

REST_SECONDS: Final = 60.0  # in which the rest of a denied body is read
REST_BYTES: Final = 1 << 30
SILENT_SECONDS: Final = 30.0  # after Squid's icap_io_timeout
_HEADER_BYTES: Final = 200  # of memory, which a header takes beside its text


class _Stage(Enum):
    IDLE = auto()
    READING = auto()  # until the body, or what has come of it, decides
    ECHOING = auto()
    DENIED = auto()  # the rest is read and dropped, then the denial is sent
    ANSWERED = auto()  # the denial was sent, and there is still more, which is dropped


class IcapConnection(SquidConnection):
    """One connection of Squid's."""

    def __init__(self, judge: BodyJudge) -> None:
        self._judge = judge
        self._parser = IcapParser()
        self._transport: asyncio.Transport | None = None
        self._stage = _Stage.IDLE
        # for a judgement, or for the turn of a denial: no event is taken meanwhile
        self._waits = False
        self._full = False  # Squid reads more slowly than we write
        self._task: asyncio.Task[None] | None = None
        self._heard = time.monotonic()
        self._client = ""
        self._held = 0  # bytes that the room counts for that client
        self._begin()

    def _begin(self) -> None:
        self._request: IcapRequest | None = None
        self._asked: AskedBody | None = None
        self._head_size = 0  # bytes of memory
        # as far as it has come, and is not with `_asked` to be judged
        self._body = bytearray()
        self._judgement: Judgement | None = None
        self._judge_again_at = 0  # so many bytes of the body
        self._at_preview_end = self._continued = False
        self._rest = 0
        self._came = 0.0
        self._deadline: float | None = None

    # --- what asyncio calls -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._judge.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Drop what is held.

        A denial that waits for its turn still refers to this connection.
        """
        self._judge.connections.discard(self)
        self._transport = None
        self._release()
        self._hold(0)
        self._begin()
        self._parser = IcapParser()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes of Squid's."""
        self._heard = time.monotonic()
        self._parser.receive(data)
        self._advance()

    def pause_writing(self) -> None:
        """Read no more of a body than Squid takes back."""
        self._full = True
        self._regulate()

    def resume_writing(self) -> None:
        """Read on."""
        self._full, self._heard = False, time.monotonic()
        self._hold_written()
        self._regulate()

    # --- deadlines --------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End what takes too long; called once a second."""
        is_waiting = self._waits or (
            self._stage is _Stage.IDLE and self._parser.is_idle
        )
        if not is_waiting and now - self._heard > SILENT_SECONDS:
            self._abort()
        elif self._deadline is None or now < self._deadline or self._waits:
            return
        elif self._stage is _Stage.READING:
            self._refuse(LATE)
        elif self._stage is _Stage.DENIED:
            self._answer()
        else:
            self._abort()

    def drain(self) -> None:
        """Close the connection, after the answer to a request that is under way."""
        if (
            self._transport is not None
            and self._stage is _Stage.IDLE
            and self._parser.is_idle
        ):
            self._transport.close()

    # --- events -----------------------------------------------------------------------

    def _advance(self) -> None:
        try:
            while not self._waits and self._transport is not None:
                event = self._parser.next_event()
                if event is None:
                    break
                self._take(event)
        except InvalidIcap:
            self._write(format_malformed())
            self._close()
        self._regulate()

    def _take(self, event: Event) -> None:
        if isinstance(event, IcapRequest):
            self._take_request(event)
        elif isinstance(event, bytes):
            self._take_body(event)
        elif event is Mark.PREVIEW_ENDS:
            self._at_preview_end = True
            if self._stage is _Stage.READING:
                self._consider()
            else:
                self._read_on()
        else:
            self._take_end()

    def _take_request(self, request: IcapRequest) -> None:
        self._request = request
        if request.method == "REQMOD":
            self._stage, self._asked = _Stage.READING, asked_by(request)
            self._hold(0)
            self._client = self._asked.client
            self._head_size = 2 * len(request.http) + _HEADER_BYTES * len(
                self._asked.sent.headers
            )
            self._judge_again_at = PREVIEW if request.has_preview else JUDGED_AT_ONCE
            self._came = time.monotonic()
            self._deadline = self._came + DECIDE_SECONDS

    def _take_body(self, data: bytes) -> None:
        if self._stage is _Stage.ECHOING:
            self._write(format_chunk(data))
            self._hold_written()
        elif self._stage is _Stage.DENIED:
            self._rest += len(data)
            if self._rest > REST_BYTES:
                self._answer()
        elif self._stage is _Stage.READING and self._asked is not None:
            self._body += data
            if not self._hold(self._head_size + len(self._body)):
                self._refuse(TOO_MUCH)
            elif self._continued and len(self._body) >= self._judge_again_at:
                self._consider()

    def _take_end(self) -> None:
        if self._stage is _Stage.ECHOING:
            self._write(LAST_CHUNK)
            self._end()
        elif self._stage is _Stage.ANSWERED:
            self._end()
        elif self._asked is not None:
            self._asked.sent.complete = True
            if self._stage is _Stage.READING:
                self._consider()
            else:
                self._answer()
        else:
            self._write(format_options())
            self._end()

    # --- the judgement ----------------------------------------------------------------

    def _consider(self) -> None:
        """Have what has come of the body judged: at once, or by a thread where that may
        take long.
        """
        asked = self._asked
        if asked is None:
            return
        if not self._hold(self._head_size + len(self._body) + self._parser.buffered):
            self._refuse(TOO_MUCH)
            return
        asked.sent.body, self._body = bytes(self._body), bytearray()
        policy = self._judge.at_once(asked)
        if policy is None:
            self._wait_for(self._consider_later(asked))
        else:
            self._decide(self._judge.decide(policy, asked))

    async def _consider_later(self, asked: AskedBody) -> None:
        judgement = await self._judge.decide_later(asked)
        self._waits, self._task = False, None
        self._decide(judgement)
        self._advance()

    def _wait_for(self, work: Coroutine[None, None, None]) -> None:
        self._waits = True
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._check_task)

    def _check_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._judge.report(error)
            self._abort()  # Squid denies the request

    def _decide(self, judgement: Judgement | None) -> None:
        if self._asked is None:
            return
        if judgement is None and self._may_read_on(self._asked):
            self._body, self._asked.sent.body = bytearray(self._asked.sent.body), b""
            self._read_on()
        elif judgement is None:
            self._refuse(TOO_MUCH)
        elif judgement.allowed and self._is_outdated(self._asked):
            self._refuse(EDITED)
        elif judgement.meter is not None and not judgement.metered:
            self._wait_for(self._take_reserve(judgement, self._asked))
        elif judgement.allowed:
            self._pass_on(judgement)
        else:
            self._deny(judgement, self._asked)

    async def _take_reserve(self, judgement: Judgement, asked: AskedBody) -> None:
        """Have the reserve of a metered request taken; its body may be another one
        then.
        """
        judgement, body = await self._judge.settler.reserve(judgement, asked)
        self._waits, self._task = False, None
        if body is not None and self._request is not None:
            self._request = self._request._replace(
                http=with_length(self._request.http, len(body)), may_skip=False
            )
            asked.sent.body = body
        self._decide(judgement)
        self._advance()

    def _is_outdated(self, asked: AskedBody) -> bool:
        """Return whether a body has come so late that an edit applies to it."""
        return (
            time.monotonic() - self._came > EDITED_SECONDS
            and not self._judge.policies.is_in_force(asked.revision)
        )

    def _refuse(self, decision: Decision) -> None:
        if self._asked is not None:
            self._deny(self._judge.refused(decision, self._asked), self._asked)

    def _may_read_on(self, asked: AskedBody) -> bool:
        """Whether there is more that a rule may need; notes when it is judged again."""
        held = len(asked.sent.body)
        self._judge_again_at = min(
            2 * max(held, PREVIEW), max(held, asked.most_bytes) + 1
        )
        return not asked.sent.complete and held <= asked.most_bytes + PREVIEW

    def _read_on(self) -> None:
        if self._at_preview_end:
            self._at_preview_end, self._continued = False, True
            self._write(CONTINUE)
            self._parser.resume()

    # --- answers ----------------------------------------------------------------------

    def _pass_on(self, judgement: Judgement) -> None:
        """Let a request pass: by 204 where Squid has kept all that it has sent, else by
        an echo.
        """
        if self._request is None or self._asked is None or self._transport is None:
            return
        headers, is_whole = self._headers(judgement), self._asked.sent.complete
        if (
            self._request.may_skip
            and not self._continued
            and (is_whole or self._at_preview_end)
        ):
            self._write(format_unchanged(headers))
            if not is_whole:
                self._parser.finish()
            self._end()
            return
        self._stage, self._deadline = _Stage.ECHOING, None
        self._transport.writelines(
            [
                format_echo(self._request.http, headers),
                *chunk_parts(self._asked.sent.body),
            ]
        )
        self._release()
        self._hold_written()
        if is_whole:
            self._take_end()
        else:
            self._read_on()

    def _deny(self, judgement: Judgement, asked: AskedBody) -> None:
        """Keep the denial, and nothing of the request.

        It is sent once the client has sent the rest.
        """
        self._judgement = judgement
        if not self._hold(
            judgement.size
        ):  # the answer of a form may be as long as its body
            self._judgement = self._judge.refused(judgement.decision, asked)
            self._hold(self._judgement.size)
        self._release()
        if asked.sent.complete:
            self._answer()
        else:
            self._stage, self._deadline = _Stage.DENIED, time.monotonic() + REST_SECONDS
            self._read_on()

    def _answer(self) -> None:
        """Send a denial, at its client's turn."""
        if self._asked is not None:
            self._waits = True
            self._judge.turns.wait(
                self._asked.client, time.monotonic(), self._write_denial
            )

    def _write_denial(self) -> None:
        """Send a denial.

        What Squid sends after it is read too: closing now could lose the denial.
        """
        judgement, asked = self._judgement, self._asked
        if (
            self._transport is None
            or asked is None
            or judgement is None
            or judgement.answer is None
        ):
            return
        self._write(format_answer(*judgement.answer, self._headers(judgement)))
        self._judgement = None
        self._hold_written()
        self._waits, self._stage = False, _Stage.ANSWERED
        self._deadline = time.monotonic() + REST_SECONDS
        if asked.sent.complete:
            self._end()
        self._advance()

    def _headers(self, judgement: Judgement) -> dict[str, str]:
        return judgement.headers | (
            {"Connection": "close"} if self._judge.drains else {}
        )

    def _end(self) -> None:
        self._stage = _Stage.IDLE
        self._release()
        self._hold_written()
        self._begin()
        if self._judge.drains:
            self._close()

    def _release(self) -> None:
        """Drop what is held of the request."""
        self._body, self._request = bytearray(), None
        if self._asked is not None:
            self._asked.sent.release()

    def _hold(self, size: int) -> bool:
        """Have the bytes counted that are held now for the client; returns whether
        there is room for them.
        """
        more, self._held = size - self._held, size
        return self._judge.room.take(self._client, more)

    def _hold_written(self) -> None:
        """Have the bytes counted that Squid does not take yet, and nothing else."""
        self._hold(
            self._transport.get_write_buffer_size()
            if self._transport is not None and self._full
            else 0
        )

    # --- the transport ----------------------------------------------------------------

    def _regulate(self) -> None:
        """Read from Squid while something can be done with it."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._full or self._waits:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._waits = True

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
