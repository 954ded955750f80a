"""`json:`: what is read of a document, and that no two parsers read another."""

from __future__ import annotations

import gzip
import json
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies import json_form
from squidkeeper.policy.bodies.body_forms import answer, examine, may_hold
from squidkeeper.policy.bodies.json_form import MAX_DEPTH, MAX_VALUES, ParsedJson, parse
from squidkeeper.policy.bodies.sent_request import BodyOutcome, Fit, SentRequest
from squidkeeper.policy.language.bodies import Allowed, JsonBody, Member

HOLDS, FAILS, UNREADABLE, NEEDS_MORE = Fit
JSON = (("Content-Type", "application/json"),)


def body_of(
    members: dict[str, Allowed],
    only: Sequence[str] | None = None,
    max_bytes: int = 4096,
) -> JsonBody:
    named = tuple(Member(pointer(place), allowed) for place, allowed in members.items())
    return JsonBody(
        named, None if only is None else tuple(map(pointer, only)), max_bytes
    )


def pointer(text: str) -> tuple[str, ...]:
    return tuple(text.split("/")[1:])


OF_ANY_MODEL = body_of({"/model": Allowed(values=("*",))})
MODEL = body_of({"/model": Allowed(values=("gpt-5-mini", "gpt-5-mini-*"))})


def sent(
    content: bytes | str,
    headers: Sequence[tuple[str, str]] = JSON,
    *,
    complete: bool = True,
) -> SentRequest:
    raw = content.encode() if isinstance(content, str) else content
    return SentRequest("POST", "/v1/chat", headers, raw, complete)


def judged(
    content: bytes | str, body: JsonBody = MODEL, *, deny: bool = False
) -> BodyOutcome:
    return examine(body, sent(content), deny=deny)


# --- where parsers differ -------------------------------------------------------------

