"""What is read of the answers of model APIs, in samples of each, cut anywhere, forged
and broken.
"""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.policy.usage.forms import FORMS, form_of
from squidkeeper.policy.usage.reader import reader_for
from squidkeeper.policy.usage.tokens import NOTHING_USED, Unmetered, Usage
from tests.usage_samples import (
    CHAT,
    GEMINI,
    MESSAGES,
    RESPONSES,
    SAMPLES,
    TABLE,
    TYPES,
    Sample,
)

NO_USAGE, NOT_PLAIN, CUT = (
    "the answer reports no usage",
    "the answer is not plainly of this API",
    "the answer was cut off",
)
of_each = pytest.mark.parametrize("sample", TABLE, ids=lambda sample: sample.file)


def read(
    pieces: Iterable[bytes],
    target: str = CHAT,
    kind: str = TYPES["json"],
    *headers: tuple[str, str],
    whole: bool = True,
    method: str = "POST",
    status: int = 200,
) -> Usage | Unmetered:
    reader = reader_for(method, target, status, [("Content-Type", kind), *headers])
    for piece in pieces:
        reader.feed(piece)
    return reader.end(whole=whole)


def read_events(
    *events: object, target: str = CHAT, whole: bool = True
) -> Usage | Unmetered:
    return read(
        [b"data: %b\n\n" % json.dumps(event).encode() for event in events],
        target,
        TYPES["sse"],
        whole=whole,
    )


def cut(content: bytes, places: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for place in (*places, len(content)):
        yield content[start:place]
        start = place


# --- samples --------------------------------------------------------------------------


@of_each
def test_the_usage_of_a_sample_is_read(sample: Sample) -> None:
    assert read([sample.content], sample.target, sample.type) == sample.usage


def test_each_form_has_samples_and_the_address_of_its_documentation() -> None:
    read_forms = {
        form.name for sample in TABLE if (form := form_of("POST", sample.target))
    }
    assert read_forms == {form.name for form in FORMS if not form.uses_nothing}
    assert all(form.documentation.startswith("https://") for form in FORMS)


@of_each
def test_an_answer_can_be_cut_at_each_byte(sample: Sample) -> None:
    content = sample.content
    for place in range(len(content)):
        assert read(cut(content, [place]), sample.target, sample.type) == sample.usage
    assert (
        read(cut(content, range(len(content))), sample.target, sample.type)
        == sample.usage
    )


LINE_ENDS = {"LF": b"\n", "CR": b"\r", "CRLF": b"\r\n"}
STREAMS = [sample for sample in TABLE if sample.file.endswith(".sse")]


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("sample", STREAMS, ids=lambda sample: sample.file)
def test_a_stream_may_have_any_line_end_a_byte_order_mark_comments_and_data_of_several_lines(
    sample: Sample, end: bytes
) -> None:
    lines = (
        sample.content.replace(b"\r\n", b"\n")
        .replace(b', "', b',\ndata:"')
        .replace(b',"', b',\ndata: "')
    )
    content = b"\xef\xbb\xbf: a comment\n\n:\nid: 7\nretry\n" + lines.replace(
        b"\n\n", b"\n\n\n: ping\n\n"
    )
    content = content.replace(b"\n", end)
    assert read([content], sample.target, sample.type) == sample.usage
    for place in range(0, len(content), 7):
        assert read(cut(content, [place]), sample.target, sample.type) == sample.usage
    assert (
        read(cut(content, range(len(content))), sample.target, sample.type)
        == sample.usage
    )
    assert read([content.rstrip(end)], sample.target, sample.type) == sample.usage


@given(data=st.data(), sample=st.sampled_from(TABLE))
def test_an_answer_can_be_cut_anywhere(data: st.DataObject, sample: Sample) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(sample.content)))))
    assert read(cut(sample.content, places), sample.target, sample.type) == sample.usage


@of_each
def test_what_is_left_before_its_end_is_unmetered(sample: Sample) -> None:
    """A client that leaves gets nothing for free: at each byte the answer is unmetered,
    or its usage has come.
    """
    for place in range(len(sample.content)):
        outcome = read(
            [sample.content[:place]], sample.target, sample.type, whole=False
        )
        assert outcome == sample.usage or (
            isinstance(outcome, Unmetered) and outcome.reason == CUT
        )


