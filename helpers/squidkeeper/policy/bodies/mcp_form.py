"""`mcp:`, the form of the Model Context Protocol: what may be called, and a denial that
its clients show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.json_form import (
    all_match,
    first_refusal,
    folded,
    text_matcher,
)
from squidkeeper.policy.bodies.mcp_messages import (
    RpcMessage,
    RpcMessages,
    read_messages,
)
from squidkeeper.policy.bodies.sent_request import (
    HOLDS,
    NEEDS_MORE,
    BodyOutcome,
    Fit,
    FormAnswer,
    SentRequest,
)
from squidkeeper.policy.language.bodies import McpBody, Member

DENIED: Final = -32010  # of the codes that MCP leaves to implementations
_MAX_ID_LENGTH: Final = 128  # of an id that an answer repeats
_EVENTS: Final = "text/event-stream"
Matches = Callable[[Iterable[str], str], bool]


def examine(body: McpBody, request: SentRequest, *, deny: bool) -> BodyOutcome:
    """Return whether a `mcp:` holds.

    In an allow every message of the request must be allowed. In a deny one call that
    matches is enough.
    """
    if not request.has_body:
        return (
            HOLDS
            if not deny and _is_of_session(request)
            else _fails("the request has no body")
        )
    if request.method != "POST" and not deny:
        return _fails("messages of MCP come by POST")
    try:
        messages = read_messages(request, body.max_bytes)
        if messages is None:
            return NEEDS_MORE
        return _denied(body, messages) if deny else _allowed(body, messages)
    except UnreadableBody as error:
        return BodyOutcome(Fit.UNREADABLE, str(error))


def answer(
    body: McpBody, request: SentRequest, rule: str, reason: str
) -> FormAnswer | None:
    """Return a denial as an error for each call; None for a request without a body.

    The SDKs end a session at most other answers. Where no id can be repeated the answer
    is plain text.
    """
    if not request.has_body:
        return None
    text = f"squidkeeper: denied by rule {rule}: {reason}"
    messages = _messages_to_answer(body, request)
    if messages is None:
        return FormAnswer(400, "text/plain; charset=utf-8", f"{text}\n".encode())
    error = {"code": DENIED, "message": text, "data": {"rule": rule, "reason": reason}}
    errors = [
        {"jsonrpc": "2.0", "id": message.id, "error": error}
        for message in messages.all
        if message.is_request
    ]
    if _accepts_events_alone(request):
        events = (f"event: message\ndata: {json.dumps(error)}\n\n" for error in errors)
        return FormAnswer(200, _EVENTS, "".join(events).encode())
    return FormAnswer(
        200,
        "application/json",
        json.dumps(errors if messages.is_batch else errors[0]).encode(),
    )


def _is_of_session(request: SentRequest) -> bool:
    """Return whether a request opens the stream of a session, or ends the session."""
    if "?" in request.target:
        return False
    if request.method == "DELETE":
        return len(request.values("mcp-session-id")) == 1
    return request.method == "GET" and _EVENTS in _accepted(request)


def _messages_to_answer(body: McpBody, request: SentRequest) -> RpcMessages | None:
    """Return the messages of a request; None where none of them has an id that an
    answer can repeat.
    """
    try:
        messages = read_messages(request, body.max_bytes)
    except UnreadableBody:
        return None
    lengths = (
        [len(str(message.id)) for message in messages.all if message.is_request]
        if messages
        else []
    )
    return messages if lengths and max(lengths) <= _MAX_ID_LENGTH else None


def _denied(body: McpBody, messages: RpcMessages) -> BodyOutcome:
    return (
        HOLDS
        if any(_is_denied(body, message) for message in messages.all)
        else _fails("no call matches")
    )


def _allowed(body: McpBody, messages: RpcMessages) -> BodyOutcome:
    refusal = next(
        filter(None, (_refusal(body, message) for message in messages.all)), None
    )
    return HOLDS if refusal is None else _fails(refusal)


def _refusal(body: McpBody, message: RpcMessage) -> str | None:
    """Return why an allow does not hold for a message; None where it does."""
    if message.always_passes:
        return None
    if message.is_tool_call:
        return _tool_refusal(body, message)
    return (
        None if _matches(body.methods, message.method) else "the method is not listed"
    )


def _tool_refusal(body: McpBody, message: RpcMessage) -> str | None:
    if not _matches(body.tools, message.tool):
        return "the tool is not listed"
    return first_refusal(_asked_params(body, message, _matches), message.params)


def _is_denied(body: McpBody, message: RpcMessage) -> bool:
    if not message.method:
        return False
    if _matches_folded(body.methods, message.method):
        return True
    is_listed = message.is_tool_call and _matches_folded(body.tools, message.tool)
    return is_listed and all_match(
        _asked_params(body, message, _matches_folded), message.params
    )


def _asked_params(body: McpBody, message: RpcMessage, matches: Matches) -> list[Member]:
    """Return what a rule asks of a call's `params`, by every name and glob that its
    tool matches.
    """
    asked = [
        members
        for tool, members in (body.arguments or {}).items()
        if matches((tool,), message.tool)
    ]
    return [
        Member(("arguments", *member.pointer), member.allowed)
        for members in asked
        for member in members
    ]


def _matches(globs: Iterable[str], name: str) -> bool:
    return any(text_matcher(glob)(name) for glob in globs)


def _matches_folded(globs: Iterable[str], name: str) -> bool:
    """Compare as a lenient server does."""
    return _matches(map(folded, globs), folded(name))


def _accepts_events_alone(request: SentRequest) -> bool:
    """Return whether a client takes an answer as Server-Sent Events and not as JSON."""
    accepted = _accepted(request)
    return (
        _EVENTS in accepted
        and not {"application/json", "application/*", "*/*"} & accepted
    )


def _accepted(request: SentRequest) -> set[str]:
    return {
        range_.partition(";")[0].strip().lower()
        for range_ in ",".join(request.values("accept")).split(",")
    }


def _fails(reason: str) -> BodyOutcome:
    return BodyOutcome(Fit.FAILS, reason)