M = '"model":"gpt-5-mini"'
# RFC 8259, the notes on interoperability in 2 to 9; RFC 7493 (I-JSON); seriot.ch,
# "Parsing JSON is a minefield"
PARSERS_DIFFER: dict[str, bytes | str] = {
    # objects
    "duplicate, last wins": '{"model":"evil",' + M + "}",
    "duplicate, first wins": "{" + M + ',"model":"evil"}',
    "duplicate by an escape": "{" + M + ',"\\u006dodel":"evil"}',
    "duplicate anywhere": "{" + M + ',"a":[{"b":1,"b":1}]}',
    "case: Go, .NET": "{" + M + ',"Model":"evil"}',
    "case: long s": '{"meſsages":1,' + M + "}",
    "case: dotless i": '{"ınput":1,' + M + "}",
    "case: i with a dot": '{"İnput":1,' + M + "}",
    "dash": '{"max-tokens":1,' + M + "}",
    "name of protobuf": '{"maxTokens":1,' + M + "}",
    "__proto__": "{" + M + ',"__proto__":{"model":"evil"}}',
    "__proto__ by an escape": "{" + M + ',"a":{"__prot\\u006f__":1}}',
    "unquoted name": '{model:"gpt-5-mini"}',
    "name in single quotes": "{'model':\"gpt-5-mini\"}",
    "trailing comma": "{" + M + ",}",
    "missing comma": "{" + M + ' "a":1}',
    "double colon": '{"model"::"gpt-5-mini"}',
    "comment": "{/* */" + M + "}",
    "comment to the end of the line": "{" + M + "}//",
    "comment of YAML": "{" + M + "}#",
    # texts
    "lone surrogate": "{" + M + ',"a":"\\ud800"}',
    "lone surrogate in upper case": "{" + M + ',"a":"\\uD800"}',
    "lone low surrogate": "{" + M + ',"a":"\\udc00"}',
    "surrogates the wrong way": "{" + M + ',"a":"\\udc00\\ud800"}',
    "two high surrogates": "{" + M + ',"a":"\\ud800\\ud800\\udc00"}',
    "two low surrogates": "{" + M + ',"a":"\\ud800\\udc00\\udc00"}',
    "half behind a backslash": "{" + M + ',"a":"\\ud800\\\\\\udc00"}',
    "surrogate encoded as UTF-8": b"{" + M.encode() + b',"a":"\xed\xa0\x80"}',
    "U+0000": '{"model":"gpt-5-mini","a":"\\u0000"}',
    "U+0000 ends a text of C": '{"model":"gpt-5-mini\\u0000evil"}',
    "U+0000 in a name": '{"model\\u0000":1,' + M + "}",
    "U+0000 as it is": b'{"model":"gpt-5-mini\0"}',
    "control character": '{"model":"gpt-5-mini","a":"\n"}',
    "escape of JavaScript": '{"model":"gpt-5-mini","a":"\\x41"}',
    "escape of C": '{"model":"gpt-5-mini","a":"\\a"}',
    "escape of nothing": "{" + M + ',"a":"\\u00"}',
    "digits of another script in an escape": "{" + M + ',"a":"\\u00٠0"}',
    "single quotes": "{" + M + ",\"a\":'b'}",
    # encoding
    "byte order mark": b"\xef\xbb\xbf{" + M.encode() + b"}",
    "not UTF-8": b"{" + M.encode() + b',"a":"\xff"}',
    "overlong": b"{" + M.encode() + b',"a":"\xc0\xaf"}',
    "past U+10FFFF": b"{" + M.encode() + b',"a":"\xf4\x90\x80\x80"}',
    "cut character": b"{" + M.encode() + b',"a":"\xe2\x82"}',
    "UTF-16": ("{" + M + "}").encode("utf-16-le"),
    "UTF-16 with its mark": ("{" + M + "}").encode("utf-16"),
    "UTF-32": ("{" + M + "}").encode("utf-32-be"),
    # numbers
    "NaN": "{" + M + ',"a":NaN}',
    "Infinity": "{" + M + ',"a":-Infinity}',
    "too large": "{" + M + ',"a":1e400}',
    "too small": "{" + M + ',"a":-0.1e-400}',
    "integer larger than a double": "{" + M + ',"a":' + "1" * 309 + "}",
    "fraction of thousands of digits": "{" + M + ',"a":0.' + "1" * 4301 + "}",
    "leading zero": "{" + M + ',"a":010}',
    "plus": "{" + M + ',"a":+1}',
    "hexadecimal": "{" + M + ',"a":0x10}',
    "no digit ahead": "{" + M + ',"a":.5}',
    "no digit behind": "{" + M + ',"a":5.}',
    "underscore": "{" + M + ',"a":1_0}',
    "digit of another script": "{" + M + ',"a":١}',
    "minus alone": "{" + M + ',"a":-}',
    "no exponent": "{" + M + ',"a":1e}',
    "integer no double has": '{"n":9007199254740993,' + M + "}",
    "integer that wraps": '{"n":18446744073709551617,' + M + "}",
    "large double": '{"n":1e300,' + M + "}",
    # structure
    "empty": "",
    "blank": " \n",
    "second document": "{" + M + "}{}",
    "lines of documents": "{" + M + '}\n{"model":"evil"}',
    "bytes behind": "{" + M + "}\0",
    "comma behind": "{" + M + "},",
    "no end": "{" + M,
    "form feed as space": "{\f" + M + "}",
    "no-break space": "{\u00a0" + M + "}",
    "names of Python": "{" + M + ',"a":None}',
    "literal in upper case": "{" + M + ',"a":TRUE}',
    "undefined": "{" + M + ',"a":undefined}',
    "empty item": "{" + M + ',"a":[1,,2]}',
    "protection from hijacking": ")]}'\n{" + M + "}",
    "a form": "model=evil&x=1",
    "too deep": "{" + M + ',"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}",
    "too deep for the stack": "[" * 2000,
    "too deep, of objects": '{"a":' * 500 + "1" + "}" * 500,
    "array for an object": "[1]",
    "object for an array": '{"tools":{"0":{"type":"web_search"}},' + M + "}",
    "object for one item": '{"tools":{"type":"web_search"},' + M + "}",
}
PLACES = ("/model", "/input", "/messages", "/max_tokens", "/n", "/tools/*/type")
WATCHED = body_of(
    {place: Allowed(values=("gpt-5-mini",), absent=True) for place in PLACES},
    max_bytes=20_000,
)
CLOSED = [
    body_of({place: Allowed(values=("nobody sends this",))}, max_bytes=20_000)
    for place in PLACES
]


@pytest.mark.parametrize("case", PARSERS_DIFFER)
def test_what_parsers_read_in_two_ways_holds_for_no_allow_and_for_each_deny(
    case: str,
) -> None:
    allow = judged(PARSERS_DIFFER[case], WATCHED)
    assert allow.fit is UNREADABLE, allow
    assert {UNREADABLE, HOLDS} & {
        judged(PARSERS_DIFFER[case], body, deny=True).fit for body in CLOSED
    }
    assert allow.reason
    assert "evil" not in allow.reason


