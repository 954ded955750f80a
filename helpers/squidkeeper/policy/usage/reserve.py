"""What a request may use: its reserve, by its body."""

from __future__ import annotations

from squidkeeper.policy.bodies.sent_request import SentRequest
from squidkeeper.policy.usage.forms import UsageForm
from squidkeeper.policy.usage.tokens import Reserve


def reserve_of(sent: SentRequest, reserve: int, form: UsageForm | None) -> Reserve:
    """Return what a request may use. `reserve` is the answer's tokens where the request names no limit."""
    del form
    return Reserve("", len(sent.body), reserve)


def with_usage_asked(body: bytes) -> bytes | None:
    """Return the body of a chat of OpenAI with `stream_options.include_usage`.

    None where it has that already, asks for no stream, or is not plain JSON.
    """
    del body
    return None
