"""Whether a rule's `body:` holds for a request: the form of each kind."""

from __future__ import annotations

from squidkeeper.policy.bodies.sent_request import BodyOutcome, FormAnswer, SentRequest
from squidkeeper.policy.language.bodies import Body


def examine(body: Body, request: SentRequest, *, deny: bool) -> BodyOutcome:
    """Return whether a `body:` holds. In a deny it holds where any part of the request matches."""
    raise NotImplementedError


def answer(body: Body, request: SentRequest, rule: str, reason: str) -> FormAnswer | None:
    """Return a denial in the words of the form's clients; None where they understand the page."""
    raise NotImplementedError
