"""`mcp:` of a rule: what an allow and a deny make of messages, and of bodies that two
servers read as two things.
"""

from __future__ import annotations

import gzip
import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from squidkeeper.policy.bodies import body_forms, mcp_form
from squidkeeper.policy.bodies.sent_request import Fit, SentRequest
from squidkeeper.policy.language.bodies import Allowed, McpBody, Member

DATA_FILES = (Member(("path",), Allowed(("/data/*",))),)
RULE = McpBody(
    ("search", "read_*"),
    MappingProxyType({"read_file": DATA_FILES}),
    ("resources/read", "x/*"),
)
DENY = McpBody(
    ("delete_*", "read_file"),
    MappingProxyType({"read_file": DATA_FILES}),
    ("prompts/get",),
)

JSON = ("Content-Type", "application/json")
V2025, V2026 = (
    ("MCP-Protocol-Version", "2025-11-25"),
    ("MCP-Protocol-Version", "2026-07-28"),
)
GZIP = ("Content-Encoding", "gzip")
BATCHES = ("MCP-Protocol-Version", "2025-03-26")
Row = tuple[Any, ...]  # a document, and headers
H, F, U = Fit.HOLDS, Fit.FAILS, Fit.UNREADABLE


def message(
    method: str | None = None, params: object = None, **members: object
) -> dict[str, object]:
    named = {"method": method, "params": params}
    return (
        {"jsonrpc": "2.0", "id": 1}
        | {k: v for k, v in named.items() if v is not None}
        | members
    )


def call(name: object = "search", **arguments: object) -> dict[str, object]:
    return message("tools/call", {"name": name, "arguments": arguments})


def notification(method: str, params: object = None) -> dict[str, object]:
    return {k: v for k, v in message(method, params).items() if k != "id"}


def sent(
    document: object, *headers: tuple[str, str], method: str = "POST"
) -> SentRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    is_typed = any(name == "Content-Type" for name, _ in headers)
    return SentRequest(method, "/mcp", headers if is_typed else (JSON, *headers), body)


def outcome(rule: McpBody, request: SentRequest, *, deny: bool = False) -> Fit:
    return mcp_form.examine(rule, request, deny=deny).fit


MESSAGES = [  # of an allow, of a deny
    *(
        (message(method), H, F)
        for method in ("initialize", "ping", "server/discover", "tools/list")
    ),
    (message("subscriptions/listen", {"notifications": {}}), H, F),
    (notification("notifications/initialized"), H, F),
    (message("notifications/initialized"), F, F),  # with an id: a request
    (message(result={}), H, F),
    (message(error={"code": 1, "message": "x"}), H, F),
    ({"jsonrpc": "2.0", "error": {"code": 1, "message": "x"}}, H, F),
    (message("resources/read", {"uri": "file:///x"}), H, F),
    (message("x/y"), H, F),
    (message("resources/list"), F, F),
    (message("prompts/get", {"name": "p"}), F, H),
    (message("tasks/result", {"taskId": "1"}), F, F),
    (call(), H, F),
    (call("read_all"), H, F),
    (call("Search"), F, F),
    (call("delete_x"), F, H),
    (call("read_file", path="/data/x"), H, H),
    (call("read_file", path="/etc/passwd"), F, F),
    (call("read_file", path=["/data/x"]), F, H),
    (call("Delete-X"), F, H),
    (call("read_file", path="/Data/x"), F, H),
    (call("read_file"), F, F),
    (message("tools/call", {"name": "read_file"}), F, F),
    (message("tools/call", {"name": "search", "arguments": None}), H, F),
    (
        message(
            "tools/call",
            {"name": "search", "_meta": {"progressToken": 1}, "task": {"ttl": 1}},
        ),
        H,
        F,
    ),
    (notification("tools/call", {"name": "search"}), H, F),
    (notification("tools/call", {"name": "delete_x"}), F, H),
    (call() | {"id": "a"}, H, F),
    (
        [call(), call("read_all") | {"id": 2}, notification("notifications/cancelled")],
        H,
        F,
    ),
    ([call(), call("other") | {"id": 2}], F, F),
    ([call(), call("delete_x") | {"id": 2}], F, H),
    ([call("delete_x"), call() | {"id": 2}], F, H),
]


