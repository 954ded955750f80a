"""What requests to model APIs may use, what tokens cost, and streams that are asked for
their usage.
"""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import UnreadableBody
from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.language.prices import Price, Prices
from squidkeeper.policy.usage.cost import cost_of, dearest_of
from squidkeeper.policy.usage.forms import form_of
from squidkeeper.policy.usage.members import (
    KEPT_AT_MOST,
    FoundMember,
    MemberScanner,
    WantedMembers,
    path_of,
)
from squidkeeper.policy.usage.reserve import reserve_of, with_usage_asked
from squidkeeper.policy.usage.tokens import Reserve, Usage

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"
OF_RULE = 4096


def reserved(
    body: str | bytes,
    target: str = CHAT,
    *headers: tuple[str, str],
    method: str = "POST",
    complete: bool = True,
) -> Reserve:
    raw = body.encode() if isinstance(body, str) else body
    sent = SentRequest(method, target, headers, raw, complete, has_body=bool(raw))
    return reserve_of(sent, OF_RULE, form_of(method, target))


M = '"model": "m", '
OUT: tuple[tuple[str, str, int], ...] = (  # target, body, tokens of the answer
    (CHAT, f'{{{M}"messages": []}}', OF_RULE),
    (CHAT, f'{{{M}"max_tokens": 100}}', 100),
    (CHAT, f'{{{M}"max_tokens": 100000}}', 100000),
    (CHAT, f'{{{M}"max_tokens": 1, "max_completion_tokens": 900}}', 900),
    (CHAT, f'{{{M}"max_tokens": 100, "n": 5}}', 500),
    (CHAT, f'{{{M}"n": 3}}', 3 * OF_RULE),
    (CHAT, f'{{{M}"n": 0, "max_tokens": 7}}', 7),
    (CHAT, f'{{{M}"max_tokens": {10**12}, "n": 9}}', 10**9),
    ("/v1/completions", f'{{{M}"max_tokens": 10, "n": 2, "best_of": 8}}', 80),
    ("/v1/embeddings", f'{{{M}"input": "a"}}', 0),
    ("/v1/completions", '{"prompt": "a, [b", "max_tokens": 10}', 10),
    ("/v1/completions", '{"prompt": ["a,b", "\\"[", "c"], "max_tokens": 10}', 30),
    ("/v1/completions", '{"prompt": [[1, 2], [3]], "max_tokens": 10, "n": 2}', 40),
    ("/v1/completions", '{"prompt": [1, 2, 3], "max_tokens": 10}', 10),
    ("/v1/completions", f'{{"prompt": {["a"] * 9000!r}}}'.replace("'", '"'), 36864000),
    (RESPONSES, f'{{{M}"max_output_tokens": 64}}', 64),
    (MESSAGES, f'{{{M}"max_tokens": 64}}', 64),
    (GEMINI, '{"generationConfig": {"maxOutputTokens": 64, "candidateCount": 2}}', 128),
    (GEMINI, '{"generation_config": {"max_output_tokens": 64}}', 64),
    (
        f"{GEMINI[:-15]}streamGenerateContent",
        '{"generationConfig": {"maxOutputTokens": 64}}',
        64,
    ),
    (
        "/v1beta/interactions",
        f'{{{M}"generation_config": {{"max_output_tokens": 64}}}}',
        64,
    ),
    ("/model/m/converse", '{"inferenceConfig": {"maxTokens": 64}}', 64),
    # the limit of another API makes an answer longer only
    (CHAT, f'{{{M}"max_output_tokens": 1}}', OF_RULE),
    (CHAT, f'{{{M}"max_tokens": 1, "max_output_tokens": 9000}}', 9000),
    (CHAT, f'{{{M}"max_tokens": 1, "n_predict": 9000}}', 9000),
    (CHAT, f'{{{M}"max_tokens": 1, "best_of": 8}}', 8),
    # what is no limit
    (CHAT, f'{{{M}"max_tokens": 0}}', OF_RULE),
    (CHAT, f'{{{M}"max_tokens": -1}}', OF_RULE),
    (CHAT, f'{{{M}"max_tokens": null}}', OF_RULE),
    # beside a limit of its own: some servers of these paths read it as no limit
    *(
        (target, f'{{{M}"{own}": 1, "{other}": {none}}}', OF_RULE)
        for target, own in (
            (CHAT, "max_tokens"),
            (CHAT, "max_completion_tokens"),
            ("/v1/completions", "max_tokens"),
            (RESPONSES, "max_output_tokens"),
            (MESSAGES, "max_tokens"),
        )
        for other in (
            "n_predict",
            "max_new_tokens",
            "max_completion_tokens",
            "max_tokens",
            "max_output_tokens",
        )
        if other != own
        for none in (-2, -1, 0, -(2**40))
    ),
    (CHAT, f'{{{M}"max_tokens": 5, "n_predict": -1, "n": 2}}', 2 * OF_RULE),
    (CHAT, f'{{{M}"max_tokens": 90000, "n_predict": -1}}', 90000),
    (CHAT, f'{{{M}"max_tokens": 1, "n_predict": null}}', 1),
    (GEMINI, '{"generationConfig": {"maxOutputTokens": 1}, "max_tokens": -1}', OF_RULE),
    (CHAT, f'{{{M}"metadata": {{"max_tokens": 1}}}}', OF_RULE),
    (CHAT, f'{{{M}"text": "\\"max_tokens\\": 1"}}', OF_RULE),
    (RESPONSES, f'{{{M}"max_tokens": 1}}', OF_RULE),
    (CHAT, "", OF_RULE),
    # an unknown form names no less than the rule
    ("/v1/other", f'{{{M}"max_tokens": 1}}', OF_RULE),
    ("/v1/other", f'{{{M}"max_tokens": 9000, "n": 2}}', 18000),
    ("/v1/other", f'{{{M}"max_tokens": "x", "n": 1.5}}', OF_RULE),
    ("/v1/other", "max_tokens=1", OF_RULE),
)
UNREADABLE: tuple[
    tuple[str, str | bytes, str], ...
] = (  # an API could read another limit in it
    *(
        (CHAT, f'{{{M}"max_tokens": {value}}}', "max_tokens")
        for value in ('"1"', "64000.0", "6.4e4", "true", "[1]")
    ),
    (CHAT, f'{{{M}"n": "128"}}', "n is no"),
    *(
        (CHAT, body, "plain JSON")
        for body in (
            f'{{{M}"max_tokens": 1, "max_tokens": 100000}}',
            f'{{{M}"max_tokens": 1, "Max_Tokens": 100000}}',
            f'{{{M}"max_tokens": 1, "maxTokens": 100000}}',
            f'{{{M}"max_tokens": 1, "max-tokens": 100000}}',
            f'{{{M}"max_tokens": 1, "max_to\u212aens": 100000}}',
            f'{{{M}"max_tokens": 1, "max_token\u017f": 100000}}',
            f'{{{M}"max_tokens": 1, "MAX_TO\u212aEN\u017f": 100000}}',
            f'{{{M}"max_tokens": 1, "max_tok\u0117ns": 100000}}',
            f'{{{M}"max_tokens": 1, "max_tokens\0": 100000}}',
            # a server that compares names as they are reads no limit here
            f'{{{M}"Max_Tokens": 1}}',
            f'{{{M}"maxTokens": 1}}',
            '{"Model": "cheap", "max_tokens": 1}',
            # what lenient parsers read, and others do not
            '{"a": 1 /*, "max_tokens": 1, "b": */, "c": 2}',
            """{"a": 'x, "max_tokens": 1, "b": ', "c": 2}""",
            '{"a": NaN, "max_tokens": 1}',
            '{"max_tokens": 1,}',
            '{"a": 1 "max_tokens": 1}',
            '{"a": "\\ud800", "max_tokens": 1}',
            b'{"a": "\xe3", "max_tokens": 1}',
            f'{{{M}"max_tokens": 1, "max_token\\u0073": 100000}}',
            f'{{{M}"max_tokens": 100000{" " * KEPT_AT_MOST}}}',
            f'{{"model": "{"x" * 2**20}"}}',
            f'{{{M}"model": "cheap"}}',
            '[{"max_tokens": 1}]',
            '{"max_tokens": 1}{"max_tokens": 9}',
            '{"max_tokens": 1',
            "max_tokens=1",
            '\ufeff{"max_tokens": 1}',
            '{"max_tokens": 1}'.encode("utf-16"),
        )
    ),
    (
        GEMINI,
        '{"generationConfig": {"maxOutputTokens": 1}, "generation_config": {"maxOutputTokens": 9}}',
        "plain JSON",
    ),
    *(
        (f"{GEMINI}?key=k&{query}", "{}", "asked not to tell")
        for query in (
            "fields=candidates",
            "$fields=c",
            "%24%66ields=c",
            "alt=proto",
            "$alt=proto",
            "callback=x",
            "a;alt=",
        )
    ),
)