READ_ALIKE: dict[str, bytes | str] = {
    "white space": "\r\n\t { " + M + " } \n",
    "escaped name": '{"\\u006dodel":"gpt-5-mini"}',
    "escaped value": '{"model":"\\u0067pt-5\\u002dmini"}',
    "escaped solidus": "{" + M + ',"a":"\\/"}',
    "two halves": "{" + M + ',"a":"\\ud83d\\uDE00"}',
    "two pairs": "{" + M + ',"a":"\\ud83d\\ude00\\ud83d\\ude00"}',
    "a backslash, and no escape": "{" + M + ',"a":"\\\\u0000 \\\\ud800"}',
    "separators of lines that JavaScript had no texts with": "{"
    + M
    + ',"a":"\u2028\u2029"}',
    "delete": "{" + M + ',"a":"\x7f"}',
    "no character": "{" + M + ',"a":"\uffff"}',
    "beyond the first plane": "{" + M + ',"a":"\U0001f600"}',
    "empty name": "{" + M + ',"":1}',
    "names that differ in case, of no rule": "{" + M + ',"a":1,"A":2}',
    "names of other objects": "{" + M + ',"a":{"Model":1}}',
    "composed and decomposed": "{" + M + ',"\u00e9":1,"e\u0301":1}',
    "minus nought": "{" + M + ',"n":-0,"a":-0.0}',
    "nought with an exponent": "{" + M + ',"a":0e999}',
    "integer past 2^53 of no rule": "{" + M + ',"a":18446744073709551615}',
    "long numbers in a text": "{" + M + ',"a":"' + "1" * 999 + '"}',
    "brackets in a text": "{" + M + ',"a":"' + '[{\\"' * 999 + '"}',
    "many brackets": "{" + M + ',"a":[' + ",".join(["[[]]"] * 99) + "]}",
    "as deep as may be": "{"
    + M
    + ',"a":'
    + "[{}," * (MAX_DEPTH - 2)
    + "[]"
    + "]" * (MAX_DEPTH - 2)
    + "}",
    "null for an array": '{"tools":null,' + M + "}",
}


@pytest.mark.parametrize("case", READ_ALIKE)
def test_what_all_parsers_read_alike_is_read(case: str) -> None:
    body = body_of(
        {
            "/model": Allowed(values=("gpt-5-mini",)),
            "/tools/*/type": Allowed(absent=True),
        },
        max_bytes=20_000,
    )
    assert judged(READ_ALIKE[case], body) == (HOLDS, "")


# --- what stands at a pointer ---------------------------------------------------------

