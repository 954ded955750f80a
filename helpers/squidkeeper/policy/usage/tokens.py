"""Tokens of one request: what its answer reports, what stays unreported, and what is
reserved ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer reports. `model` is empty where the answer names none.

    `tokens_in` is all of the prompt. `cached_in` and `cache_write` are parts of it.
    `tokens_out` is all that was generated, with what the client does not see of it.

    `answer_id` is set where a client can read the same answer again. Count for an ID
    only what exceeds what was counted for it before.
    """

    model: str
    tokens_in: int
    tokens_out: int
    cached_in: int = 0
    cache_write: int = 0
    answer_id: str = ""


NOTHING_USED = Usage("", 0, 0)


@dataclass(frozen=True, slots=True)
class Unmetered:
    """Why an answer reports nothing that can be counted.

    The request then costs its reserve.

    `tokens_in` and `tokens_out` are what was used at least, as far as it was seen. They
    can exceed the reserve. `answer_id` is set where the usage comes later, in another
    answer with this ID.
    """

    reason: str
    tokens_in: int = 0
    tokens_out: int = 0
    answer_id: str = ""


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a request may use.

    `models` are those that may answer; an empty name stands for any.
    """

    models: tuple[str, ...]
    tokens_in: int
    tokens_out: int

    def usages(self) -> Iterator[Usage]:
        """Yield the reserve as if an answer of each model had reported it."""
        for model in self.models:
            yield Usage(model, self.tokens_in, self.tokens_out)