@pytest.mark.parametrize(("document", "allow", "deny"), MESSAGES)
def test_messages_are_allowed_all_and_denied_each(
    document: object, allow: Fit, deny: Fit
) -> None:
    assert outcome(RULE, sent(document)) is allow
    assert outcome(DENY, sent(document), deny=True) is deny


RAW_CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","arguments":{}}}'
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
PLAIN = (400, "text/plain; charset=utf-8", b"squidkeeper: denied by rule r: why\n")
NO_IDS: list[object] = [None, True, 1.0, [1], {}]
NO_OBJECTS: list[object] = [[], "{}", 0, False]
ATTACKS: dict[
    str, dict[str, Row]
] = {  # by reason, or its beginning. No allow holds for them, and every deny
    "the body is not JSON": {
        "nothing": (b"",),
        "SSE": (b"data: " + RAW_CALL,),
        "a second document": (RAW_CALL + RAW_CALL,),
        "trailing text": (RAW_CALL + b"x",),
        "a trailing NUL": (RAW_CALL + b"\0",),
    },
    "the body begins with a byte order mark": {"BOM": (b"\xef\xbb\xbf" + RAW_CALL,)},
    "the body is not UTF-8": {"UTF-16": (RAW_CALL.decode().encode("utf-16"),)},
    "a text has": {
        "a lone surrogate": (RAW_CALL.replace(b"search", rb"se\ud800rch"),),
        "a NUL in a method": (message("ping\0"),),
        "a NUL in a name": (call("search\0"),),
    },
    "an object has two members of one name": {
        "method twice": (RAW_CALL.replace(b'"method":', b'"method":"ping","method":'),),
        "method twice, escaped": (
            RAW_CALL.replace(b'"method":', rb'"method":"ping","\u006dethod":'),
        ),
        "params twice": (RAW_CALL[:-1] + b',"params":{"name":"delete_x"}}',),
        "name twice": (RAW_CALL.replace(b'"name":', b'"name":"delete_x","name":'),),
        "an argument twice": (RAW_CALL.replace(b":{}", b':{"a":1,"a":2}'),),
    },
    "the body is longer than": {
        "too long": (call(x="x" * 2_000_000),),
        "a bomb": (gzip.compress(json.dumps(call(x="x" * 2_000_000)).encode()), GZIP),
    },
    "the body cannot be inflated": {"plain text as gzip": (RAW_CALL, GZIP)},
    "something follows the compressed body": {
        "two members of gzip": (gzip.compress(RAW_CALL) * 2, GZIP)
    },
    "the Content-Type is not application/json": {
        "no type": (call(), ("Content-Type", "")),
        "the type of SSE": (call(), ("Content-Type", "text/event-stream")),
        "text": (call(), ("Content-Type", "text/plain")),
        "a suffix": (call(), ("Content-Type", "application/rpc+json")),
        "a list of types": (call(), ("Content-Type", "application/json, text/plain")),
    },
    "there are two headers Content-Type": {
        "two types": (call(), JSON, ("Content-Type", "text/plain"))
    },
    "the message is not a JSON object": {
        "text": ("tools/call",),
        "null": (None,),
        "a batch of batches": ([[call()]],),
        "a batch with text": ([call(), "x"],),
    },
    'jsonrpc is not "2.0"': {
        "jsonrpc 1.0": (call() | {"jsonrpc": "1.0"},),
        "jsonrpc 2": (call() | {"jsonrpc": 2.0},),
        "no jsonrpc": ({"id": 1, "method": "ping"},),
    },
    "the message has members that JSON-RPC does not have": {
        "Method": (message("ping") | {"Method": "tools/call"},),
        "Params": (call() | {"Params": {"name": "delete_x"}},),
        "a long s": (call() | {"param\u017f": {"name": "delete_x"}},),
        "another member": (call() | {"call": "delete_x"},),
        "method and result": (call() | {"result": {}},),
    },
    "the message is neither request, notification nor response": {
        "result and error": (message(result={}, error={}),),
        "neither": (message(),),
        "Method alone": (message() | {"Method": "tools/call"},),
    },
    "the id is neither text nor a whole number": {
        f"id {id_!r}": (call() | {"id": id_},) for id_ in NO_IDS
    },
    "the method is not written as MCP writes it": {
        f"method {method!r}": (
            message() | {"method": method, "params": {"name": "search"}},
        )
        for method in (
            None,
            ["tools/call"],
            "",
            "Tools/Call",
            "/tools/call",
            "tools/call/",
            "tools/call ",
            "tools/call\n",
            "resources/Read",
            "tools/c\u0430ll",
        )
    },
    "params is not a JSON object": {
        f"params {params!r}": (message("tools/call") | {"params": params},)
        for params in (["search"], "search", None)
    },
    "params has a member that some parsers take for another": {
        f"{name} in params": (
            message("tools/call", {"name": "search", name: "delete_x"}),
        )
        for name in ("Name", "NAME", "Arguments", "argument\u017f", "URI")
    },
    "the name of the tool is missing, or not plain text": {
        "no params": (message("tools/call"),),
        "no name": (message("tools/call", {"arguments": {}}),),
        "params in params": (message("tools/call", {"params": {"name": "search"}}),),
        **{
            f"name {name!r}": (call(name),)
            for name in (
                ["search"],
                {"name": "search"},
                None,
                1,
                "",
                "search ",
                "read_\u200b",
            )
        },
    },
    "arguments is not a JSON object": {
        f"arguments {arguments!r}": (
            message("tools/call", {"name": "read_file", "arguments": arguments}),
        )
        for arguments in NO_OBJECTS
    },
    "the batch is empty, or has more than 100 messages": {
        "an empty batch": ([],),
        "a long batch": ([notification("notifications/x")] * 101,),
    },
    "this protocol version has no batches": {
        f"a batch of {version}": ([call()], ("MCP-Protocol-Version", version))
        for version in ("2024-11-05", "2025-06-18", "2025-11-25", "2026-07-28")
    },
    "the header Mcp-Method differs from the body": {
        "another method": (call(), V2026, ("Mcp-Method", "ping")),
        "another case": (call(), V2026, ("Mcp-Method", "Tools/Call")),
        "a list of methods": (call(), V2026, ("Mcp-Method", "tools/call, ping")),
        "the method of a response": (message(result={}), ("Mcp-Method", "tools/call")),
        "the method of a batch": ([call(), call()], ("Mcp-Method", "tools/call")),
        "an older version": (call(), V2025, ("Mcp-Method", "ping")),
    },
    "the header Mcp-Name differs from the body": {
        "another name": (call(), V2026, ("Mcp-Name", "delete_x")),
        "another name, older version": (call(), V2025, ("Mcp-Name", "delete_x")),
        "the name of a batch": ([call(), call()], ("Mcp-Name", "search")),
        "a method without names": (
            message("ping", {"name": "x"}),
            V2026,
            ("Mcp-Name", "x"),
        ),
        "no name in params": (message("prompts/get", {}), V2026, ("Mcp-Name", "x")),
        "another uri": (
            message("resources/read", {"uri": "a"}),
            V2026,
            ("Mcp-Name", "b"),
        ),
        "broken Base64": (
            message("prompts/get", {}),
            V2026,
            ("Mcp-Name", "=?base64?YQ=?="),
        ),
        "another Base64": (call("a"), V2026, ("Mcp-Name", "=?base64?YR==?=")),
        "Latin-1": (call("\xe9"), V2026, ("Mcp-Name", "\xe9")),
    },
    "the MCP-Protocol-Version is unknown": {
        "a later version": (call(), ("MCP-Protocol-Version", "2027-01-01")),
        "an empty version": (call(), ("MCP-Protocol-Version", "")),
        "a list of versions": (
            call(),
            ("MCP-Protocol-Version", "2025-03-26, 2025-11-25"),
        ),
    },
    "the header MCP-Protocol-Version differs from the body": {
        "another version in the body": (message("ping", {"_meta": META}), V2025),
        "a version in the body alone": (message("ping", {"_meta": META}),),
    },
    "there are two headers Mcp-Method": {
        "two methods": (
            call(),
            V2026,
            ("Mcp-Method", "tools/call"),
            ("mcp-method", "tools/call"),
        )
    },
    "there are two headers Mcp-Name": {
        "two names": (call(), V2026, ("Mcp-Name", "search"), ("Mcp-Name", "search"))
    },
    "there are two headers Mcp-Protocol-Version": {
        "two versions": (call(), V2025, V2025)
    },
    "a header is spelled almost as Mcp-Method": {
        "as CGI takes it": (call(), V2026, ("Mcp_Method", "ping")),
        "as PHP takes it": (
            call(),
            V2026,
            ("Mcp-Method", "tools/call"),
            ("Mcp.Method", "ping"),
        ),
    },
    "a header is spelled almost as Mcp-Protocol-Version": {
        "as CGI takes it": (call(), ("MCP_Protocol-Version", "x"))
    },
}
ATTACK_ROWS = [
    pytest.param(reason, row, id=name)
    for reason, rows in ATTACKS.items()
    for name, row in rows.items()
]


