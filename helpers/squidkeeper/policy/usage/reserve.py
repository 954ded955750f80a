"""What a request may use: its reserve, by its body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.reading import read_content
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.usage.counting import MOST_TOKENS, read_text, read_value
from squidkeeper.policy.usage.forms import FORMS, UsageForm, model_in
from squidkeeper.policy.usage.members import (
    Found,
    MemberScanner,
    WantedMembers,
    path_of,
)
from squidkeeper.policy.usage.tokens import Reserve

BYTES_OF_A_TOKEN: Final = (
    4  # of a prompt, as https://help.openai.com/en/articles/4936856 has it for English
)
_READ_AT_MOST: Final = 32 << 20  # bytes of a body
_HIDING: Final = frozenset({"fields", "callback"})
_PIECE: Final = 64 << 10  # bytes
_ANY_LIMIT: Final = tuple(dict.fromkeys(name for form in FORMS for name in form.limits))
_ANY_CHOICES: Final = tuple(
    dict.fromkeys(name for form in FORMS for name in form.choices)
)
_ANY: Final = WantedMembers(("model", *_ANY_LIMIT, *_ANY_CHOICES))


def reserve_of(sent: SentRequest, reserve: int, form: UsageForm | None) -> Reserve:
    """Return what a request may use.

    The prompt is a token for every four bytes of the body, its images included. An
    answer is as long as the request allows; `reserve` tokens where it names no limit,
    and at least that many where the form is unknown. Each of several answers counts.
    Where the form is unknown, a body that cannot be read counts as it was sent, and
    names nothing. `UnreadableBody` where the form is known: the API could read another
    limit than is read here.
    """
    if form is not None and (form.uses_nothing or sent.method != "POST"):
        return Reserve("", 0, 0)
    if form is not None and form.query_hides_usage:
        _check_query(sent)
    content = _content(sent, form)
    found = _members(content, _ANY) if form is None else _plain_members(content, form)
    tokens_in = -(-len(content or sent.body) // BYTES_OF_A_TOKEN)
    model = (
        "" if form is None else model_in(form, sent.method, sent.target)
    ) or read_text(_written(found, "model"))
    return Reserve(
        model, min(tokens_in, MOST_TOKENS), _tokens_out(found, reserve, form)
    )


def _check_query(sent: SentRequest) -> None:
    """Refuse what Google's APIs take for another answer
    (https://cloud.google.com/apis/docs/system-parameters).
    """
    query = parse_qsl(
        sent.target.partition("?")[2].replace(";", "&"), keep_blank_values=True
    )
    parameters = [(name.strip("$ ").lower(), value) for name, value in query]
    hides = any(
        name in _HIDING or (name == "alt" and value.lower() not in ("sse", "json"))
        for name, value in parameters
    )
    if hides or any(
        name.lower().replace("_", "-") == "x-goog-fieldmask" for name, _ in sent.headers
    ):
        raise UnreadableBody("its answer is asked not to tell the usage")


def _tokens_out(found: Found, reserve: int, form: UsageForm | None) -> int:
    if form is not None and not form.tokens_out:
        return 0
    named = [*_numbers(found, _ANY_LIMIT if form is None else form.limits, form)]
    if form is None or not named:
        named.append(reserve)
    choices = max(
        _numbers(found, _ANY_CHOICES if form is None else form.choices, form), default=1
    )
    return min(max(named) * choices, MOST_TOKENS)


def _numbers(
    found: Found, names: tuple[str, ...], form: UsageForm | None
) -> Iterator[int]:
    """Yield what is set.

    Some APIs take 0 and less for no limit, and 64000.0 or "64000" for 64000.
    """
    for name in names:
        value = read_value(written := _written(found, name))
        if isinstance(value, int) and not isinstance(value, bool):
            yield from [value] if value > 0 else []
        elif form is not None and written != b"null":
            raise UnreadableBody(f"{name} is no whole number")


def _content(sent: SentRequest, form: UsageForm | None) -> bytes | None:
    try:
        return read_content(sent, _READ_AT_MOST)
    except UnreadableBody:
        if form is not None:
            raise
        return None


def _plain_members(content: bytes | None, form: UsageForm) -> Found:
    scanner = _scanned(content, form.asked)
    found = scanner.objects[0] if scanner.is_whole and scanner.objects else None
    if content and (
        found is None or not all(member.value for member in found.values())
    ):
        raise UnreadableBody("the body is not plain JSON")
    return found or {}


def _members(content: bytes | None, wanted: WantedMembers) -> Found:
    scanner = _scanned(content, wanted)
    return scanner.objects[0] if scanner.is_whole and scanner.objects else {}


def _scanned(content: bytes | None, wanted: WantedMembers) -> MemberScanner:
    """Read a content in pieces: no other thread runs while one is read."""
    scanner = MemberScanner(wanted)
    for start in range(0, len(content or b""), _PIECE):
        scanner.feed((content or b"")[start : start + _PIECE])
    return scanner


def _written(found: Found, name: str) -> bytes:
    member = found.get(path_of(name))
    return b"null" if member is None else member.value


# --- streams that are to report their usage -------------------------------------------

_OPTIONS: Final = "stream_options"
_STREAM: Final = WantedMembers(("stream", _OPTIONS))


def with_usage_asked(body: bytes, form: UsageForm | None) -> bytes | None:
    """Return the body of a stream of OpenAI's chat API with
    `stream_options.include_usage`; the rest stays as it is.

    None where it says so already, where it asks for no stream, and where it is not
    plain JSON. APIs take more than `true` for true.
    """
    found = _members(body, _STREAM) if form is not None and form.asks_usage else {}
    if _written(found, "stream") in (b"null", b"false"):
        return None
    there = _written(found, _OPTIONS)
    options = {} if there == b"null" else read_value(there)
    if not isinstance(options, dict) or options.get("include_usage") is True:
        return None
    written = json.dumps({**options, "include_usage": True}).encode()
    if (member := found.get(path_of(_OPTIONS))) is not None:
        return b"".join(
            (body[: member.start], written, body[member.start + len(member.value) :])
        )
    return body.replace(b"{", b'{"%b": %b, ' % (_OPTIONS.encode(), written), 1)
