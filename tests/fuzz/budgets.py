"""Requests to model APIs: no server reads a longer answer, another model, or a stream
without its usage, in what is passed on.

An input is the body of a chat. The servers read JSON as Python does, in its lenient
ways too, with comments. They keep the first or the last of two members. They compare
names as they are, or as Go, Java and Google's APIs do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.usage.counting import MOST_TOKENS
from squidkeeper.policy.usage.forms import form_of
from squidkeeper.policy.usage.reserve import reserve_of, with_usage_asked

from .target import Target

CHAT = "/v1/chat/completions"
FORM = form_of("POST", CHAT)
OF_RULE = 100
GO = str.maketrans({"\u212a": "k", "\u017f": "s"})
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
Fold = Callable[[str], str]
Members = Callable[[list[tuple[str, Any]]], dict[str, Any]]
FOLDS: tuple[Fold, ...] = (
    str,
    lambda name: name.translate(GO).lower(),
    lambda name: name.lower().replace("_", "").replace("-", ""),
    lambda name: name.encode("ascii", "ignore").decode(),
)


def check(data: bytes) -> None:
    try:
        reserve = reserve_of(SentRequest("POST", CHAT, (), data), OF_RULE, FORM)
        asked = with_usage_asked(data, FORM)
    except UnreadableBody:
        return
    for read in readings(data):
        assert longest_answer(read) <= reserve.tokens_out, reserve
        model = read("model")
        assert not isinstance(model, str) or model in (*reserve.models, ""), reserve
    for read in readings(data if asked is None else asked):
        if read("stream") not in (None, False):
            options = read("stream_options")
            assert isinstance(options, dict)
            assert options.get("include_usage") is True


def readings(data: bytes) -> Iterator[Callable[[str], Any]]:
    """Yield what a server finds by the name of a member."""
    for errors, fold, step in product(("strict", "ignore"), FOLDS, (1, -1)):
        with suppress(ValueError, RecursionError):
            document = read_json(data.decode(errors=errors), members_by(fold, step))
            if isinstance(document, dict):
                yield partial(member, document, fold)


def read_json(text: str, members: Members) -> object:
    try:
        return json.loads(text, object_pairs_hook=members, strict=False)
    except ValueError:
        return json.loads(COMMENT.sub("", text), object_pairs_hook=members)


def member(document: dict[str, Any], fold: Fold, name: str) -> Any:
    return document.get(fold(name))


def members_by(fold: Fold, step: int) -> Members:
    """Keep the last of two members, with -1 the first."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {fold(name): value for name, value in pairs[::step]}
        if (asked := found.get(fold("include_usage"))) is not None:
            found["include_usage"] = asked
        return found

    return members


def longest_answer(read: Callable[[str], Any]) -> int:
    limits = [*numbers(read, "max_tokens", "max_completion_tokens")]
    choices = max(numbers(read, "n"), default=1)
    return min(max(limits, default=OF_RULE) * choices, MOST_TOKENS)


def numbers(read: Callable[[str], Any], *names: str) -> Iterator[int]:
    for value in map(read, names):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield value


def seeds() -> Iterable[bytes]:
    yield b'{"model": "m", "max_tokens": 5, "n": 2, "stream": false, "a": {"max_tokens": 9}}'
    yield b'{"model": "m", "stream": true, "stream_options": {"include_usage": false}}'
    for written in (
        '"max_tokens": 9000',
        '"MAX_TOKENS": 9000',
        '"maxTokens": 9000',
        '"max-tokens": 9000',
        '"max_to\u212aens": 9000',
        '"max_token\u017f": 9000',
        '"max_token\\u0073": 9000',
        '"max_tok\u00e9ens": 9000',
        '"max_completion_tokens": 9000',
        '"N": 9000',
        '"Model": "dear"',
        '"\u017ftream": false',
        '"STREAM": true',
        '"stream_options": {"include_usage": true, "Include_Usage": false}',
        '"stream_options": {"in\u212aclude_usage": false}',
        '"Stream_Options": null',
    ):
        yield b'{"model": "m", "max_tokens": 5, "stream": true, %b}' % written.encode()
        yield b'{%b, "max_tokens": 5, "model": "m"}' % written.encode()
        yield b"{%b}" % written.encode()
    yield b'{"max_tok\xffens": 9000, "max_tokens": 5}'
    yield b'{"a": 1 /*, "max_tokens": 5, "b": */}'
    yield b""


WORDS = (
    *(b'"max_tokens": 5', b'"max_tokens"', b'"n": 3', b'"model"', b'"stream": true'),
    *(b'"stream_options": null', b'"include_usage": true', b"K", b"S", b"9000"),
    *("\u212a".encode(), "\u017f".encode(), b"\\u0073", b"\xff", b"_", b"-"),
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"true", b"null"),
)
TARGET = Target(check, seeds, WORDS, longest_bytes=2048)