@pytest.mark.parametrize(("target", "body", "reason"), UNREADABLE)
def test_a_body_that_an_api_could_read_in_another_way_has_no_reserve(
    target: str, body: str | bytes, reason: str
) -> None:
    with pytest.raises(UnreadableBody, match=reason):
        reserved(body, target)


@pytest.mark.parametrize(("target", "body", "tokens_out"), OUT)
def test_a_request_reserves_the_answer_that_it_allows(
    target: str, body: str, tokens_out: int
) -> None:
    reserve = reserved(body, target)
    assert reserve.tokens_out == tokens_out
    assert reserve.tokens_in == (len(body) + 3) // 4


MODELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (CHAT, "{}", ("",)),
    (CHAT, '{"model": "m"}', ("m",)),
    (CHAT, '{"model": 7}', ("",)),
    ("/v1/other", '{"model": "m"}', ("m",)),
    (GEMINI, "{}", ("gemini-2.5-flash",)),
    *(
        (target, '{"model": "cheap"}', (*named, "cheap"))
        for target, *named in (
            (GEMINI, "gemini-2.5-flash"),
            ("/openai/deployments/dear/chat/completions?api-version=1", "dear"),
            ("/openai/deployments/dear/embeddings", "dear"),
            ("/openai/deployments/dear/extensions/chat/completions", "dear"),
            ("/v1/engines/dear/completions", "dear"),
            ("/v1/p/publishers/anthropic/models/dear@1:streamRawPredict", "dear@1"),
            ("/v1/p/endpoints/7/chat/completions", "7"),
            ("/v1/p/endpoints/openapi/chat/completions",),
            ("/model/dear/invoke", "dear"),
            ("/model/dear%3A0/invoke-with-response-stream", "dear:0"),
            ("/model/dear:0/converse", "dear:0"),
            ("/endpoints/dear/invocations", "dear"),
            ("/v1/models/dear:predict", "dear"),
            # in each reading of a path
            ("/OpenAI/%64eployments//dear/chat/completions", "", "dear"),
            ("/deployments/a/../dear/chat/completions", "a", "dear"),
            ("/deployments/%zz/chat/completions", ""),
        )
    ),
)


