"""What a request may use: its reserve, by its body."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.json_form import folded, outside_texts
from squidkeeper.policy.bodies.reading import read_content
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.usage.counting import MOST_TOKENS, read_text, read_value
from squidkeeper.policy.usage.forms import FORMS, UsageForm
from squidkeeper.policy.usage.members import (
    Found,
    MemberScanner,
    WantedMembers,
    path_of,
)
from squidkeeper.policy.usage.models import models_in
from squidkeeper.policy.usage.tokens import Reserve

BYTES_OF_A_TOKEN: Final = (
    4  # of a prompt, as https://help.openai.com/en/articles/4936856 has it for English
)
_READ_AT_MOST: Final = 32 << 20  # bytes of a body
_HIDING: Final = frozenset({"fields", "callback"})
_PIECE: Final = 64 << 10  # bytes
_LIMITS: Final = tuple(
    dict.fromkeys(
        # the last two are of servers with the paths of OpenAI's API
        (
            *(name for form in FORMS for name in form.limits),
            "max_new_tokens",
            "n_predict",
        )
    )
)
_CHOICES: Final = (
    "n",
    "best_of",
    "generationConfig.candidateCount",
    "generation_config.candidate_count",
)
_PROMPTS: Final = "prompt"
_ASKED: Final = WantedMembers(("model", _PROMPTS, *_LIMITS, *_CHOICES))
_NOT_PLAIN: Final = "the body is not plain JSON"


def reserve_of(sent: SentRequest, reserve: int, form: UsageForm | None) -> Reserve:
    """Return what a request may use.

    The prompt is a token for every four bytes of the body, its images included. An
    answer is as long as the request allows, by the limits that its API has; `reserve`
    tokens where it names none of them. The limit of another API makes it longer only. A
    limit of 0 and less is none to some servers: `reserve` tokens are then the least.
    Each of several answers counts. Where the form is unknown, `reserve` tokens are the
    least, and a body that cannot be read counts as it was sent, and names nothing.
    `UnreadableBody` where the form is known: the API could read another limit than is
    read here.
    """
    if form is not None and (form.uses_nothing or sent.method != "POST"):
        return Reserve(("",), 0, 0)
    if form is not None and form.query_hides_usage:
        _check_query(sent)
    content = _content(sent, form) or b""
    found = (
        _members(content, _ASKED) if form is None else _plain_members(content, _ASKED)
    )
    tokens_in = -(-len(content or sent.body) // BYTES_OF_A_TOKEN)
    answers = _choices(found, form) * _prompts(found, content)
    return Reserve(
        _models(sent, found),
        min(tokens_in, MOST_TOKENS),
        min(_longest_answer(found, reserve, form) * answers, MOST_TOKENS),
    )


def _models(sent: SentRequest, found: Found) -> tuple[str, ...]:
    """Return the models that the path and the body name: servers differ on which of
    them decides.
    """
    in_path, in_body = models_in(sent.target), read_text(_written(found, "model"))
    return (*in_path, in_body) if in_body or not in_path else in_path


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


def _longest_answer(found: Found, reserve: int, form: UsageForm | None) -> int:
    if form is not None and not form.tokens_out:
        return 0
    of_api = [*_numbers(found, form.limits, form)] if form is not None else []
    limits = [*(of_api or [reserve]), *_numbers(found, _LIMITS, form)]
    return max(limit if limit > 0 else reserve for limit in limits)


def _choices(found: Found, form: UsageForm | None) -> int:
    return max([1, *_numbers(found, _CHOICES, form)])


def _prompts(found: Found, content: bytes) -> int:
    """Return how many prompts a request has at most: each gets its answers.

    An array of numbers is one prompt, as tokens.
    """
    member = found.get(path_of(_PROMPTS))
    written = content[member.start : member.end] if member else b""
    if not written.startswith(b"["):
        return 1
    marks = b"".join(outside_texts(written))
    has_texts = b'"' in written
    return marks.count(b",") + 1 if has_texts else max(marks.count(b"[") - 1, 1)


def _numbers(
    found: Found, names: tuple[str, ...], form: UsageForm | None
) -> Iterator[int]:
    """Yield what is set. Some APIs take 64000.0 or "64000" for 64000."""
    for name in names:
        value = read_value(written := _written(found, name))
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif form is not None and written != b"null":
            raise UnreadableBody(f"{name} is no whole number")


def _content(sent: SentRequest, form: UsageForm | None) -> bytes | None:
    try:
        return read_content(sent, _READ_AT_MOST)
    except UnreadableBody:
        if form is not None:
            raise
        return None


def _plain_members(content: bytes, wanted: WantedMembers) -> Found:
    """Return the members of a document that every parser reads alike."""
    if not content:
        return {}
    scanner = _scanned(content, wanted)
    if not (_is_json(content) and scanner.is_whole and scanner.objects):
        raise UnreadableBody(_NOT_PLAIN)
    found = scanner.objects[0]
    if not all(found[path].value for path in found.keys() - {path_of(_PROMPTS)}):
        raise UnreadableBody(_NOT_PLAIN)
    return found


def _is_json(content: bytes) -> bool:
    """Return whether a content is JSON, of Unicode; nothing of it is kept."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in _pieces(content):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
        msgspec.json.decode(content, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return True


def _members(content: bytes, wanted: WantedMembers) -> Found:
    scanner = _scanned(content, wanted)
    return scanner.objects[0] if scanner.is_whole and scanner.objects else {}


def _scanned(content: bytes, wanted: WantedMembers) -> MemberScanner:
    scanner = MemberScanner(wanted)
    for piece in _pieces(content):
        scanner.feed(piece)
    return scanner


def _pieces(content: bytes) -> Iterator[bytes]:
    """Cut a content: no other thread runs while a piece is read."""
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


def _written(found: Found, name: str) -> bytes:
    member = found.get(path_of(name))
    return b"null" if member is None else member.value


# --- streams that are to report their usage -------------------------------------------

_OPTIONS: Final = "stream_options"
_INCLUDE: Final = "include_usage"
_STREAM: Final = WantedMembers(("stream", _OPTIONS))


def with_usage_asked(body: bytes, form: UsageForm | None) -> bytes | None:
    """Return the body of a stream of OpenAI's chat API with
    `stream_options.include_usage`; the rest stays as it is.

    None where it says so already, and where it asks for no stream. APIs take more than
    `true` for true. `UnreadableBody` where an API could read another option than is
    read here.
    """
    if form is None or not form.asks_usage:
        return None
    found = _plain_members(body, _STREAM)
    if _written(found, "stream") in (b"null", b"false"):
        return None
    options = _options(_written(found, _OPTIONS))
    if options.get(_INCLUDE) is True:
        return None
    written = json.dumps({**options, _INCLUDE: True}).encode()
    if (member := found.get(path_of(_OPTIONS))) is not None:
        end = member.start + len(member.value)
        return b"".join((body[: member.start], written, body[end:]))
    return body.replace(b"{", b'{"%b": %b, ' % (_OPTIONS.encode(), written), 1)


def _options(written: bytes) -> dict[str, object]:
    options = {} if written == b"null" else read_value(written)
    if isinstance(options, dict) and all(map(_is_plain_option, options)):
        return options
    raise UnreadableBody(f"{_OPTIONS} is not plain")


def _is_plain_option(name: str) -> bool:
    return name == _INCLUDE or (name.isascii() and folded(name) != folded(_INCLUDE))
