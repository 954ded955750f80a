"""Answers of model APIs: their usage is that of a plain reading, wherever they are cut.

The first byte of an input says which API the answer is of, and whether it is a stream.
The rest is its body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from squidkeeper.policy.usage.reader import reader_for
from squidkeeper.policy.usage.tokens import Unmetered, Usage
from tests.usage_samples import CHAT, TABLE, TYPES

from .target import Target

TARGETS = (
    CHAT,
    *dict.fromkeys(sample.target for sample in TABLE if sample.target != CHAT),
)
KINDS = tuple(TYPES.values())


def check(data: bytes) -> None:
    place, body = data[0] if data else 0, data[1:]
    target, is_stream = TARGETS[place // 2 % len(TARGETS)], place % 2 == 1
    outcome = read([body], target, is_stream=is_stream)
    half = len(body) // 2
    assert read([body[:half], body[half:]], target, is_stream=is_stream) == outcome
    assert (
        read(
            [body[at : at + 1] for at in range(len(body))], target, is_stream=is_stream
        )
        == outcome
    )
    usages = [*plain_usages(body, is_stream=is_stream)] if target == CHAT else [None]
    if isinstance(outcome, Usage) and None not in usages:
        last = usages[-1] or {}
        total = last.get("total_tokens") or 0
        assert outcome.tokens_in == last["prompt_tokens"]
        assert outcome.tokens_out == max(
            last.get("completion_tokens") or 0, total - outcome.tokens_in
        )


def read(pieces: Iterable[bytes], target: str, *, is_stream: bool) -> Usage | Unmetered:
    reader = reader_for("POST", target, 200, [("Content-Type", KINDS[is_stream])])
    for piece in pieces:
        reader.feed(piece)
    return reader.end(whole=True)


def plain_usages(body: bytes, *, is_stream: bool) -> Iterator[dict[str, Any] | None]:
    """Yield each usage of a chat; None for what is no JSON."""
    for text in plain_events(body) if is_stream else [body]:
        try:
            document = json.loads(text.decode())
        except (ValueError, RecursionError):
            yield None
            continue
        members = document.items() if isinstance(document, dict) else ()
        yield from (
            value
            for name, value in members
            if name.lower().replace("_", "") == "usage" and value is not None
        )


def plain_events(body: bytes) -> Iterator[bytes]:
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\r|\n", body.removeprefix(b"\xef\xbb\xbf")), b""]:
        if line.startswith(b"data:"):
            data.append(line[5:])
        elif not line and data:
            event, data = b"\n".join(data), []
            if b'"usage"' in event:
                yield event


def seeds() -> Iterable[bytes]:
    for sample in TABLE:
        place = 2 * TARGETS.index(sample.target) + sample.file.endswith(".sse")
        yield (
            bytes([place]) + sample.content[-2000:]
            if sample.file.endswith(".sse")
            else bytes([place]) + sample.content
        )
    usage = (
        b'{"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}'
    )
    yield b"\0" + usage
    yield b"\1data:" + usage.replace(b", ", b",\r\ndata: ") + b"\r\r"
    yield b"\1\xef\xbb\xbfdata:" + usage + b"\n\n: ping\n\ndata: [DONE]\n\n"


WORDS = (
    *(
        b"data: ",
        b"event: ",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b": ",
        b'"usage": ',
        b'"Usage"',
        b'"prompt_tokens": 1,',
        b"null",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b'"',
        b"\\",
        b"-1",
        b"1e9",
        b"true",
        b"x" * 5000,
        b"[" * 300,
    ),
)
TARGET = Target(check, seeds, WORDS, longest_bytes=8192)
