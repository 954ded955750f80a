"""The forms in which model APIs report tokens: one row for each, by the path of a
request.

A form is data. What no row describes is unmetered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.url import sent
from squidkeeper.policy.usage.members import WantedMembers


@dataclass(frozen=True)
class UsageForm:
    """How one API reports tokens.

    Members are named by their paths, such as `usage.total_tokens`.

    `request` matches the method and the path. `tokens_in` and `tokens_out` are members
    of the usage that add up. The first of each has to be there, except that of
    `tokens_out` where there is a `total`. The other members are 0 where they are
    missing.
    """

    name: str
    documentation: str
    request: str
    tokens_in: tuple[str, ...] = ()
    tokens_out: tuple[str, ...] = ()
    cached_in: str = ""
    cache_write: str = ""
    total: str = ""
    usage: str = "usage"
    model: str = "model"
    envelope: str = ""  # the member of an event that holds the answer
    # the usage in the envelope is the first one; each later one replaces what it has
    is_cumulative: bool = False
    # a member of the usage with a list of more usages, which the others leave out
    added: str = ""
    foreign: tuple[
        str, ...
        # members that the usage of another API has, which counts other tokens by these
        # names
    ] = ()
    # a streamed answer can be an array of objects; the last of them reports the usage
    is_array: bool = False
    can_be_read_again: bool = False  # by a GET with its ID
    last_event: tuple[bytes, ...] = ()  # how the event begins that ends a stream
    limits: tuple[
        str, ...
    ] = ()  # members of a request that bound the tokens of an answer
    query_hides_usage: bool = False  # parameters of the query can leave the usage out
    asks_usage: bool = (
        False  # a stream reports its usage where `stream_options.include_usage` says so
    )

    @property
    def uses_nothing(self) -> bool:
        """Whether its requests generate nothing, and are free."""
        return not self.tokens_in

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of its method and path."""
        return re.compile(self.request, re.IGNORECASE | re.ASCII)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The members of a usage that are read."""
        names = (
            *self.tokens_in,
            *self.tokens_out,
            self.cached_in,
            self.cache_write,
            self.total,
        )
        return tuple(filter(None, dict.fromkeys(names)))

    @cached_property
    def wanted(self) -> WantedMembers:
        """The members of an answer that are read."""
        names = (self.usage, self.model, "id", "status", "background")
        inside = (f"{self.envelope}.{name}" for name in names if self.envelope)
        return WantedMembers((*names, *inside))

    @cached_property
    def mark(self) -> bytes:
        """The name that each event with a usage has.

        A text in an event cannot have it: there, quotes are escaped.
        """
        return b'"%b"' % self.usage.encode()

    @cached_property
    def marked(self) -> re.Pattern[bytes]:
        """The name with a value that is no `null`."""
        return re.compile(re.escape(self.mark) + rb"[ \t\r\n]*+:[ \t\r\n]*+(?!null)")


_NAME: Final = (
    r"\w[\w.@-]*"  # no path that two servers could read in two ways has a form
)
_PATH: Final = f"(/{_NAME})*"
_OPENAI: Final = "https://platform.openai.com/docs/api-reference"
_TOTAL: Final = "total_tokens"
_DONE: Final = (b"data: [DONE]", b"data:[DONE]")

FORMS: Final = (
    UsageForm(
        "nothing generated",
        "https://docs.anthropic.com/en/api/messages-count-tokens",
        f"(POST {_PATH}(/messages/count_tokens|/responses/input_tokens|:countTokens)"
        f"|GET {_PATH}(/models(/{_NAME})?|/responses/{_NAME}/input_items))",
    ),
    UsageForm(
        "openai chat",
        f"{_OPENAI}/chat/object",
        f"POST {_PATH}/chat/completions",
        tokens_in=("prompt_tokens",),
        tokens_out=("completion_tokens",),
        cached_in="prompt_tokens_details.cached_tokens",
        cache_write="prompt_tokens_details.cache_write_tokens",
        total=_TOTAL,
        last_event=_DONE,
        limits=("max_tokens", "max_completion_tokens"),
        asks_usage=True,
    ),
    UsageForm(
        "openai completions",
        f"{_OPENAI}/completions/object",
        f"POST {_PATH}/completions",
        tokens_in=("prompt_tokens",),
        tokens_out=("completion_tokens",),
        cached_in="prompt_tokens_details.cached_tokens",
        total=_TOTAL,
        last_event=_DONE,
        limits=("max_tokens",),
        asks_usage=True,
    ),
    UsageForm(
        "openai embeddings",
        f"{_OPENAI}/embeddings/create",
        f"POST {_PATH}/embeddings",
        tokens_in=("prompt_tokens",),
        total=_TOTAL,
    ),
    UsageForm(
        "openai responses",
        f"{_OPENAI}/responses/object",
        f"(POST {_PATH}/responses(/compact|/{_NAME}/cancel)?|GET {_PATH}/responses/{_NAME})",
        tokens_in=("input_tokens",),
        tokens_out=("output_tokens",),
        cached_in="input_tokens_details.cached_tokens",
        cache_write="input_tokens_details.cache_write_tokens",
        total=_TOTAL,
        envelope="response",
        foreign=(
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "iterations",
        ),
        can_be_read_again=True,
        limits=("max_output_tokens",),
    ),
    UsageForm(
        "anthropic messages",
        "https://docs.anthropic.com/en/api/messages-streaming",
        f"POST {_PATH}(/messages|/publishers/anthropic/models/{_NAME}:(rawPredict|streamRawPredict))",
        tokens_in=(
            "input_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ),
        tokens_out=("output_tokens",),
        cached_in="cache_read_input_tokens",
        cache_write="cache_creation_input_tokens",
        envelope="message",
        is_cumulative=True,
        added="iterations",
        foreign=("input_tokens_details", _TOTAL),
        last_event=(b"event: message_stop", b"event:message_stop"),
        limits=("max_tokens",),
    ),
    UsageForm(
        "gemini",
        "https://ai.google.dev/api/generate-content#UsageMetadata",
        f"POST {_PATH}/models/{_NAME}:(generateContent|streamGenerateContent)",
        tokens_in=("promptTokenCount", "toolUsePromptTokenCount"),
        tokens_out=("candidatesTokenCount", "thoughtsTokenCount"),
        cached_in="cachedContentTokenCount",
        total="totalTokenCount",
        usage="usageMetadata",
        model="modelVersion",
        is_array=True,
        query_hides_usage=True,
        # protocol buffers have two spellings in JSON
        limits=(
            "generationConfig.maxOutputTokens",
            "generation_config.max_output_tokens",
        ),
    ),
    UsageForm(
        "gemini interactions",
        "https://ai.google.dev/api/interactions-api",
        f"(POST {_PATH}/interactions(/{_NAME}/cancel)?|GET {_PATH}/interactions/{_NAME})",
        tokens_in=("total_input_tokens", "total_tool_use_tokens"),
        tokens_out=("total_output_tokens", "total_thought_tokens"),
        cached_in="total_cached_tokens",
        total=_TOTAL,
        envelope="interaction",
        can_be_read_again=True,
        limits=("generation_config.max_output_tokens",),
    ),
    UsageForm(
        "bedrock converse",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html",
        f"POST {_PATH}/model/{_NAME}((:|%3A){_NAME})?/converse",
        tokens_in=("inputTokens", "cacheReadInputTokens", "cacheWriteInputTokens"),
        tokens_out=("outputTokens",),
        cached_in="cacheReadInputTokens",
        cache_write="cacheWriteInputTokens",
        total="totalTokens",
        limits=("inferenceConfig.maxTokens",),
    ),
)


def form_of(method: str, target: str) -> UsageForm | None:
    """Return the form of the answer to a request, by its method and its path with
    query; None where it is unknown.
    """
    request = _request(method, target)
    return next((form for form in FORMS if form.pattern.fullmatch(request)), None)


def _request(method: str, target: str) -> str:
    try:
        return f"{method} {sent(target.partition('?')[0])}".rstrip("/")
    except InvalidUrl:
        return ""
