"""JSON bodies: what is allowed is allowed in the reading of each server, and a part of
a body decides nothing else.

An input is a body. The servers are lenient: Python's own parser, which keeps the first
or the last of two members, finds a member by any case, takes one value for an array of
it, and decodes what is not UTF-8.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

from squidkeeper.policy.bodies.json_form import examine
from squidkeeper.policy.bodies.sent_request import BodyOutcome, Fit, SentRequest
from squidkeeper.policy.language.bodies import Allowed, JsonBody, Member

from .target import Target

MODEL = Member(("model",), Allowed(values=("small", "small-*")))
TOKENS = Member(("max_tokens",), Allowed(least=1, most=100, absent=True))
TOOLS = Member(("tools", "*", "type"), Allowed(values=("function",), absent=True))
BODY = JsonBody((MODEL, TOKENS, TOOLS), None, 2048)
NEVER = JsonBody((Member(("model",), Allowed(values=("\ue000",))),), None, 2048)
ENCODINGS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
)


def check(data: bytes) -> None:
    whole = judged(data)
    assert whole.fit in (Fit.HOLDS, Fit.FAILS, Fit.UNREADABLE)
    for end in {0, len(data) // 2, len(data) - 1} & set(range(len(data))):
        assert judged(data[:end], complete=False) in (
            BodyOutcome(Fit.NEEDS_MORE),
            whole,
        )
    for encoding, encode in ENCODINGS:
        if len(encode(data)) <= BODY.max_bytes:
            assert judged(encode(data), ("Content-Encoding", encoding)) == whole
    if whole.fit is Fit.UNREADABLE:
        return
    assert examine(NEVER, request(data), deny=True).fit in (Fit.FAILS, Fit.UNREADABLE)
    if whole.fit is Fit.HOLDS:
        for document in readings(data):
            assert is_allowed(document), document


def request(
    data: bytes, *headers: tuple[str, str], complete: bool = True
) -> SentRequest:
    return SentRequest(
        "POST", "/", (("Content-Type", "application/json"), *headers), data, complete
    )


def judged(
    data: bytes, *headers: tuple[str, str], complete: bool = True
) -> BodyOutcome:
    return examine(BODY, request(data, *headers, complete=complete), deny=False)


def readings(data: bytes) -> Iterator[dict[str, Any]]:
    for errors, step in product(("strict", "ignore", "surrogatepass"), (1, -1)):
        try:
            pairs = json.loads(
                data.decode(errors=errors),
                object_pairs_hook=list_of(step),
                strict=False,
            )
        except (ValueError, RecursionError):
            continue
        if isinstance(pairs, dict):
            yield pairs


def list_of(step: int) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Keep the last of two members of a name, in any case and without `_`; with -1 the
    first.
    """
    return lambda pairs: {
        name.casefold().replace("_", ""): value for name, value in pairs[::step]
    }


def is_allowed(document: dict[str, Any]) -> bool:
    model, tokens, tools = (
        document["model"],
        document.get("maxtokens", 1),
        document.get("tools"),
    )
    of_client = all(
        tool.get("type", "function") == "function" for tool in objects_in(tools)
    )
    return (
        (model == "small" or model.startswith("small-"))
        and 1 <= tokens <= 100
        and of_client
    )


def objects_in(value: object) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def seeds() -> Iterable[bytes]:
    yield b'{"model": "small", "max_tokens": 5, "tools": [{"type": "function"}, {}]}'
    yield b'{"model": "small-2", "text": "\\ud83d\\ude00 \\u0061\\\\u0000 \xc3\xa9", "n": [1, -2.5e3, null, true]}'
    for members in (
        b'"model": "large"',
        b'"Model": "large"',
        b'"m\\u006fdel": "large"',
        b'"max_tokens": 1e400',
        b'"MAX_TOKENS": 900',
        b'"maxTokens": 900',
        b'"max_tokens": 9007199254740993',
        b'"tools": {"type": "web_search"}',
        b'"tools": [{"type": "function", "type": "web_search"}]',
        b'"a": "\\ud800"',
        b'"a": "\\u0000"',
        b'"a": "\xff"',
        b'"a": NaN',
        b'"a": ' + b"[" * 99 + b"]" * 99,
    ):
        yield b'{"model": "small", %b}' % members
        yield b'{%b, "model": "small"}' % members
    yield b'\xef\xbb\xbf{"model": "small"}'
    yield b'{"model": "small"}{}'
    yield b""


WORDS = (
    b'"model"',
    b'"Model"',
    b'"tools"',
    b'"type"',
    b'"max_tokens"',
    b'"small"',
    b"\\u0000",
    b"\\ud800",
    b"1e400",
)
TARGET = Target(
    check,
    seeds,
    (*WORDS, b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\"),
    longest_bytes=2048,
)
