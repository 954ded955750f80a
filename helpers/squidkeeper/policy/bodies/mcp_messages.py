"""The messages of the Model Context Protocol in the body of a request.

What two servers could read as two things is unreadable. Revisions up to 2025-11-25 have
sessions, and batches in 2025-03-26. Revision 2026-07-28 has neither, and repeats a
message's method and name in headers.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.json_form import folded, read_document
from squidkeeper.policy.bodies.reading import content_type, single_value
from squidkeeper.policy.bodies.sent_request import SentRequest

MAX_MESSAGES: Final = 100  # in a batch, as in the official SDKs
_TOOL_CALL = "tools/call"
_ALWAYS = frozenset(
    {"initialize", "ping", "server/discover", "subscriptions/listen", "tools/list"}
)
_METHODS = _ALWAYS | {
    "completion/complete",
    "logging/setLevel",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "tasks/cancel",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/update",
    _TOOL_CALL,
}
_VERSIONS = frozenset(
    {"2024-10-07", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"}
)
_BATCH_VERSIONS = frozenset({None, "2025-03-26"})  # the header came with 2025-06-18
_VERSION_MEMBER = "io.modelcontextprotocol/protocolVersion"
_NAME_MEMBERS: Mapping[str, str] = MappingProxyType(  # what `Mcp-Name` repeats
    {
        _TOOL_CALL: "name",
        "prompts/get": "name",
        "resources/read": "uri",
        "tasks/get": "taskId",
        "tasks/update": "taskId",
        "tasks/cancel": "taskId",
    }
)
_CALL_MEMBERS = frozenset({"jsonrpc", "id", "method", "params"})
_RESPONSES = (
    frozenset({"jsonrpc", "id", "result"}),
    frozenset({"jsonrpc", "id", "error"}),
)
_READ_MEMBERS = frozenset({"name", "uri", "taskId", "arguments"})  # of `params`
_METHOD = re.compile(r"[!-~]+")
_BASE64 = re.compile(r"=\?base64\?(.*)\?=")


@dataclass(frozen=True, slots=True)
class RpcMessage:
    """A request, notification or response.

    `method` is empty in a response, `id` None in a notification.
    """

    method: str
    id: str | int | None
    params: Mapping[str, object]

    @property
    def is_request(self) -> bool:
        """Whether an answer is expected."""
        return bool(self.method) and self.id is not None

    @property
    def always_passes(self) -> bool:
        """Whether no allow has to list it: a response, a notification, or what the
        protocol itself needs.
        """
        is_notification = self.id is None and self.method.startswith("notifications/")
        return not self.method or self.method in _ALWAYS or is_notification

    @property
    def is_tool_call(self) -> bool:
        """Whether it calls a tool; only then it has `tool`."""
        return self.method == _TOOL_CALL

    @property
    def tool(self) -> str:
        """The name of the tool."""
        return str(self.params["name"])


class RpcMessages(NamedTuple):
    """The messages of a body. Those of a batch are answered by an array."""

    all: tuple[RpcMessage, ...]
    is_batch: bool


def read_messages(request: SentRequest, max_bytes: int) -> RpcMessages | None:
    """Return the messages of a request; None where more of the body has to come.

    `UnreadableBody` where servers could differ about them.
    """
    if content_type(request).partition(";")[0].strip() != "application/json":
        raise UnreadableBody("the Content-Type is not application/json")
    document = read_document(request, max_bytes)
    if document is None:
        return None
    root, version = document.root, _version(request)
    messages = tuple(
        map(_message, _batch(root, version) if isinstance(root, list) else [root])
    )
    _check_headers(messages, version, request)
    return RpcMessages(messages, isinstance(root, list))


def _batch(items: list[object], version: str | None) -> list[object]:
    if version not in _BATCH_VERSIONS:
        raise UnreadableBody("this protocol version has no batches")
    if not 1 <= len(items) <= MAX_MESSAGES:
        raise UnreadableBody(
            f"the batch is empty, or has more than {MAX_MESSAGES} messages"
        )
    return items


def _message(document: object) -> RpcMessage:
    members = _members(document, "the message")
    if members.get("jsonrpc") != "2.0":
        raise UnreadableBody('jsonrpc is not "2.0"')
    if "method" in members:
        return _call(members)
    if members.keys() not in _RESPONSES and members.keys() != {"jsonrpc", "error"}:
        raise UnreadableBody(
            "the message is neither request, notification nor response"
        )
    return RpcMessage("", None, {})


def _call(members: Mapping[str, object]) -> RpcMessage:
    if not members.keys() <= _CALL_MEMBERS:
        raise UnreadableBody("the message has members that JSON-RPC does not have")
    method = members["method"]
    if (
        not isinstance(method, str)
        or not _METHOD.fullmatch(method)
        or _is_misspelt(method)
    ):
        raise UnreadableBody("the method is not written as MCP writes it")
    params = _members(members.get("params", {}), "params")
    if any(name not in _READ_MEMBERS and folded(name) in _FOLDED for name in params):
        raise UnreadableBody("params has a member that some parsers take for another")
    message = RpcMessage(method, _id(members), params)
    if method == _TOOL_CALL:
        _check_tool_call(params)
    return message


def _is_misspelt(method: str) -> bool:
    """Return whether a server that ignores case and outer slashes reads a method of MCP
    here.
    """
    return method not in _METHODS and method.lower().strip("/") in _LOWER_METHODS


def _id(members: Mapping[str, object]) -> str | int | None:
    if "id" not in members:
        return None
    value = members["id"]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnreadableBody("the id is neither text nor a whole number")
    return value


def _check_tool_call(params: Mapping[str, object]) -> None:
    name = params.get("name")
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or name != name.strip()
        or not name
    ):
        raise UnreadableBody("the name of the tool is missing, or not plain text")
    if params.get("arguments") is not None:
        _members(params["arguments"], "arguments")


def _members(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UnreadableBody(f"{what} is not a JSON object")
    return value


def _check_headers(
    messages: Sequence[RpcMessage], version: str | None, request: SentRequest
) -> None:
    method, name = (
        single_value(request, "mcp-method"),
        single_value(request, "mcp-name"),
    )
    only = messages[0] if len(messages) == 1 else RpcMessage("", None, {})
    if method is not None and method != only.method:
        raise UnreadableBody("the header Mcp-Method differs from the body")
    if name is not None and _decoded(name) != _named(only):
        raise UnreadableBody("the header Mcp-Name differs from the body")
    for message in messages:
        meta = message.params.get("_meta")
        named = meta.get(_VERSION_MEMBER) if isinstance(meta, dict) else None
        if named is not None and named != version:
            raise UnreadableBody(
                "the header MCP-Protocol-Version differs from the body"
            )


def _named(message: RpcMessage) -> object:
    """Return what `Mcp-Name` has to repeat; "" where there is nothing to repeat."""
    member = _NAME_MEMBERS.get(message.method)
    return "" if member is None else message.params.get(member, "")


def _version(request: SentRequest) -> str | None:
    version = single_value(request, "mcp-protocol-version")
    if version is not None and version not in _VERSIONS:
        raise UnreadableBody("the MCP-Protocol-Version is unknown")
    return version


def _decoded(value: str) -> str | None:
    """Return what `Mcp-Name` means: plain ASCII, or UTF-8 in Base64.

    None where it is neither.
    """
    match = _BASE64.fullmatch(value)
    if match is None:
        return value if value.isascii() and value.isprintable() else None
    try:
        decoded = base64.b64decode(match[1], validate=True)
        return (
            decoded.decode() if base64.b64encode(decoded).decode() == match[1] else None
        )
    except ValueError:  # neither Base64 nor UTF-8
        return None


_LOWER_METHODS = frozenset(method.lower() for method in _METHODS)
_FOLDED = frozenset(map(folded, _READ_MEMBERS))