@pytest.mark.parametrize(("target", "body", "models"), MODELS)
def test_a_reserve_is_for_each_model_that_may_answer(
    target: str, body: str, models: tuple[str, ...]
) -> None:
    assert reserved(body, target).models == models


def test_answers_of_gemini_are_asked_for_whole() -> None:
    assert (
        reserved("{}", f"{GEMINI}?alt=sse&key=k&$alt=json;charset=utf-8").tokens_out
        == OF_RULE
    )
    with pytest.raises(UnreadableBody, match="asked not to tell"):
        reserved("{}", GEMINI, ("X-Goog-FieldMask", "candidates"))


def test_a_body_counts_by_its_content() -> None:
    body = json.dumps({"model": "m", "max_tokens": 5, "text": "x" * 100_000}).encode()
    assert reserved(
        gzip.compress(body), CHAT, ("Content-Encoding", "gzip")
    ) == reserved(body)
    assert reserved(b"x" * 100, "/v1/other", ("Content-Encoding", "br")) == Reserve(
        ("",), 25, OF_RULE
    )
    with pytest.raises(UnreadableBody, match="neither gzip nor deflate"):
        reserved(b"x" * 100, CHAT, ("Content-Encoding", "br"))


def test_what_generates_nothing_reserves_nothing() -> None:
    assert reserved("{}", "/v1/messages/count_tokens") == Reserve(("",), 0, 0)
    assert reserved("", "/v1/responses/resp_1", method="GET") == Reserve(("",), 0, 0)
    assert reserved("", "/v1/other", method="GET") == Reserve(("",), 0, OF_RULE)