@pytest.mark.parametrize(("reason", "row"), ATTACK_ROWS)
def test_what_two_servers_read_as_two_things_is_unreadable(
    reason: str, row: Row
) -> None:
    request = sent(*row)
    for rule, deny in ((RULE, False), (DENY, True)):
        found = mcp_form.examine(rule, request, deny=deny)
        assert found.fit is U
        assert found.reason.startswith(reason)
    assert mcp_form.answer(RULE, request, "r", "why") == PLAIN


UNUSUAL: dict[str, Row] = {  # and read by every server alike
    "escapes in a method": (RAW_CALL.replace(b"tools", rb"\u0074ools"),),
    "white space around": (b" \r\n" + RAW_CALL + b"\n",),
    "gzip": (gzip.compress(RAW_CALL), ("Content-Encoding", "gzip")),
    "a charset": (call(), ("Content-Type", "application/json; charset=utf-8")),
    "no version": (call(),),
    "a batch of 2025-03-26": ([call()], BATCHES),
    "headers of 2026-07-28": (
        call(),
        V2026,
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "search"),
    ),
    "white space in headers": (
        call(),
        V2026,
        ("Mcp-Method", " tools/call\t"),
        ("Mcp-Name", "search "),
    ),
    "a name in Base64": (
        call("read_\u00e9"),
        V2026,
        ("Mcp-Name", "=?base64?cmVhZF/DqQ==?="),
    ),
    "a uri": (message("resources/read", {"uri": "a:b"}), V2026, ("Mcp-Name", "a:b")),
    "a notification with its method": (
        notification("notifications/x"),
        V2026,
        ("Mcp-Method", "notifications/x"),
    ),
    "the version twice": (message("ping", {"_meta": META}), V2026),
    "arguments in headers": (call(region="x"), V2026, ("Mcp-Param-Region", "x")),
    "a long id": (call() | {"id": "x" * 1000},),
}