def test_an_answer_that_was_left_tells_what_was_used_until_then() -> None:
    message = next(sample for sample in TABLE if sample.file == "messages.sse").content
    outcome = read(
        [message.partition(b"event: content_block_stop")[0]],
        MESSAGES,
        TYPES["sse"],
        whole=False,
    )
    assert outcome == Unmetered(CUT, tokens_in=4479, tokens_out=4)
    assert read_events(*[{"choices": []}] * 500, whole=False) == Unmetered(
        CUT, tokens_out=500
    )


# --- what is no usage -----------------------------------------------------------------


def chat_usage(**members: object) -> dict[str, object]:
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, **members}
    return {name: value for name, value in usage.items() if value is not ...}


NOT_USAGES: dict[str, object] = {
    "negative": chat_usage(completion_tokens=-5),
    "negative prompt": chat_usage(prompt_tokens=-5),
    "text": chat_usage(prompt_tokens="20"),
    "float": chat_usage(completion_tokens=5.0),
    "bool": chat_usage(completion_tokens=True),
    "huge": chat_usage(completion_tokens=10**10),
    "very huge": chat_usage(completion_tokens=10**400),
    "array": [20, 5, 25],
    "array of a number": chat_usage(completion_tokens=[5]),
    "text of a usage": '{"prompt_tokens": 20, "completion_tokens": 5}',
    "number": 25,
    "true": True,
    "no prompt": chat_usage(prompt_tokens=...),
    "null prompt": chat_usage(prompt_tokens=None),
    "neither answer nor total": chat_usage(completion_tokens=..., total_tokens=...),
    "zero": chat_usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
    "more cached than sent": chat_usage(prompt_tokens_details={"cached_tokens": 21}),
    "cached is text": chat_usage(prompt_tokens_details={"cached_tokens": "1"}),
    "total is a float": chat_usage(total_tokens=25.5),
    "of Anthropic": {"input_tokens": 20, "output_tokens": 5},
    "of Gemini": {
        "promptTokenCount": 20,
        "candidatesTokenCount": 5,
        "totalTokenCount": 25,
    },
    "longer than is kept": chat_usage(padding="x" * 20_000),
    "deep": chat_usage(padding=json.loads("[" * 100 + "]" * 100)),
    "empty": {},
}


@pytest.mark.parametrize("usage", NOT_USAGES.values(), ids=NOT_USAGES)
def test_what_is_not_plainly_a_usage_is_unmetered(usage: object) -> None:
    answer = {"model": "gpt", "usage": usage}
    assert isinstance(read([json.dumps(answer).encode()]), Unmetered)
    assert isinstance(read_events({"choices": []}, answer), Unmetered)
    assert isinstance(read_events(answer, {"usage": chat_usage()}, answer), Unmetered)


PLAIN = json.dumps({"model": "gpt", "usage": chat_usage()}).encode()
OTHER = json.dumps({"usage": chat_usage(completion_tokens=1)}).encode()
NOT_ANSWERS = {
    "nothing": b"",
    "two usages": PLAIN[:-1] + b"," + OTHER[1:],
    "two by case": PLAIN[:-1] + b"," + OTHER[1:].replace(b"usage", b"Usage", 1),
    "two by an escape": PLAIN[:-1]
    + b","
    + OTHER[1:].replace(b"usage", rb"us\u0061ge", 1),
    "two answers": PLAIN + OTHER,
    "two answers in an array": b"[" + PLAIN + b"," + OTHER + b"]",
    "two numbers of one name": PLAIN.replace(
        b'"prompt_tokens"', b'"prompt_tokens": 1, "prompt_tokens"'
    ),
    "NaN": PLAIN.replace(b"20", b"NaN"),
    "cut": PLAIN[:-1],
    "text behind": PLAIN + b"x",
    "text ahead": b"x" + PLAIN,
    "UTF-16": PLAIN.decode().encode("utf-16"),
    "a page": b"<html>" + PLAIN,
    "an unknown name of 1 MB": b'{"' + b"x" * 2**20 + b'": 1,' + PLAIN[1:],
    "spaces": b"{" + b" " * 2**20,
    "brackets": b"[" * 2**20,
    "closed by another bracket": b'{"a": ],' + PLAIN[1:],
    "events": b"data: " + PLAIN + b"\n\n",
    "a usage in a text": json.dumps({"content": PLAIN.decode()}).encode(),
    "a usage in a member": json.dumps({"delta": {"usage": chat_usage()}}).encode(),
    "of Anthropic": (SAMPLES / "messages.json").read_bytes(),
    "of responses": (SAMPLES / "responses.json").read_bytes(),
    "of Gemini": (SAMPLES / "gemini.json").read_bytes(),
    "of Bedrock": (SAMPLES / "converse.json").read_bytes(),
}


