"""`body:` as a file has it, as the model of a rule."""

from __future__ import annotations

from collections.abc import Mapping

from squidkeeper.policy.language import schema
from squidkeeper.policy.language.bodies import (
    Allowed,
    Body,
    GitBody,
    JsonBody,
    McpBody,
    Member,
    WrittenPush,
)
from squidkeeper.policy.language.body_values import parse_pointer


def body_of(entry: schema.BodyEntry | None) -> Body | None:
    """Make the model of a checked entry."""
    if entry is None:
        return None
    if entry.git is not None:
        git = entry.git
        return GitBody(git.push, git.delete, git.create, git.options or (), entry.max)
    if entry.mcp is not None:
        mcp = entry.mcp
        arguments = {
            tool: _members(places) for tool, places in (mcp.arguments or {}).items()
        }
        return McpBody(mcp.tools or (), arguments or None, mcp.methods or (), entry.max)
    only = None if entry.only is None else tuple(map(parse_pointer, entry.only))
    return JsonBody(_members(entry.in_json or {}), only, entry.max)


def sent_body(entry: schema.TestEntry) -> bytes | WrittenPush | None:
    """Return the body that a test sends."""
    if entry.push is None:
        return entry.body
    push = entry.push
    return WrittenPush(
        push.update or (), push.create or (), push.delete or (), push.options or ()
    )


def _members(places: Mapping[str, schema.PlaceEntry]) -> tuple[Member, ...]:
    return tuple(
        Member(parse_pointer(pointer), _allowed(place))
        for pointer, place in places.items()
    )


def _allowed(place: schema.PlaceEntry) -> Allowed:
    """Read what may stand at a place. With `absent: true` alone, nothing may."""
    bare = place.values is None and place.min is None and place.max is None
    return Allowed(
        () if bare and place.absent else place.values,
        place.min,
        place.max,
        place.absent,
    )