@pytest.mark.parametrize("unusual", UNUSUAL)
def test_what_clients_may_send_is_read(unusual: str) -> None:
    request = sent(*UNUSUAL[unusual])
    assert outcome(RULE, request) is H
    assert outcome(DENY, request, deny=True) is F


@pytest.mark.parametrize(
    ("method", "has_body", "allow", "deny"),
    [
        ("GET", False, F, F),
        ("DELETE", False, F, F),
        ("POST", False, F, F),
        ("PUT", False, F, F),
        ("GET", True, F, H),
        ("DELETE", True, F, H),
        ("PUT", True, F, H),
        ("POST", True, H, H),
    ],
)
def test_a_request_is_judged_by_its_body_and_method(
    method: str, has_body: bool, allow: Fit, deny: Fit
) -> None:
    for rule, tool, fit in ((RULE, "search", allow), (DENY, "delete_x", deny)):
        request = sent(call(tool) if has_body else b"", method=method)
        request.has_body = has_body
        assert outcome(rule, request, deny=rule is DENY) is fit
    assert body_forms.may_hold(DENY, method, "/mcp", None)


EVENTS, SESSION = (
    ("Accept", "application/json, Text/Event-Stream;q=0.9"),
    ("Mcp-Session-Id", "1"),
)


@pytest.mark.parametrize(
    ("method", "target", "headers", "fit"),
    [
        ("GET", "/mcp", [EVENTS], H),
        ("GET", "/mcp", [("Accept", "*/*")], F),
        ("GET", "/mcp?data", [EVENTS], F),
        ("HEAD", "/mcp", [EVENTS], F),
        ("DELETE", "/mcp", [SESSION], H),
        ("DELETE", "/mcp", [SESSION, SESSION], F),
        ("DELETE", "/mcp?", [SESSION], F),
        ("DELETE", "/mcp", [EVENTS], F),
        ("PUT", "/mcp", [SESSION, EVENTS], F),
    ],
)
def test_without_a_body_an_allow_holds_for_streams_and_ends_of_sessions(
    method: str, target: str, headers: list[tuple[str, str]], fit: Fit
) -> None:
    request = SentRequest(method, target, headers, has_body=False)
    assert (outcome(RULE, request), outcome(DENY, request, deny=True)) == (fit, F)