@pytest.mark.parametrize("answer", NOT_ANSWERS.values(), ids=NOT_ANSWERS)
def test_what_is_not_plainly_an_answer_is_unmetered(answer: bytes) -> None:
    assert isinstance(read([answer]), Unmetered)
    assert isinstance(read(cut(answer[:5000], range(len(answer[:5000])))), Unmetered)
    if b"data: " not in answer:
        assert isinstance(
            read(
                [b"data: " + answer.replace(b"\n", b" ") + b"\n\n"], kind=TYPES["sse"]
            ),
            Unmetered,
        )


def test_an_answer_of_one_api_is_unmetered_at_the_path_of_another() -> None:
    alike = {"completions.json": CHAT, "embeddings.json": CHAT}
    for sample in TABLE:
        for target in (
            CHAT,
            RESPONSES,
            MESSAGES,
            GEMINI,
            "/v1beta/interactions",
            "/model/m/converse",
        ):
            if (
                form_of("POST", target) is not form_of("POST", sample.target)
                and alike.get(sample.file) != target
            ):
                assert isinstance(
                    read([sample.content], target, sample.type), Unmetered
                ), (sample, target)


def test_a_stream_reports_its_last_usage() -> None:
    events = [
        {
            "model": "gpt",
            "usage": chat_usage(completion_tokens=count, total_tokens=20 + count),
        }
        for count in (1, 9)
    ]
    assert read_events(*events) == Usage("gpt", 20, 9)
    # a later one could have come
    assert isinstance(read_events(*events, whole=False), Unmetered)


STARTED = {
    "type": "message_start",
    "message": {"model": "m", "usage": {"input_tokens": 25, "output_tokens": 1}},
}


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ([{"usage": {"output_tokens": 15}}], Usage("m", 25, 15)),
        (
            [{"usage": {"output_tokens": 9}}, {"usage": {"output_tokens": 15}}],
            Usage("m", 25, 15),
        ),
        ([{"usage": {"input_tokens": 60, "output_tokens": 15}}], Usage("m", 60, 15)),
        ([{"usage": {"input_tokens": None, "output_tokens": 15}}], Usage("m", 25, 15)),
        ([{"usage": {"output_tokens": "15"}}], Unmetered(NOT_PLAIN, tokens_out=2)),
        (
            [{"usage": {"output_tokens": "9"}}, {"usage": {"output_tokens": 15}}],
            Unmetered(NOT_PLAIN, tokens_out=3),
        ),
        (
            [{"type": "error", "error": {"type": "overloaded_error"}}],
            Unmetered(NO_USAGE, 25, 2),
        ),
        ([], Unmetered(NO_USAGE, 25, 1)),
    ],
)
def test_a_message_reports_its_usage_in_parts(
    events: list[object], outcome: Usage | Unmetered
) -> None:
    """What a part has replaces what was before.

    Only with a part behind the first is the usage that of the answer.
    """
    assert read_events(STARTED, *events, target=MESSAGES) == outcome


def test_the_total_counts_what_the_parts_leave_out() -> None:
    """Some servers count thoughts in `total_tokens` alone."""
    assert read_events(
        {"model": "grok", "usage": chat_usage(total_tokens=825)}
    ) == Usage("grok", 20, 805)
    assert read_events({"usage": chat_usage(total_tokens=3)}) == Usage("", 20, 5)


