"""Stand-ins for APIs of models: a request says what its answer is to report, and how
the answer comes.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.usage.forms import form_of
from squidkeeper.policy.usage.reserve import reserve_of

from .gateway import Gateway
from .origin import Answer, Seen, Stream

JSON = {"Content-Type": "application/json"}


def event(data: dict[str, Any], name: str = "") -> bytes:
    return (
        f"event: {name}\n" if name else ""
    ).encode() + f"data: {json.dumps(data)}\n\n".encode()


def chat(spent: tuple[int, int], model: str = "gpt-x") -> dict[str, Any]:
    usage = {
        "prompt_tokens": spent[0],
        "completion_tokens": spent[1],
        "total_tokens": sum(spent),
    }
    return {
        "id": "c",
        "object": "chat.completion",
        "model": model,
        "choices": [],
        "usage": usage,
    }


def chat_events(spent: tuple[int, int], model: str) -> Iterator[bytes]:
    for word in ("Hello", " there", "."):
        yield event(
            {
                "id": "c",
                "model": model,
                "choices": [{"delta": {"content": word}}],
                "usage": None,
            }
        )
    yield event(chat(spent, model))
    yield b"data: [DONE]\n\n"


def messages(spent: tuple[int, int], model: str) -> dict[str, Any]:
    usage = {"input_tokens": spent[0], "output_tokens": spent[1]}
    return {"id": "m", "type": "message", "model": model, "content": [], "usage": usage}


def messages_events(spent: tuple[int, int], model: str) -> Iterator[bytes]:
    begun = {
        **messages(spent, model),
        "usage": {"input_tokens": spent[0], "output_tokens": 1},
    }
    yield event({"type": "message_start", "message": begun}, "message_start")
    yield event(
        {"type": "content_block_delta", "delta": {"text": "Hello"}},
        "content_block_delta",
    )
    yield event(
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": spent[1]}},
        "message_delta",
    )
    yield event({"type": "message_stop"}, "message_stop")


def gemini(spent: tuple[int, int], model: str) -> dict[str, Any]:
    usage = {
        "promptTokenCount": spent[0],
        "candidatesTokenCount": spent[1],
        "totalTokenCount": sum(spent),
    }
    return {"candidates": [], "usageMetadata": usage, "modelVersion": model}


def gemini_events(spent: tuple[int, int], model: str) -> Iterator[bytes]:
    yield event(gemini((spent[0], 1), model))
    yield event(gemini(spent, model))


CHAT, MESSAGES, GEMINI = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1beta/models/gemini-x:generateContent",
)
GEMINI_STREAM = "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
WHOLE = {CHAT: chat, MESSAGES: messages, GEMINI: gemini}
STREAMED = {CHAT: chat_events, MESSAGES: messages_events, GEMINI_STREAM: gemini_events}
FAMILIES = {CHAT: "gpt", MESSAGES: "claude", GEMINI: "gemini", GEMINI_STREAM: "gemini"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    `way`: whole, stream, cut (the origin breaks off), left (the client does), failed,
    untold.
    """

    target: str
    way: str
    spent: tuple[int, int]
    limit: int = 50
    pad: int = 0
    number: int = 0

    @property
    def body(self) -> bytes:
        told = {
            "model": f"x-{self.number}",
            "max_tokens": self.limit,
            "way": self.way,
            "spent": self.spent,
        }
        told |= {
            "generationConfig": {"maxOutputTokens": self.limit},
            "text": "x" * self.pad,
        }
        return json.dumps(told).encode()

    @property
    def path(self) -> str:
        """What is sent. Gemini's names the model, which counts where no answer does."""
        return self.target.replace("gemini-x", f"gemini-{self.number}")

    @property
    def model(self) -> str:
        """The model of its answer."""
        return f"{FAMILIES[self.target]}-{self.number}"

    @property
    def reserve(self) -> tuple[int, int]:
        sent = SentRequest(
            "POST", self.path, [("Content-Type", "application/json")], self.body
        )
        reserve = reserve_of(sent, 0, form_of("POST", self.path))
        return reserve.tokens_in, reserve.tokens_out