def test_more_of_a_body_is_asked_for_up_to_the_cap() -> None:
    request = SentRequest("POST", "/mcp", (JSON,), RAW_CALL[:20], complete=False)
    assert outcome(RULE, request) is Fit.NEEDS_MORE
    assert outcome(McpBody(("*",), max_bytes=19), request) is U


def test_a_rule_without_lists_allows_the_protocol_alone() -> None:
    for document, fit in (
        (message("initialize"), H),
        (message("tools/list"), H),
        (call(), F),
        (message("x/y"), F),
    ):
        assert outcome(McpBody(), sent(document)) is fit


def test_a_deny_by_method_denies_calls_of_tools() -> None:
    for methods, fit in ((("tools/call",), H), (("*",), H), (("tools/list",), F)):
        assert outcome(McpBody(methods=methods), sent(call()), deny=True) is fit
    assert outcome(McpBody(methods=("*",)), sent(message(result={})), deny=True) is F
    assert outcome(McpBody(methods=("*",)), sent(call())) is F  # an allow names tools


def test_arguments_of_a_tool_satisfy_every_glob() -> None:
    arguments = {
        "read_file": DATA_FILES,
        "read_*": (Member(("raw",), Allowed((True,), absent=True)),),
    }
    rule = McpBody(("read_*",), arguments)
    assert outcome(rule, sent(call("read_file", path="/data/x"))) is H
    assert outcome(rule, sent(call("read_file", path="/data/x", raw=False))) is F
    assert outcome(rule, sent(call("read_other", raw=True))) is H


def test_arguments_of_one_name_for_some_parsers_are_unreadable() -> None:
    request = sent(call("read_file", path="/data/x", Path="/etc/passwd"))
    for rule, deny in ((RULE, False), (DENY, True)):
        found = mcp_form.examine(rule, request, deny=deny)
        assert found.fit is U
        assert found.reason.startswith(
            "/arguments has a member that some parsers take for another"
        )


NAMES = (
    "jsonrpc",
    "id",
    "method",
    "Method",
    "params",
    "PARAMS",
    "param\u017f",
    "name",
    "Name",
    "arguments",
    "result",
)
VALUES = ("2.0", 1, "ping", "tools/call", "Tools/call", "x/y", "search", "delete_x")


def written(members: list[tuple[str, str]]) -> str:
    return (
        "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in members) + "}"
    )


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=5).map(written)


def called(raw: str, *, first: bool, any_case: bool) -> object:
    """The tool that a lenient server calls."""

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        folded = [
            (name.casefold() if any_case else name, value) for name, value in pairs
        ]
        return dict(folded[::-1] if first else folded)

    read = json.loads(raw, object_pairs_hook=members)
    method = f"{read.get('method')}"
    params = read.get("params")
    is_call = (method.lower() if any_case else method) == "tools/call" and isinstance(
        params, dict
    )
    return params.get("name") if is_call else None


