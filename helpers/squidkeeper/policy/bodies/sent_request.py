"""A request with its body, as far as it has come, and what a rule's `body:` comes to
for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple


class Fit(Enum):
    """Whether a `body:` holds."""

    HOLDS = auto()
    FAILS = auto()  # also where the request has no body, or is none of the form's
    UNREADABLE = auto()  # holds for no allow, and for every deny
    NEEDS_MORE = auto()  # cannot be told before more of the body has come


class BodyOutcome(NamedTuple):
    """A fit, and the reason for people, which holds nothing of the body."""

    fit: Fit
    reason: str = ""


HOLDS = BodyOutcome(Fit.HOLDS)
NEEDS_MORE = BodyOutcome(Fit.NEEDS_MORE)


class FormAnswer(NamedTuple):
    """What a client of a form understands as a denial, in place of the page."""

    status: int
    content_type: str
    body: bytes


@dataclass(slots=True, eq=False)
class SentRequest:
    """A request with the bytes of its body as they were sent, in their
    Content-Encoding.

    `target` is path and query. `headers` are in their order, each copy for itself.
    `complete`: no more bytes come. Without a body (`has_body`) it is complete and
    empty. `kept` is what was read of it, by `max_bytes`.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    complete: bool = True
    has_body: bool = True
    kept: dict[int, object] = field(default_factory=dict, repr=False)

    def release(self) -> None:
        """Give the memory back of headers, body and what was read of it: up to 25 times
        as much.
        """
        self.headers, self.body = (), b""
        self.kept.clear()

    def values(self, name: str) -> list[str]:
        """Return the values of a header, by its name in lower case."""
        return [value for header, value in self.headers if header.lower() == name]