def answer(seen: Seen) -> Answer:
    """Answer as the request asks."""
    said = json.loads(seen.body)
    spent, way = (said["spent"][0], said["spent"][1]), said["way"]
    target = re.sub(r"gemini-\d+", "gemini-x", seen.target)
    target = re.sub(r"key=[^&]+&", "", target)
    model = said["model"].replace("x", FAMILIES[target])
    if way == "failed":
        return Answer(
            status=429, body=json.dumps(chat(spent, model)).encode(), headers=JSON
        )
    if way == "whole":
        return Answer(
            body=json.dumps(WHOLE[target](spent, model)).encode(), headers=JSON
        )
    events = tuple(STREAMED[target](spent, model))
    if way == "left":
        return Stream(events=(events[0], b": \n\n"), pause=20)
    if way == "cut":
        return Stream(events=events[:1], ends=False)
    if way == "untold":
        return Stream(events=(b"data: {}\n\n",))
    return Stream(events=events, pause=0.002)


def mixed(numbers: int, seed: int) -> list[Call]:
    """Make calls of all kinds, of which most go well."""
    chosen = random.Random(seed)
    ways = ["whole"] * 6 + ["stream"] * 8 + ["cut", "left", "left", "failed", "untold"]
    calls = []
    for number in range(numbers):
        way = chosen.choice(ways)
        target = chosen.choice([*(WHOLE if way == "whole" else STREAMED)])
        spent = (chosen.randrange(1, 400), chosen.randrange(2, 400))
        pad = chosen.choice([0, 10, 5_000, 90_000])
        calls.append(Call(target, way, spent, chosen.randrange(40, 60), pad, number))
    return calls


async def _send_all(
    gateway: Gateway,
    calls: list[Call],
    at_once: int,
    host: str,
    statuses: dict[int, int | None],
) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one(number: int, call: Call) -> None:
        async with gate:
            statuses[number] = await _send(gateway, call, host)

    async with asyncio.TaskGroup() as group:
        for number, call in enumerate(calls):
            group.create_task(one(number, call))


async def _send(gateway: Gateway, call: Call, host: str) -> int | None:
    """Send one call over plain HTTP. A client that leaves does so after the first
    event.
    """
    writer = None
    try:
        reader, writer = await asyncio.open_connection(*gateway.address)
        head = f"POST http://{host}{call.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(
            f"{head}Content-Length: {len(call.body)}\r\nConnection: close\r\n\r\n".encode()
            + call.body
        )
        answered = b""
        while data := await asyncio.wait_for(reader.read(65536), 60):
            answered += data
            if call.way == "left" and b"data:" in answered:
                return None
        head_part, _, body = answered.partition(b"\r\n\r\n")
        is_whole = body.endswith(b"0\r\n\r\n") or b"ontent-Length:" in head_part
        return int(head_part.split(b" ", 2)[1]) if answered and is_whole else None
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class Started:
    """Calls that were sent, so many at once, and are under way.

    `statuses` has those that have ended.
    """

    def __init__(
        self, gateway: Gateway, calls: list[Call], at_once: int, host: str
    ) -> None:
        self.statuses: dict[int, int | None] = {}
        work = _send_all(gateway, calls, at_once, host, self.statuses)
        self._thread = threading.Thread(target=asyncio.run, args=(work,))
        self._thread.start()

    def runs(self, seconds: float) -> bool:
        """Wait for the end for so long; return whether some are still under way."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def denied(self) -> int:
        return [*self.statuses.values()].count(403)


def start_all(
    gateway: Gateway, calls: list[Call], host: str = "llm.example", at_once: int = 1_000
) -> Started:
    """Send calls, and do not wait for them."""
    return Started(gateway, calls, at_once, host)


def send_all(
    gateway: Gateway, calls: list[Call], at_once: int
) -> dict[int, int | None]:
    """Send calls, so many at once; return the status of each, None where its answer did
    not come whole.
    """
    started = start_all(gateway, calls, at_once=at_once)
    started.runs(600)
    return started.statuses