SCALARS = st.sampled_from(VALUES).map(json.dumps)
USUAL = [
    ("jsonrpc", '"2.0"'),
    ("id", "1"),
    ("method", '"tools/call"'),
    ("params", '{"name":"search"}'),
]


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), SCALARS | objects(SCALARS)), max_size=3),
    st.permutations(USUAL),
)
@example([("params", '{"name":"delete_x"}')], USUAL)
@example([("Params", '{"name":"delete_x"}')], USUAL)
def test_no_lenient_server_calls_another_tool(
    others: list[tuple[str, str]], usual: list[tuple[str, str]]
) -> None:
    for raw in (
        written([*others, *usual]),
        written([*usual, *others]),
        written([*others, *usual[1:]]),
    ):
        if outcome(RULE, sent(raw.encode())) is H:
            seen = {
                called(raw, first=first, any_case=case)
                for first in (True, False)
                for case in (True, False)
            }
            assert len(seen) == 1
            assert seen <= {None, "search"}


def test_reasons_name_nothing_of_a_body() -> None:
    for document, reason in (
        (call("c4n4ry"), "the tool is not listed"),
        (
            call("read_file", path="c4n4ry"),
            "/arguments/path is not what the rule lists",
        ),
        (message("c4n4ry"), "the method is not listed"),
    ):
        assert mcp_form.examine(RULE, sent(document), deny=False) == (F, reason)


def error(id_: object) -> dict[str, object]:
    data = {"rule": "r", "reason": "why"}
    return {
        "jsonrpc": "2.0",
        "id": id_,
        "error": {"code": -32010, "message": TEXT, "data": data},
    }


TEXT = "squidkeeper: denied by rule r: why"
EVENTS = ("Accept", "text/event-stream")
ANSWERS = [  # of a request, and its headers
    (call("x"), (), error(1)),
    (call("x") | {"id": 'a"\u2028\n'}, (), error('a"\u2028\n')),
    (call("x") | {"id": "x" * 128}, (), error("x" * 128)),
    (call("x") | {"id": "x" * 129}, (), None),
    ([call("x")], (), [error(1)]),
    (
        [call("x"), call() | {"id": 2}, notification("notifications/x")],
        (),
        [error(1), error(2)],
    ),
    ([call("x"), call() | {"id": "x" * 129}], (), None),
    (notification("tools/call", {"name": "x"}), (), None),
    (message(result={}), (), None),
    (call("x"), (("Accept", "application/json, text/event-stream"),), error(1)),
    (call("x"), (("Accept", "text/event-stream, */*;q=0.1"),), error(1)),
    (
        call("x"),
        (("Accept", "text/event-stream"), ("Accept", "application/json")),
        error(1),
    ),
]


@pytest.mark.parametrize(("document", "headers", "expected"), ANSWERS)
def test_a_denial_is_an_error_for_each_call(
    document: object, headers: tuple[tuple[str, str], ...], expected: object
) -> None:
    answer = mcp_form.answer(RULE, sent(document, *headers), "r", "why")
    assert answer is not None
    if expected is None:
        assert answer == PLAIN
    else:
        assert answer[:2] == (200, "application/json")
        assert json.loads(answer.body) == expected


def test_a_denial_is_events_where_a_client_takes_no_json() -> None:
    answer = mcp_form.answer(
        RULE, sent([call("x"), call("x") | {"id": "\n"}], EVENTS), "r", "why"
    )
    assert answer is not None
    assert answer[:2] == (200, "text/event-stream")
    events = answer.body.decode().split("\n\n")
    assert [
        json.loads(event.removeprefix("event: message\ndata: "))
        for event in events[:-1]
    ] == [
        error(1),
        error("\n"),
    ]


def test_a_request_without_a_body_gets_the_page() -> None:
    request = SentRequest("GET", "/mcp", (), has_body=False)
    assert mcp_form.answer(RULE, request, "r", "why") is None
