"""Whether a rule's `body:` holds for a request: the form of each kind."""

from __future__ import annotations

from squidkeeper.policy.bodies import git_form, json_form, mcp_form
from squidkeeper.policy.bodies.sent_request import BodyOutcome, FormAnswer, SentRequest
from squidkeeper.policy.language.bodies import Body, GitBody, JsonBody, McpBody


def may_hold(body: Body, method: str, path: str, query: str | None) -> bool:
    """Return whether a `body:` can hold for a request, by its method and URL. `path` is
    in its `sent` reading.
    """
    match body:
        case GitBody():
            return git_form.may_hold(method, path, query)
        case JsonBody() | McpBody():
            return True


def examine(body: Body, request: SentRequest, *, deny: bool) -> BodyOutcome:
    """Return whether a `body:` holds.

    In a deny it holds where any part of the request matches.
    """
    match body:
        case GitBody():
            return git_form.examine(body, request, deny=deny)
        case JsonBody():
            return json_form.examine(body, request, deny=deny)
        case McpBody():
            return mcp_form.examine(body, request, deny=deny)


def answer(
    body: Body, request: SentRequest, rule: str, reason: str
) -> FormAnswer | None:
    """Return a denial in the words of the form's clients; None where they understand
    the page.
    """
    match body:
        case GitBody():
            return git_form.answer(body, request, rule, reason)
        case JsonBody():
            return None
        case McpBody():
            return mcp_form.answer(body, request, rule, reason)