TOOLS, TOOLS_OR_NONE = (
    Allowed(values=("function",), absent=absent) for absent in (False, True)
)
PLACED = [  # pointer, what may stand there, document, in an allow, in a deny
    ("/model", Allowed(values=("gpt-5-mini",)), '{"model":"gpt-5-mini"}', HOLDS, HOLDS),
    (
        "/model",
        Allowed(values=("gpt-5-mini",)),
        '{"model":"gpt-5-mini "}',
        FAILS,
        HOLDS,
    ),
    (
        "/model",
        Allowed(values=("gpt-5-mini",)),
        '{"model":["gpt-5-mini"]}',
        FAILS,
        HOLDS,
    ),
    ("/model", Allowed(values=("gpt-5-mini",)), '{"model":null}', FAILS, FAILS),
    ("/model", Allowed(values=("gpt-5-mini",)), "{}", FAILS, FAILS),
    ("/model", Allowed(values=("gpt-5-mini",), absent=True), "{}", HOLDS, HOLDS),
    ("/model", Allowed(values=("a*c", "x")), '{"model":"abbc"}', HOLDS, HOLDS),
    ("/model", Allowed(values=("a*c", "x")), '{"model":"abbcd"}', FAILS, FAILS),
    ("/model", Allowed(values=("*",)), '{"model":"a\\nb"}', HOLDS, HOLDS),
    ("/model", Allowed(values=("*",)), '{"model":1}', FAILS, HOLDS),
    ("/n", Allowed(values=(1,)), '{"n":1.0}', HOLDS, HOLDS),
    ("/n", Allowed(values=(1,)), '{"n":1e0}', HOLDS, HOLDS),
    ("/n", Allowed(values=(1,)), '{"n":true}', FAILS, HOLDS),
    ("/n", Allowed(values=(1,)), '{"n":"1"}', FAILS, HOLDS),
    ("/n", Allowed(values=(0,)), '{"n":-0.0}', HOLDS, HOLDS),
    ("/n", Allowed(values=(0,)), '{"n":false}', FAILS, HOLDS),
    ("/n", Allowed(values=(True,)), '{"n":true}', HOLDS, HOLDS),
    ("/n", Allowed(values=(True,)), '{"n":1}', FAILS, HOLDS),
    ("/n", Allowed(values=(None,)), '{"n":null}', HOLDS, HOLDS),
    ("/n", Allowed(values=(None,)), "{}", FAILS, FAILS),
    ("/n", Allowed(values=()), '{"n":""}', FAILS, HOLDS),
    ("/n", Allowed(absent=True), '{"n":null}', FAILS, FAILS),
    ("/n", Allowed(absent=True), '{"n":1}', FAILS, HOLDS),
    ("/n", Allowed(absent=True), "{}", HOLDS, HOLDS),
    ("/n", Allowed(most=4096), '{"n":4096}', HOLDS, HOLDS),
    ("/n", Allowed(most=4096), '{"n":4096.5}', FAILS, FAILS),
    ("/n", Allowed(most=4096), '{"n":-1e9}', HOLDS, HOLDS),
    ("/n", Allowed(least=1, most=2), '{"n":0}', FAILS, FAILS),
    ("/n", Allowed(least=1, most=2), '{"n":true}', FAILS, HOLDS),
    ("/n", Allowed(least=1, most=2), '{"n":"1"}', FAILS, HOLDS),
    ("/n", Allowed(least=1, values=(-1, "all")), '{"n":-1}', HOLDS, HOLDS),
    ("/n", Allowed(least=1, values=(-1, "all")), '{"n":"all"}', HOLDS, HOLDS),
    (
        "/tools/*/type",
        TOOLS,
        '{"tools":[{"type":"function"},{"type":"function"}]}',
        HOLDS,
        HOLDS,
    ),
    (
        "/tools/*/type",
        TOOLS,
        '{"tools":[{"type":"function"},{"type":"web_search"}]}',
        FAILS,
        HOLDS,
    ),
    ("/tools/*/type", TOOLS, '{"tools":[{"type":"function"},{}]}', FAILS, HOLDS),
    (
        "/tools/*/type",
        TOOLS_OR_NONE,
        '{"tools":[{"type":"function"},{}]}',
        HOLDS,
        HOLDS,
    ),
    ("/tools/*/type", TOOLS_OR_NONE, '{"tools":["web_search"]}', FAILS, FAILS),
    ("/tools/*/type", TOOLS_OR_NONE, '{"tools":"a text has no types"}', HOLDS, HOLDS),
    ("/tools/*/type/x", TOOLS_OR_NONE, '{"tools":[{"type":"a"}]}', FAILS, FAILS),
    (
        "/tools/*/type",
        TOOLS_OR_NONE,
        '{"tools":{"type":"function"}}',
        UNREADABLE,
        UNREADABLE,
    ),
    (
        "/tools/*/type",
        TOOLS_OR_NONE,
        '{"tools":{"*":{"type":"function"}}}',
        UNREADABLE,
        UNREADABLE,
    ),
    (
        "/tools/*/type",
        TOOLS_OR_NONE,
        '{"tools":[[{"type":"function"}]]}',
        UNREADABLE,
        UNREADABLE,
    ),
    (
        "/tools/*/type",
        TOOLS_OR_NONE,
        '{"tools":[{"type":"function","Type":"web_search"}]}',
        UNREADABLE,
        UNREADABLE,
    ),
    ("/tools/*/type", TOOLS_OR_NONE, '{"tools":[]}', HOLDS, HOLDS),
    ("/tools/*/type", TOOLS_OR_NONE, '{"tools":null}', HOLDS, HOLDS),
    ("/tools/*/type", TOOLS_OR_NONE, "{}", HOLDS, HOLDS),
    ("/tools/*/type", TOOLS, '{"tools":[]}', FAILS, FAILS),
    ("/tools/*/type", TOOLS, "{}", FAILS, FAILS),
    ("/a/0", Allowed(values=(1,)), '{"a":[1,2]}', HOLDS, HOLDS),
    ("/a/0", Allowed(values=(1,)), '{"a":{"0":1}}', HOLDS, HOLDS),
    ("/a/2", Allowed(values=(1,)), '{"a":[1,2]}', FAILS, FAILS),
    ("/a/00", Allowed(values=(1,)), '{"a":[1]}', UNREADABLE, UNREADABLE),
    ("/a/-", Allowed(values=(1,)), '{"a":[1]}', UNREADABLE, UNREADABLE),
    ("/a/*/*", Allowed(values=(1,)), '{"a":[[1,1],[1,2]]}', FAILS, HOLDS),
    ("/a/*", Allowed(values=(1,), absent=True), '{"a":1}', HOLDS, HOLDS),
    ("/a/*", Allowed(values=(1,), absent=True), '{"a":2}', FAILS, FAILS),
    ("/a/*", Allowed(values=(1,), absent=True), '{"a":null}', HOLDS, HOLDS),
    ("/", Allowed(values=(1,)), '{"":1}', HOLDS, HOLDS),
    ("", Allowed(values=(1,)), "1", HOLDS, HOLDS),
    ("", Allowed(values=(1,)), "[1]", FAILS, HOLDS),
]


@pytest.mark.parametrize(
    ("place", "allowed", "document", "in_allow", "in_deny"), PLACED
)
def test_an_allow_needs_every_place_and_a_deny_one(
    place: str, allowed: Allowed, document: str, in_allow: Fit, in_deny: Fit
) -> None:
    body = body_of({place: allowed})
    assert (judged(document, body).fit, judged(document, body, deny=True).fit) == (
        in_allow,
        in_deny,
    )


@pytest.mark.parametrize("deny", [False, True])
def test_every_member_has_to_hold(deny: bool) -> None:
    body = body_of({"/a": Allowed(values=(1,)), "/b": Allowed(values=(2,))})
    for document, fit in (
        ('{"a":1,"b":2}', HOLDS),
        ('{"a":0,"b":2}', FAILS),
        ('{"a":1,"b":0}', FAILS),
    ):
        assert judged(document, body, deny=deny).fit is fit