def test_the_tokens_of_another_model_have_the_dearest_price() -> None:
    advisor = {
        "type": "advisor_message",
        "model": "claude-opus-4-6",
        "input_tokens": 823,
        "output_tokens": 531,
    }
    usage = {"input_tokens": 412, "output_tokens": 1230, "iterations": [advisor]}
    answer = json.dumps({"model": "claude-haiku-4-5", "usage": usage}).encode()
    assert read([answer], MESSAGES) == Usage("", 1235, 1761)
    lists: list[object] = [{}, [7], [{**advisor, "output_tokens": -1}], 1]
    for iterations in lists:
        answer = json.dumps({"usage": usage | {"iterations": iterations}}).encode()
        outcome = read([answer], MESSAGES)
        assert (
            isinstance(outcome, Unmetered)
            if iterations
            else outcome == Usage("", 412, 1230)
        )


@pytest.mark.parametrize(
    "model",
    ["x" * 2**20, 7, None, ["gpt"], {"a": 1}],
    ids=["long", "number", "null", "array", "object"],
)
def test_a_model_without_a_plain_name_has_none(model: object) -> None:
    answer = json.dumps({"model": model, "usage": chat_usage()}).encode()
    assert read([answer]) == Usage("", 20, 5)


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_a_response_reports_its_usage_however_it_ends(end: str) -> None:
    content = (
        (SAMPLES / "responses.sse").read_bytes().replace(b"completed", end.encode())
    )
    assert read([content], RESPONSES, TYPES["sse"]) == Usage(
        "gpt-4.1-2025-04-14", 37, 11, cache_write=32
    )


# --- answers that are read again ------------------------------------------------------


def test_an_answer_in_the_background_is_counted_by_its_id() -> None:
    answer = json.loads((SAMPLES / "responses.json").read_bytes()) | {
        "background": True
    }
    answer_id = str(answer["id"])
    later = json.dumps(answer | {"status": "queued", "usage": None}).encode()
    done = json.dumps(answer).encode()
    assert read([later], RESPONSES) == Unmetered(
        "the answer is still being generated", answer_id=answer_id
    )
    again = f"{RESPONSES}/{answer_id}"
    assert read([later], again, method="GET") == NOTHING_USED
    assert read([done], again, method="GET") == Usage(
        "gpt-4.1-2025-04-14", 1036, 87, 1024, answer_id=answer_id
    )
    events = b"".join(
        b'data: {"type": "x", "response": %b}\n\n' % body for body in (later, done)
    )
    assert read([events], again, TYPES["sse"], method="GET") == read([done], RESPONSES)
    left = read([events[:-9]], again, TYPES["sse"], method="GET", whole=False)
    assert left == Unmetered(CUT, tokens_out=1)


def test_an_answer_that_was_counted_where_it_was_generated_is_free_to_read_again() -> (
    None
):
    content = (SAMPLES / "responses.json").read_bytes()
    assert read([content], f"{RESPONSES}/resp_67", method="GET") == NOTHING_USED


# --- which form -----------------------------------------------------------------------

PATHS = {
    "/v1/chat/completions": "openai chat",
    "/V1/Chat/Completions/": "openai chat",
    "/v1/ch%61t/completions?a=/v1/messages": "openai chat",
    "/openai/deployments/d/chat/completions?api-version=2024-10-21": "openai chat",
    "/v1/completions": "openai completions",
    "/v1/responses": "openai responses",
    "/v1/responses/compact": "openai responses",
    "/v1/responses/resp_1/cancel": "openai responses",
    "/v1/responses/resp_1": None,
    "/v1/responses/input_tokens": "nothing generated",
    "/v1/messages": "anthropic messages",
    "/v1/messages/count_tokens": "nothing generated",
    "/v1/messages/batches": None,
    "/v1/models/claude:rawPredict": None,
    "/v1/projects/p/publishers/anthropic/models/claude@1:streamRawPredict": "anthropic messages",
    "/v1beta/models/gemini:countTokens": "nothing generated",
    "/v1beta/models/gemini:streamGenerateContent?alt=sse": "gemini",
    "/v1beta/models/gemini:batchGenerateContent": None,
    "/v1/models": None,
    "/": None,
    "/%zz/v1/messages": None,
    "/v1/chat/completions%3F/messages/count_tokens": None,
    "/v1/chat/completions;/embeddings": None,
    "/v1/chat/completions/../embeddings": None,
    "/v1/chat//completions": None,
    "/v1/chat/completions%2Fembeddings": None,
    "*": None,
}