# --- streams that are to report their usage -------------------------------------------

KEPT = '"temperature": 0.10, "text": "é \\u00e9", "n":  1e0'
ASKED = '{"stream_options": {"include_usage": true}, '
ASKS: tuple[tuple[str, str | None], ...] = (
    (f'{{"stream": true, {KEPT}}}', f'{ASKED}"stream": true, {KEPT}}}'),
    (f' {{ {KEPT}, "stream": true}}', f' {ASKED} {KEPT}, "stream": true}}'),
    (
        '{"stream_options": null, "stream": true}',
        '{"stream_options": {"include_usage": true}, "stream": true}',
    ),
    (
        '{"stream_options":{"include_usage":false, "include_obfuscation": false}, "stream": true, "a": {}}',
        '{"stream_options":{"include_usage": true, "include_obfuscation": false}, "stream": true, "a": {}}',
    ),
    ('{"stream": true, "stream_options": {"include_usage": true}}', None),
    ('{"stream": false}', None),
    *(
        (f'{{"stream": {value}}}', f'{ASKED}"stream": {value}}}')
        for value in ("1", '"true"', '"yes"')
    ),
    ('{"stream": null}', None),
    ('{"messages": [{"stream": true}]}', None),
    ("{}", None),
    ("", None),
)


@pytest.mark.parametrize(("body", "asked"), ASKS)
def test_a_stream_is_asked_for_its_usage_and_else_stays_as_it_is(
    body: str, asked: str | None
) -> None:
    assert with_usage_asked(body.encode(), form_of("POST", CHAT)) == (
        None if asked is None else asked.encode()
    )


@pytest.mark.parametrize(
    "body",
    [
        *(
            f'{{"stream": true, "stream_options": {options}}}'
            for options in (
                "[]",
                "[1]",
                "true",
                '{"a": NaN}',
                f'{{"a": "{"x" * 20_000}"}}',
                '{"include_usage": true, "include_usage": false}',
                '{"include_usage": true, "Include_Usage": false}',
                '{"include_usage": true, "includeu\u017fage": false}',
                '{"include_u\u00e9sage": false}',
            )
        ),
        '{"stream": true, "stream": false}',
        '{"stream": true, "STREAM": 1}',
        '{"stream": true, "\u017ftream": 1}',
        '{"STREAM": true}',
        '{"stream": true, "stream_options": null, "Stream_Options": 0}',
        '{"stream": true, "streamOptions": {"include_usage": true}}',
        '{"stream": true',
        '[{"stream": true}]',
    ],
)
def test_a_stream_that_an_api_could_read_in_another_way_is_not_asked(body: str) -> None:
    with pytest.raises(UnreadableBody, match="plain"):
        with_usage_asked(body.encode(), form_of("POST", CHAT))