LENIENT = {  # what some server takes for what a deny lists
    "/model": ('["large"]', '{"x":"large"}', '"LARGE"', '" large"', "1", "true"),
    "/stream": ('"true"', "1", "[true]", '"on"'),
    "/n": ('"6"', "[6]", '"0x10"', "true", "6.0"),
    "/mixed": ('"7"', "7", '"AUTO"', "true"),
}
LISTED = {
    "/model": Allowed(values=("large",)),
    "/stream": Allowed(values=(True,)),
    "/n": Allowed(least=5),
    "/mixed": Allowed(values=("auto", 7)),
}
OTHERS = {"/model": '"small"', "/stream": "false", "/n": "4", "/mixed": '"8"'}


@pytest.mark.parametrize("place", LENIENT)
def test_a_deny_holds_for_what_a_server_can_convert(place: str) -> None:
    body = body_of({place: LISTED[place]})
    for value, fit in (
        *((value, HOLDS) for value in LENIENT[place]),
        (OTHERS[place], FAILS),
        ("null", FAILS),
    ):
        assert judged(f'{{"{place[1:]}":{value}}}', body, deny=True).fit is fit, value


@pytest.mark.parametrize(
    ("only", "document", "fit"),
    [
        (
            ["/model", "/messages"],
            '{"model":"x","messages":[{"any":{"thing":1}}]}',
            HOLDS,
        ),
        (["/model", "/messages"], '{"model":"x","store":true}', FAILS),
        (["/model", "/messages"], '{"MODEL":"x"}', FAILS),
        (["/model"], "{}", HOLDS),
        (["/model"], "[]", HOLDS),
        (["/model"], "1", FAILS),
        (["/model"], '["x"]', FAILS),
        ([], '{"model":"x"}', FAILS),
        (["/messages/*/role"], '{"messages":[{"role":"user"},{}]}', HOLDS),
        (["/messages/*/role"], '{"messages":[{"role":"user","x":1}]}', FAILS),
        (["/messages/*/role"], '{"messages":{"role":"user"}}', FAILS),
        (["/messages/*/role"], '{"messages":"user"}', FAILS),
        (["/messages/*/role"], '{"messages":null}', HOLDS),
        (["/messages/0"], '{"messages":["a"]}', HOLDS),
        (["/messages/0"], '{"messages":["a","b"]}', FAILS),
        ([""], "[1,{}]", HOLDS),
    ],
)
def test_only_what_is_listed_may_be_in_a_document(
    only: list[str], document: str, fit: Fit
) -> None:
    assert judged(document, body_of({}, only)).fit is fit


def test_a_reason_names_the_place_and_nothing_of_the_body() -> None:
    assert judged('{"model":"evil"}') == (FAILS, "/model is not what the rule lists")
    assert judged("{}") == (FAILS, "/model is missing")
    assert judged('{"model":"gpt-5-mini","x":evil}') == (
        UNREADABLE,
        "the body is not JSON, at character 26",
    )
    assert judged(b"\xef\xbb\xbf{}").reason == "the body begins with a byte order mark"
    assert judged(b'"\xff"').reason == "the body is not UTF-8"
    assert (
        judged('{"tools":{}}', body_of({"/tools/*/a~b": TOOLS})).reason
        == "/tools is an object, expected an array"
    )


def test_without_a_body_a_rule_holds_neither_way() -> None:
    request = SentRequest("GET", "/", (), has_body=False)
    assert [examine(MODEL, request, deny=deny).fit for deny in (False, True)] == [
        FAILS,
        FAILS,
    ]


def test_any_url_can_have_a_document_and_its_clients_read_the_page() -> None:
    assert may_hold(MODEL, "GET", "/", None)
    assert answer(MODEL, sent("{}"), "rule", "reason") is None


def test_a_body_that_is_already_too_long_is_not_waited_for() -> None:
    outcome = examine(MODEL, sent(b"{" + b" " * 4096, complete=False), deny=False)
    assert outcome == (UNREADABLE, "the body is longer than 4096 bytes")


@pytest.mark.parametrize(
    "item", ["[]", "{}", "1", '"a"', '{"a":"b"}', "[" * 9 + "]" * 9]
)
def test_a_document_has_a_bounded_number_of_values(item: str) -> None:
    count = MAX_VALUES // sum(map(item.count, ("[", "{")), 1)
    of_any = body_of({}, max_bytes=10**7)
    assert judged(f"[{','.join([item] * (count - 1))}]", of_any).fit is HOLDS
    outcome = judged(f"[{','.join([item] * (count + 1))}]", of_any)
    assert outcome == (UNREADABLE, "the document has more than 100,000 values")