@pytest.mark.parametrize(("target", "name"), PATHS.items())
def test_a_path_leads_to_its_form(target: str, name: str | None) -> None:
    form = form_of("POST", target)
    assert (form and form.name) == name


PATH_OF_GEMINI = "/v1beta/models/gemini:streamGenerateContent?alt=sse"


def test_a_get_generates_nothing_and_may_read_an_answer_again() -> None:
    named = {target: (form := form_of("GET", target)) and form.name for target in PATHS}
    assert {target for target, name in named.items() if name == "openai responses"} == {
        "/v1/responses/resp_1",
        "/v1/responses/compact",
        "/v1/responses/input_tokens",
    }
    assert named["/v1/models"] == "nothing generated"
    assert named[PATH_OF_GEMINI] is None  # some servers read a POST in it, by a header
    assert named[MESSAGES] is None


UNREAD: Sequence[tuple[str, tuple[tuple[str, str], ...], str]] = (
    (
        "/v1/other",
        (("Content-Type", "application/json"),),
        "no form of answers is known for this path",
    ),
    (
        CHAT,
        (("Content-Type", "application/json"), ("Content-Encoding", "gzip")),
        "the answer is encoded",
    ),
    (
        CHAT,
        (("content-encoding", "identity, br"), ("Content-Type", "application/json")),
        "the answer is encoded",
    ),
    (CHAT, (), "the answer is neither JSON nor a stream of events"),
    (
        CHAT,
        (("Content-Type", "text/html"),),
        "the answer is neither JSON nor a stream of events",
    ),
    (
        CHAT,
        (("Content-Type", "application/json"),) * 2,
        "the answer is neither JSON nor a stream of events",
    ),
)


@pytest.mark.parametrize(("target", "headers", "reason"), UNREAD)
def test_an_answer_that_cannot_be_read_is_unmetered(
    target: str, headers: tuple[tuple[str, str], ...], reason: str
) -> None:
    reader = reader_for("POST", target, 200, headers)
    reader.feed(PLAIN)
    assert reader.end(whole=True) == Unmetered(reason)


def test_an_error_and_a_count_of_tokens_use_nothing() -> None:
    assert read([PLAIN], status=429) == NOTHING_USED
    assert read([PLAIN], "/v1/other", status=400, whole=False) == NOTHING_USED
    assert read([b'{"input_tokens": 7}'], "/v1/messages/count_tokens") == NOTHING_USED
    assert read([PLAIN], kind="Application/JSON ;charset=UTF-8") == Usage("gpt", 20, 5)


@pytest.mark.parametrize("status", [408, 499, 504, 524])
def test_an_answer_that_somebody_gave_up_waiting_for_costs_its_reserve(
    status: int,
) -> None:
    assert isinstance(read([PLAIN], status=status), Unmetered)


# --- any bytes, much, and quickly -----------------------------------------------------

ALPHABET = [
    b'"usage": {',
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"data: ",
    b"\n",
    b"\r",
    b"7",
    b"x" * 5000,
]


@given(
    pieces=st.lists(
        st.binary()
        | st.sampled_from(ALPHABET)
        | st.sampled_from([sample.content for sample in TABLE])
    ),
    target=st.sampled_from([sample.target for sample in TABLE]),
    kind=st.sampled_from([*TYPES.values()]),
    whole=st.booleans(),
)
def test_any_bytes_end_in_an_outcome_wherever_they_are_cut(
    pieces: list[bytes], target: str, kind: str, whole: bool
) -> None:
    outcome = read(pieces, target, kind, whole=whole)
    assert isinstance(outcome, Usage | Unmetered)
    assert read([b"".join(pieces)], target, kind, whole=whole) == outcome
    content = b"".join(pieces)[:20_000]
    assert read(cut(content, range(len(content))), target, kind) == read(
        [content], target, kind
    )


