"""What a `body:` asks, in words, and whether one asks as much as another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from squidkeeper.base.formatting import byte_size
from squidkeeper.policy.language.bodies import (
    MAX_BYTES,
    Allowed,
    Body,
    GitBody,
    JsonBody,
    McpBody,
    Member,
)

_NO_BOUND: Final = float("inf")


def body_text(body: Body) -> str:
    """Write what a body must be: `json /model: small, small-*; /max_tokens: at most
    4096, or absent`.
    """
    at_most = (
        "" if body.max_bytes == MAX_BYTES else f" (up to {byte_size(body.max_bytes)})"
    )
    match body:
        case JsonBody():
            return f"json {_json_text(body)}{at_most}"
        case GitBody():
            return f"git {_git_text(body)}{at_most}"
        case McpBody():
            return f"mcp {_mcp_text(body)}{at_most}"


def _json_text(body: JsonBody) -> str:
    only = (
        []
        if body.only is None
        else [f"only {', '.join(map(_pointer_text, body.only))}"]
    )
    return "; ".join([*map(_member_text, body.members), *only])


def _git_text(body: GitBody) -> str:
    parts = [f"push {', '.join(body.push)}"]
    parts += ["may delete"] if body.delete else []
    parts += [] if body.create else ["creates none"]
    parts += [f"options {', '.join(body.options)}"] if body.options else []
    return "; ".join(parts)


def _mcp_text(body: McpBody) -> str:
    parts = [f"tools {', '.join(body.tools)}"] if body.tools else []
    for tool, members in (body.arguments or {}).items():
        parts.append(f"arguments of {tool}: {', '.join(map(_member_text, members))}")
    parts += [f"methods {', '.join(body.methods)}"] if body.methods else []
    return "; ".join(parts)


def _member_text(member: Member) -> str:
    return f"{_pointer_text(member.pointer)}: {_allowed_text(member.allowed)}"


def _pointer_text(pointer: Iterable[str]) -> str:
    return "".join(
        f"/{token.replace('~', '~0').replace('/', '~1')}" for token in pointer
    )


def _allowed_text(allowed: Allowed) -> str:
    texts = [
        ", ".join(
            one if isinstance(one, str) else json.dumps(one)
            for one in allowed.values or ()
        )
    ]
    texts += (
        [f"at least {allowed.least:g}"]
        if allowed.least is not None and allowed.most is None
        else []
    )
    texts += (
        [f"at most {allowed.most:g}"]
        if allowed.most is not None and allowed.least is None
        else []
    )
    texts += (
        [f"{allowed.least:g} to {allowed.most:g}"]
        if None not in (allowed.least, allowed.most)
        else []
    )
    texts += ["absent"] if allowed.absent else []
    return " or ".join(filter(None, texts)) or "anything"


# --- which of two is narrower ---------------------------------------------------------


def is_narrower(narrow: Body | None, wide: Body | None) -> bool:
    """Whether each body that one `body:` of an allow takes is known to be taken by
    another one; None takes each.
    """
    if wide is None or narrow == wide:
        return True
    if narrow is None or narrow.max_bytes > wide.max_bytes:
        return False
    match narrow, wide:
        case JsonBody(), JsonBody():
            only = wide.only is None or (
                narrow.only is not None and {*narrow.only} <= {*wide.only}
            )
            return only and _are_narrower(narrow.members, wide.members)
        case GitBody(), GitBody():
            flags = (wide.delete or not narrow.delete) and (
                wide.create or not narrow.create
            )
            return (
                flags
                and _lists(wide.push, narrow.push, "**")
                and _lists(wide.options, narrow.options, "*")
            )
        case McpBody(), McpBody():
            listed = _lists(wide.tools, narrow.tools, "*") and _lists(
                wide.methods, narrow.methods, "*"
            )
            return listed and _are_narrower_for_tools(
                narrow.arguments or {}, wide.arguments or {}
            )
        case _:
            return False


def _lists(wide: Iterable[str], narrow: Iterable[str], everything: str) -> bool:
    return everything in wide or {*narrow} <= {*wide}


def _are_narrower_for_tools(
    narrow: Mapping[str, tuple[Member, ...]], wide: Mapping[str, tuple[Member, ...]]
) -> bool:
    return all(
        _are_narrower(narrow.get(tool, ()), members) for tool, members in wide.items()
    )


def _are_narrower(narrow: Iterable[Member], wide: Iterable[Member]) -> bool:
    asked = {member.pointer: member.allowed for member in narrow}
    return all(
        member.pointer in asked and takes_no_more(asked[member.pointer], member.allowed)
        for member in wide
    )


def takes_no_more(narrow: Allowed, wide: Allowed) -> bool:
    """Whether each value that may stand at one place is known to be allowed at another
    one.
    """
    if narrow.absent and not wide.absent:
        return False
    if wide.values is not None:
        return narrow.values is not None and {*(narrow.typed_values or ())} <= {
            *(wide.typed_values or ())
        }
    if narrow.values is not None:
        return (wide.least, wide.most) == (None, None)
    return _least(narrow) >= _least(wide) and _most(narrow) <= _most(wide)


def _least(allowed: Allowed) -> float:
    return -_NO_BOUND if allowed.least is None else allowed.least


def _most(allowed: Allowed) -> float:
    return _NO_BOUND if allowed.most is None else allowed.most