@pytest.mark.parametrize("text", ["1, 2, ", "[{", '\\"', "\\\\"])
def test_what_stands_in_a_text_is_no_value(text: str) -> None:
    of_any = body_of({}, max_bytes=10**7)
    assert judged(f'["{text * 200_000}"]', of_any).fit is HOLDS
    assert (
        judged(f'["{text * 200_000}",[{"[]," * MAX_VALUES}1]]', of_any).fit
        is UNREADABLE
    )


@pytest.mark.parametrize(
    "content",
    [
        '"' * 10**7,
        '""' * 5 * 10**6,
        "[]" * 5 * 10**6,
        '{"a"' * 2_500_000,
        '","' * 3 * 10**6,
    ],
)
def test_what_an_unreadable_document_takes_is_bounded(content: str) -> None:
    tracemalloc.start()
    try:
        assert judged(content, body_of({}, max_bytes=10**7)).fit is UNREADABLE
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**7
    finally:
        tracemalloc.stop()


def test_rules_of_different_limits_share_one_document() -> None:
    request = sent("{" + M + "}")
    limits = (5, 1000, 2000, 500)
    outcomes = [
        examine(body_of({}, max_bytes=limit), request, deny=False).fit
        for limit in limits
    ]
    assert outcomes == [UNREADABLE, HOLDS, HOLDS, HOLDS]
    assert (
        len([kept for kept in request.kept.values() if isinstance(kept, ParsedJson)])
        == 1
    )


def test_a_released_request_holds_nothing_of_its_body() -> None:
    request = sent("{" + M + "}")
    examine(MODEL, request, deny=False)
    request.release()
    assert (request.body, request.kept) == (b"", {})


def test_a_document_is_parsed_once_for_all_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = sent("{" + M + "}")
    assert examine(MODEL, request, deny=False).fit is HOLDS
    monkeypatch.delattr("squidkeeper.policy.bodies.json_form.parse")
    assert examine(OF_ANY_MODEL, request, deny=True).fit is HOLDS


# --- Content-Type and Content-Encoding ------------------------------------------------

CONTENT = ("{" + M + "}").encode()


def raw_deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()


def stored(block: bytes) -> bytes:
    return (
        len(block).to_bytes(2, "little")
        + (len(block) ^ 0xFFFF).to_bytes(2, "little")
        + block
    )


TYPES = [
    (["application/json"], HOLDS),
    (["Application/JSON ; Charset=UTF-8"], HOLDS),
    (['application/json;charset="utf-8"; profile="x"'], HOLDS),
    (["application/json;"], HOLDS),
    (["application/vnd.api+json"], HOLDS),
    (["application/x-amz-json-1.1"], HOLDS),
    ([], UNREADABLE),
    ([""], UNREADABLE),
    (["text/plain"], UNREADABLE),
    (["application/x-www-form-urlencoded"], UNREADABLE),
    (["multipart/form-data; boundary=x"], UNREADABLE),
    (["multipart/x+json"], UNREADABLE),
    (["application/x-www-form-urlencoded+json"], UNREADABLE),
    (["application/json; x=application/x-www-form-urlencoded"], UNREADABLE),
    (["application/json; x=multipart/form-data"], UNREADABLE),
    (['application/vnd.api+json; profile="https://example.com/format"'], HOLDS),
    (["application/x-ndjson"], UNREADABLE),
    (["application/json-seq"], UNREADABLE),
    (["application/json, text/plain"], UNREADABLE),
    (["application/json text/plain"], UNREADABLE),
    (["application/json; charset=utf-16"], UNREADABLE),
    (["application/json; charset=utf-8; charset=utf-7"], UNREADABLE),
    (["application/json; charset*=utf-7''"], UNREADABLE),
    (['application/json; x="; charset=utf-16"'], UNREADABLE),
    (["application/json\t/x"], UNREADABLE),
    (["application/json", "application/json"], UNREADABLE),
]


@pytest.mark.parametrize(("types", "fit"), TYPES)
def test_only_a_type_of_json_is_read(types: list[str], fit: Fit) -> None:
    headers = [("content-TYPE", value) for value in types]
    assert examine(MODEL, sent(CONTENT, headers), deny=False).fit is fit
    assert examine(
        MODEL, sent(CONTENT[:1], headers, complete=False), deny=False
    ).fit in (fit, NEEDS_MORE)