@pytest.mark.parametrize("answers", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_mixed_answers_are_counted_to_the_token(answers: int) -> None:
    """Random numbers, lengths of texts and pieces.

    Stand-ins write them, and count what they write.
    """
    chance = random.Random(27)  # the same in each run
    counted, written = [0] * 4, [0] * 4
    for _ in range(answers):
        sample = chance.choice(TABLE)
        tokens_in, tokens_out, cached = (
            chance.randrange(100, 10**6),
            chance.randrange(10**5),
            chance.randrange(100),
        )
        if sample.file == "embeddings.json":
            tokens_out = cached = 0
        content = stand_in(sample, tokens_in, tokens_out, cached, chance)
        places = sorted(
            chance.randrange(len(content)) for _ in range(chance.randrange(4))
        )
        usage = read(cut(content, places), sample.target, sample.type)
        assert isinstance(usage, Usage), (sample, usage)
        counted = [
            a + b
            for a, b in zip(
                counted,
                (1, usage.tokens_in, usage.tokens_out, usage.cached_in),
                strict=True,
            )
        ]
        written = [
            a + b
            for a, b in zip(written, (1, tokens_in, tokens_out, cached), strict=True)
        ]
    assert counted == written


def stand_in(
    sample: Sample, tokens_in: int, tokens_out: int, cached: int, chance: random.Random
) -> bytes:
    """Write an answer of a sample's API with these tokens, and a text of some
    length.
    """
    form = form_of("POST", sample.target)
    assert form is not None
    usage: dict[str, object] = {}
    if form.cached_in in form.tokens_in:  # beside the others
        usage |= {form.tokens_in[0]: tokens_in - cached, form.cached_in: cached}
    else:
        parent, _, name = form.cached_in.rpartition(".")
        usage |= {form.tokens_in[0]: tokens_in} | (
            {parent: {name: cached}} if parent else {form.cached_in: cached}
        )
    if form.tokens_out[1:]:
        thought = chance.randrange(tokens_out + 1)
        usage |= {form.tokens_out[0]: tokens_out - thought, form.tokens_out[1]: thought}
    else:
        usage |= dict.fromkeys(form.tokens_out, tokens_out)
    usage |= {form.total: tokens_in + tokens_out} if form.total else {}
    text = chance.choice(
        ('{"usage": {"total_tokens": 1}}', "é\\\n", "x")
    ) * chance.randrange(300)
    answer = {form.model: "m", "output": {"text": text}, form.usage: usage}
    if not sample.file.endswith(".sse"):
        return json.dumps(answer).encode()
    events: list[object] = [{"delta": {"text": text}}] * chance.randrange(5)
    early = {form.usage: {**usage, form.tokens_out[0]: 0, form.total or "x": tokens_in}}
    started = (
        {form.envelope: answer | early}
        if form.envelope
        else {**answer, form.usage: None}
    )
    done = (
        {form.envelope: answer} if form.envelope and not form.is_cumulative else answer
    )
    lines = (
        b"data: %b\n\n" % json.dumps(event).encode()
        for event in (started, *events, done)
    )
    return b"".join(lines)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_a_reader_keeps_less_than_50_kb_of_any_answer(kind: str) -> None:
    """1,000 streams at once have to stay below 150 MB."""
    text = b'data: {"a": "' if kind == TYPES["sse"] else b'{"a": "'
    endings = (
        b"x" * 65536,
        b'", "usage": {"a": "',
        b'", "model": "',
        b'", "' + b"n" * 1000,
        b'", "b": [{"c": "',
    )
    readers = [
        reader_for("POST", CHAT, 200, [("Content-Type", kind)]) for _ in range(20)
    ]
    for reader in readers:
        reader.feed(PLAIN[:-1])  # what is made once for all
    tracemalloc.start()
    readers = []
    for ending in endings * 4:
        reader = reader_for("POST", CHAT, 200, [("Content-Type", kind)])
        for piece in (text, b"y" * 65536, ending, b"z" * 65536):
            reader.feed(piece)
        readers.append(reader)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(readers) < 30_000
    assert peak < 10 * 2**20