def test_only_apis_that_know_the_option_are_asked() -> None:
    for target in (MESSAGES, RESPONSES, GEMINI, "/v1/other"):
        assert with_usage_asked(b'{"stream": true}', form_of("POST", target)) is None
    assert (
        with_usage_asked(b'{"stream": true}', form_of("POST", "/v1/completions"))
        is not None
    )


# --- cost -----------------------------------------------------------------------------

PRICES = Prices(
    (
        Price("gpt-4o*", 2_500_000, 10_000_000, 1_250_000, 2_500_000),
        Price("dear", 1, 75_000_000, 0, 0),
    )
)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage("gpt-4o-2024-08-06", 1_000_000, 1_000_000), 12_500_000),
        (
            Usage("gpt-4o", 1_000, 100, cached_in=600, cache_write=100),
            300 * 2.5 + 600 * 1.25 + 100 * 2.5 + 100 * 10,
        ),
        (Usage("gpt-4o", 1, 0), 3),
        (Usage("gpt-4o", 0, 0), 0),
        (Usage("unknown", 1_000_000, 1_000_000), 77_500_000),
        (Usage("", 0, 1), 75),
        (Usage("dear", 0, 1_000), 75_000),
    ],
)
def test_tokens_cost_what_the_prices_say(usage: Usage, cost: float) -> None:
    assert cost_of(usage, PRICES) == cost
    assert cost_of(usage, Prices()) == 0


def test_the_dearest_model_that_may_answer_has_the_reserve() -> None:
    reserve = Reserve(("gpt-4o", "dear", "gpt-4o-mini"), 100, 1_000)
    assert dearest_of(reserve.usages(), PRICES) == Usage("dear", 100, 1_000)
    assert dearest_of(reserve.usages(), Prices()).model == "gpt-4o"


# --- members --------------------------------------------------------------------------

WANTED = ("model", "usage", "response.usage", "response.id", "a.b.c")
NAMES = st.sampled_from(["model", "usage", "response", "id", "a", "b", "c", "x", ""])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    documents=st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=3),
    indent=st.sampled_from([None, 0, 3]),
    places=st.lists(st.integers(0, 2000)),
    in_array=st.booleans(),
)
def test_members_are_found_as_a_parser_finds_them(
    documents: list[dict[str, object]],
    indent: int | None,
    places: list[int],
    in_array: bool,
) -> None:
    content = (
        json.dumps(documents, indent=indent)
        if in_array
        else "\n".join(map(json.dumps, documents))
    )
    raw, scanner, start = (
        content.encode(),
        MemberScanner(WantedMembers(WANTED), is_array=True),
        0,
    )
    for place in [*sorted(places), len(raw)]:
        scanner.feed(raw[start:place])
        start = max(start, place)
    assert scanner.is_whole
    found = [
        {path: json.loads(member.value) for path, member in members.items()}
        for members in scanner.objects
    ]
    assert found == [
        {
            path_of(name): value
            for name in WANTED
            if (value := member_of(document, name)) is not ...
        }
        for document in documents
    ]


def member_of(value: object, name: str) -> object:
    """Return a member, `...` where it is missing."""
    for part in name.split("."):
        value = value.get(part, ...) if isinstance(value, dict) else ...
    return value


def test_a_member_tells_its_place_and_a_long_one_is_empty() -> None:
    scanner = MemberScanner(WantedMembers(("usage", "model")))
    long = b'"' + b"x" * KEPT_AT_MOST + b'"'
    scanner.feed(b' {"usage":')
    scanner.feed(b' [1] , "model": ' + long + b"}")
    assert scanner.is_whole
    assert scanner.objects == [
        {
            path_of("usage"): FoundMember(b"[1]", 11, 15),
            path_of("model"): FoundMember(b"", 26, 26 + len(long)),
        }
    ]
