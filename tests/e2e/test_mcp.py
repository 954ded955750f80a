"""MCP through a gateway: what reaches a server, what a client reads of a denial, and
the record.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .curl import curl
from .gateway import Gateway
from .origin import Answer, Origins, Seen

POLICY = """
version: 1
rules:
  - name: no-parents
    action: deny
    reason: Name the file itself.
    hosts: [mcp.example]
    body: {mcp: {tools: [read_file], arguments: {read_file: {/path: "*..*"}}}}
  - name: tools
    action: allow
    hosts: [mcp.example]
    paths: [/mcp/**]
    body: {mcp: {tools: [search, read_file], arguments: {read_file: {/path: "/data/*"}}, methods: [resources/read]}}
"""
ALLOWED, DENIED, BY_RULE = (
    ("tools", "allow"),
    ("default", "deny"),
    ("no-parents", "deny"),
)
NEW = ("MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call")
EVENTS = ("Accept: text/event-stream",)


def call(
    tool: str = "search", number: int = 1, **arguments: object
) -> dict[str, object]:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def stand_in(seen: Seen) -> Answer:
    """A server: each request has a result, each notification is accepted."""
    if seen.method != "POST":
        return Answer(headers={"Content-Type": "text/event-stream"}, body=b": open\n\n")
    if "id" not in (message := json.loads(seen.body)):
        return Answer(202, b"")
    result = {"jsonrpc": "2.0", "id": message["id"], "result": {}}
    return Answer(
        headers={"Content-Type": "application/json"}, body=json.dumps(result).encode()
    )


def post(gateway: Gateway, case: str, document: object, *headers: str) -> Any:
    lines = [
        part
        for header in ("Content-Type: application/json", *headers)
        for part in ("-H", header)
    ]
    return curl(
        gateway, f"https://mcp.example/mcp/{case}", *lines, "-d", json.dumps(document)
    )


def recorded(gateway: Gateway, case: str) -> tuple[str, str]:
    line = gateway.logged(f"https://mcp.example/mcp/{case}")
    return line["rule"], line["verdict"]


@pytest.mark.parametrize(
    ("case", "document", "headers"),
    [
        (
            "initialize",
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
            (),
        ),
        ("call", call(), ()),
        ("call-of-2026", call(), (*NEW, "Mcp-Name: search")),
        ("arguments", call("read_file", path="/data/x"), ()),
        (
            "method",
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "resources/read",
                "params": {"uri": "x"},
            },
            (),
        ),
        ("notification", {"jsonrpc": "2.0", "method": "notifications/initialized"}, ()),
    ],
)
def test_a_server_gets_what_is_allowed(
    gateway: Gateway,
    origins: Origins,
    case: str,
    document: object,
    headers: tuple[str, ...],
) -> None:
    origins.fallback = stand_in
    assert post(gateway, case, document, *headers).status in (200, 202)
    assert [json.loads(seen.body) for seen in origins.seen] == [document]
    assert recorded(gateway, case) == ALLOWED


@pytest.mark.parametrize(
    ("method", "header"),
    [("GET", "Accept: text/event-stream"), ("DELETE", "Mcp-Session-Id: 1")],
)
def test_streams_open_and_sessions_end(
    gateway: Gateway, origins: Origins, method: str, header: str
) -> None:
    origins.fallback = stand_in
    assert (
        curl(
            gateway, f"https://mcp.example/mcp/{method}", "-X", method, "-H", header
        ).text
        == ": open\n\n"
    )
    assert recorded(gateway, method) == ALLOWED
    assert (
        curl(gateway, f"https://mcp.example/mcp/{method}", "-X", method).status == 403
    )


@pytest.mark.parametrize(
    ("case", "document", "headers", "decided", "reason"),
    [
        ("tool", call("delete_file"), (), DENIED, "the tool is not listed"),
        (
            "tool-of-2026",
            call("delete_file"),
            (*NEW, "Mcp-Name: delete_file"),
            DENIED,
            "the tool is not listed",
        ),
        (
            "path",
            call("read_file", path="/etc/passwd"),
            (),
            DENIED,
            "/arguments/path is not what the rule lists",
        ),
        (
            "parents",
            call("read_file", path="/data/../etc/passwd"),
            (),
            BY_RULE,
            "Name the file itself.",
        ),
        (
            "listing",
            {"jsonrpc": "2.0", "id": 1, "method": "resources/list"},
            (),
            DENIED,
            "the method is not listed",
        ),
    ],
)
def test_a_client_reads_why_a_call_is_denied(
    gateway: Gateway,
    origins: Origins,
    case: str,
    document: object,
    headers: tuple[str, ...],
    decided: tuple[str, str],
    reason: str,
) -> None:
    reply = post(gateway, f"denied-{case}", document, *headers)
    assert (reply.status, reply.header("Content-Type")) == (200, "application/json")
    error = reply.json["error"]
    assert (reply.json["id"], error["code"], error["data"]["rule"]) == (
        1,
        -32010,
        decided[0],
    )
    assert reason in error["message"]
    assert origins.seen == []
    assert recorded(gateway, f"denied-{case}") == decided


def test_each_call_of_a_batch_is_answered(gateway: Gateway, origins: Origins) -> None:
    reply = post(gateway, "batch", [call(), call("delete_file", 2)])
    assert [error["id"] for error in reply.json] == [1, 2]
    reply = post(gateway, "events", call("delete_file"), *EVENTS)
    assert (reply.status, reply.header("Content-Type")) == (200, "text/event-stream")
    assert json.loads(reply.text.removeprefix("event: message\ndata: "))["id"] == 1
    assert origins.seen == []


def test_what_servers_read_as_two_things_reaches_none(
    gateway: Gateway, origins: Origins
) -> None:
    for case, document, *headers in (
        ("mismatch", call(), *NEW, "Mcp-Name: delete_file"),
        ("case", {**call(), "Method": "ping"}),
        ("version", [call()], *NEW[:1]),
        ("type", call(), "Content-Type: text/plain"),
    ):
        reply = post(gateway, f"unreadable-{case}", document, *headers)
        assert (reply.status, reply.header("Content-Type")) == (
            400,
            "text/plain; charset=utf-8",
        )
        # a deny holds for it
        assert reply.text.startswith("squidkeeper: denied by rule no-parents: ")
        assert recorded(gateway, f"unreadable-{case}") == BY_RULE
    assert origins.seen == []
