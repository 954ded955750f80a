"""Recorded answers of model APIs (tests/data/usage), each with the tokens that its
documentation counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from squidkeeper.policy.usage.tokens import Usage

SAMPLES = Path(__file__).parent / "data" / "usage"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
TYPES = {"json": "application/json", "sse": "text/event-stream; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Sample:
    """A recorded answer: the path of its request, and the tokens that its API's
    documentation counts.
    """

    file: str
    target: str
    usage: Usage

    @property
    def content(self) -> bytes:
        return (SAMPLES / self.file).read_bytes()

    @property
    def type(self) -> str:
        return TYPES[self.file.rpartition(".")[2]]


VERTEX = "/v1/projects/p/locations/global/publishers/google/models/gemini-3.1-flash-lite-preview"
TABLE = (
    Sample("chat.json", CHAT, Usage("gpt-4.1-2025-04-14", 2006, 300, cached_in=1920)),
    Sample("chat.sse", CHAT, Usage("gpt-4o-mini-2024-07-18", 19, 10)),
    Sample(
        "completions.json", "/v1/completions", Usage("gpt-3.5-turbo-instruct", 5, 7)
    ),
    Sample("embeddings.json", "/v1/embeddings", Usage("text-embedding-ada-002", 8, 0)),
    Sample(
        "responses.json",
        RESPONSES,
        Usage("gpt-4.1-2025-04-14", 1036, 87, cached_in=1024),
    ),
    Sample(
        "responses.sse", RESPONSES, Usage("gpt-4.1-2025-04-14", 37, 11, cache_write=32)
    ),
    Sample(
        "messages.json",
        MESSAGES,
        Usage("claude-sonnet-4-5-20250929", 189907, 393, 1800, 188086),
    ),
    Sample(
        "messages.sse",
        MESSAGES,
        Usage("claude-sonnet-4-5-20250929", 12482, 510, cached_in=1800),
    ),
    Sample("messages-compacted.sse", MESSAGES, Usage("claude-opus-4-6", 203000, 4500)),
    Sample("gemini.json", GEMINI, Usage("gemini-2.5-flash", 4202, 853, cached_in=4096)),
    Sample("gemini.sse", f"{STREAM}?alt=sse", Usage("gemini-2.5-flash", 8, 51)),
    Sample("gemini-array.json", STREAM, Usage("gemini-2.5-flash", 8, 51)),
    Sample(
        "vertex.sse",
        f"{VERTEX}:streamGenerateContent",
        Usage("gemini-3.1-flash-lite-preview", 1, 9),
    ),
    Sample(
        "interactions.json",
        "/v1beta/interactions",
        Usage("gemini-3-flash-preview", 7, 42, answer_id="v1_abc"),
    ),
    Sample(
        "interactions.sse",
        "/v1beta/interactions",
        Usage("gemini-3-flash-preview", 7, 42, answer_id="v1_abc"),
    ),
    Sample(
        "converse.json",
        "/model/anthropic.claude-v2%3A1/converse",
        Usage("", 225, 60, 100),  # the path names its model
    ),
)