CODED: list[tuple[list[tuple[str, str]], bytes, Fit]] = [
    ([("Content-Encoding", "gzip")], gzip.compress(CONTENT), HOLDS),
    ([("content-encoding", " GZIP\t")], gzip.compress(CONTENT), HOLDS),
    ([("Content-Encoding", "x-gzip")], gzip.compress(CONTENT), HOLDS),
    ([("Content-Encoding", "deflate")], zlib.compress(CONTENT), HOLDS),
    ([("Content-Encoding", "identity")], CONTENT, HOLDS),
    ([("Transfer-Encoding", "chunked")], CONTENT, HOLDS),
    ([], gzip.compress(CONTENT), UNREADABLE),
    ([("Content-Encoding", "gzip")], CONTENT, UNREADABLE),
    ([("Content-Encoding", "gzip")], b"", UNREADABLE),
    ([("Content-Encoding", "gzip")], gzip.compress(CONTENT)[:-1], UNREADABLE),
    ([("Content-Encoding", "gzip")], gzip.compress(CONTENT) + b"\0", UNREADABLE),
    ([("Content-Encoding", "gzip")], gzip.compress(CONTENT) * 2, UNREADABLE),
    (
        [("Content-Encoding", "gzip")],
        gzip.compress(CONTENT)[:-8] + bytes(8),
        UNREADABLE,
    ),
    ([("Content-Encoding", "gzip")], zlib.compress(CONTENT), UNREADABLE),
    ([("Content-Encoding", "gzip")], gzip.compress(bytes(10**6)), UNREADABLE),
    ([("Content-Encoding", "deflate")], raw_deflate(CONTENT), UNREADABLE),
    ([("Content-Encoding", "deflate")], zlib.compress(CONTENT) + b"\0", UNREADABLE),
    ([("Content-Encoding", "deflate")], zlib.compress(CONTENT)[:4], UNREADABLE),
    ([("Content-Encoding", "deflate")], zlib.compress(bytes(10**6)), UNREADABLE),
    ([("Content-Encoding", "br")], CONTENT, UNREADABLE),
    ([("Content-Encoding", "")], CONTENT, UNREADABLE),
    ([("Content-Encoding", "gzip, gzip")], gzip.compress(CONTENT), UNREADABLE),
    (
        [("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")],
        gzip.compress(CONTENT),
        UNREADABLE,
    ),
    (
        [("Content-Encoding", "gzip"), ("content-encoding", "identity")],
        gzip.compress(CONTENT),
        UNREADABLE,
    ),
    ([("Content_Encoding", "gzip")], CONTENT, UNREADABLE),
    ([("content.encoding", "gzip")], CONTENT, UNREADABLE),
    ([("Content-Encoding ", "gzip")], CONTENT, UNREADABLE),
    ([("Content_Type", "text/plain")], CONTENT, UNREADABLE),
    ([("Transfer-Encoding", "gzip, chunked")], CONTENT, UNREADABLE),
    ([("Transfer_Encoding", "gzip")], CONTENT, UNREADABLE),
    ([], b" " * 4096 + CONTENT, UNREADABLE),
    ([("Content-Encoding", "gzip")], gzip.compress(b" " * 4096 + CONTENT), UNREADABLE),
]


@pytest.mark.parametrize(("headers", "content", "fit"), CODED, ids=range(len(CODED)))
def test_an_encoding_is_undone_as_every_server_does(
    headers: list[tuple[str, str]], content: bytes, fit: Fit
) -> None:
    assert examine(MODEL, sent(content, [*JSON, *headers]), deny=False).fit is fit
    if fit is UNREADABLE:
        assert (
            examine(OF_ANY_MODEL, sent(content, [*JSON, *headers]), deny=True).fit
            is UNREADABLE
        )


def test_a_body_that_inflates_to_two_documents_is_unreadable() -> None:
    """To a reader of deflate without zlib, the two bytes of zlib's header begin a
    stored block of one byte.
    """
    to_raw = stored(CONTENT) + b"\x01" + stored(b"")
    to_zlib = to_raw + bytes(0xFFFE - len(to_raw))
    body = (
        b"\x78\x01\x00"
        + stored(to_zlib)
        + b"\x01"
        + stored(b"")
        + zlib.adler32(to_zlib).to_bytes(4, "big")
    )
    assert zlib.decompress(body) == to_zlib
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(body) == b"\x01" + CONTENT
    rule = body_of({"/model": Allowed(values=("gpt-5-mini",))}, max_bytes=100_000)
    outcome = examine(
        rule, sent(body, [*JSON, ("Content-Encoding", "deflate")]), deny=False
    )
    assert outcome == (UNREADABLE, "the body is deflated in two ways at once")


def test_a_bomb_costs_no_more_than_the_cap() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    rule = body_of({}, max_bytes=100_000)
    tracemalloc.start()
    try:
        outcome = examine(
            rule, sent(bomb, [*JSON, ("Content-Encoding", "gzip")]), deny=False
        )
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert outcome == (UNREADABLE, "the body is longer than 100000 bytes")


# --- any bytes ------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(-1e9, 1e9)
    | st.text(max_size=5)
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner)
)
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@given(
    st.binary()
    | st.text().map(str.encode)
    | DOCUMENTS.map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_have_one_outcome(content: bytes) -> None:
    for encoding in ENCODINGS:
        for deny in (False, True):
            request = sent(content, [*JSON, ("Content-Encoding", encoding)])
            assert examine(MODEL, request, deny=deny).fit in (HOLDS, FAILS, UNREADABLE)


@given(DOCUMENTS, st.sampled_from(sorted(ENCODINGS)), st.data())
def test_a_cut_body_needs_more_or_has_the_outcome_of_all_of_it(
    document: object, encoding: str, data: st.DataObject
) -> None:
    content = ENCODINGS[encoding](
        json.dumps({"model": "gpt-5-mini", "x": document}).encode()
    )
    headers = [*JSON, ("Content-Encoding", encoding)]
    cut = data.draw(st.integers(0, len(content)))
    whole = examine(MODEL, sent(content, headers), deny=False)
    part = examine(MODEL, sent(content[:cut], headers, complete=False), deny=False)
    assert part in (BodyOutcome(NEEDS_MORE), whole)


@given(
    st.recursive(
        st.text('[]{}\\",:', max_size=4),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_brackets_in_texts_are_no_depth(document: object) -> None:
    content, depth = json.dumps(document).encode(), depth_of(document)
    for allowed in {depth, max(depth - 1, 0)}:
        with mock.patch("squidkeeper.policy.bodies.json_form.MAX_DEPTH", allowed):
            refused = (
                judged(content, body_of({}, max_bytes=10**6)).reason
                == f"the document is deeper than {allowed}"
            )
            assert refused == (depth > allowed)


def depth_of(value: object) -> int:
    inner = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else None
    )
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(
    st.lists(st.sampled_from(["a", "\\\\", '\\"', "\\u0061", "[", '", "', "é"])),
    st.integers(1, 20),
)
def test_a_document_is_read_in_pieces_as_it_is_at_once(
    parts: list[str], piece: int
) -> None:
    """Where it is cut changes nothing: neither a text nor an escape is torn."""
    text = "".join(parts)
    content = f'{{"a": ["{text}"]}}'
    commas = len(json.loads(content)["a"]) - 1
    marks = b"[[" + b"," * commas + b"]]"
    with mock.patch.object(json_form, "_PIECE", piece):
        assert b"".join(json_form.outside_texts(content.encode())) == marks
        assert parse(content.encode()) == json.loads(content)
        for refused in ("\\u0000", "\\ud800"):
            torn = content.replace('"]', f'{refused}"]')
            with pytest.raises(UnreadableBody):
                parse(torn.encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "%b"}' % (rb"\ud83d\ude00" * (1 << 20)),
        b'{"a": "%b"}' % (rb"\\" * (4 << 20)),
        b'{"%b": 1}' % ("\u0130".encode() * (4 << 20)),
        b'{"a": [%b1]}' % (b"%b, " % (b"1" * 308) * 30_000),
    ],
    ids=["surrogates", "backslashes", "a long name", "long integers"],
)
def test_other_threads_run_while_a_long_document_is_read(body: bytes) -> None:
    """One call that reads all of it would hold the interpreter's lock. On a busy
    machine another thread may get no processor, so there are three tries.
    """
    assert any(turns_of_another_thread(body) > 100 for _ in range(3))


def turns_of_another_thread(body: bytes) -> int:
    """Count how often another thread runs while a body is judged."""
    turns, ended = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not ended.is_set():
            turns += 1
            ended.wait(1e-5)  # others run meanwhile

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=take_turns)
    try:
        thread.start()
        judged(body, body_of({"/b": Allowed(absent=True)}, max_bytes=len(body)))
    finally:
        ended.set()
        sys.setswitchinterval(before)
        thread.join()
    return turns


TOKENS = (
    *'{}[]:,"\\ \n01-.',
    *(
        "e9",
        "null",
        "true",
        '"a":',
        "\\u0061",
        "\\ud800",
        "\\udc00",
        "//",
        "\ufeff",
        "\u2028",
        "\0",
        "NaN",
        "1e400",
    ),
    *("0x1", "'", ',"model":"evil"', '"a":{"a":1},'),
)


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 2), st.sampled_from(TOKENS)),
        max_size=3,
    )
)
def test_what_is_read_is_what_another_parser_reads(
    edits: list[tuple[int, int, str]],
) -> None:
    content = '{"model":"gpt-5-mini","a":[1,{"b":"\\ud83d\\ude00","c":-2.5e3}]}'
    for at, removed, token in edits:
        content = content[:at] + token + content[at + removed :]
    with suppress(UnreadableBody):
        assert parse(content.encode()) == msgspec.json.decode(content)


@given(DOCUMENTS)
def test_what_python_writes_is_read_whatever_it_escapes(document: object) -> None:
    """U+0000, `__proto__` and numbers that a double lacks are in tables above."""
    text = json.dumps(document, allow_nan=False)
    if r"\u0000" in text or len(text) > 4000:
        return
    for written in (text, json.dumps(document, ensure_ascii=False)):
        assert judged(written, body_of({})).fit is HOLDS
