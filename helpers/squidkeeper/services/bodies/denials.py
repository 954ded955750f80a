"""How a request is denied: in the words of its form, or by the page; and when, as the
throttle has it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from time import gmtime, strftime
from typing import Final
from urllib.parse import quote

from squidkeeper.base.client_network import client_network
from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.base.layout import Layout
from squidkeeper.configuration.error_pages import (
    DENIALS,
    NO_CONTACT,
    Form,
    explained_with_body,
    explained_with_user,
    files,
    fill_denial,
    template,
)
from squidkeeper.policy.bodies.body_forms import answer
from squidkeeper.policy.bodies.sent_request import FormAnswer
from squidkeeper.policy.engine import Decision
from squidkeeper.policy.language.model import POLICY_UNAVAILABLE, Rule
from squidkeeper.services.bodies.body_question import AskedBody
from squidkeeper.serving.helpers.throttle import Clients, Limits, Surplus

# As pages.conf has them: HTML or JSON where Accept names it, and q is not 0.
_WEIGHT: Final = r"\s*($|,|;\s*([^q]|q=(1|0\.0*[1-9])))"
WANTS: Final[Mapping[Form, re.Pattern[str]]] = {
    Form.HTML: re.compile(rf"(^|[,\s])text/html{_WEIGHT}", re.IGNORECASE | re.ASCII),
    Form.JSON: re.compile(
        rf"(^|[,\s])application/(problem\+)?json{_WEIGHT}", re.IGNORECASE | re.ASCII
    ),
}
_TYPES: Final[Mapping[Form, str]] = {
    Form.TEXT: "text/plain; charset=utf-8",
    Form.JSON: "application/problem+json",
    Form.HTML: "text/html; charset=utf-8",
}
_SAFE_IN_URL: Final = "%!$&()*+,-./:;=?@_"  # as Squid writes a URL on a page
# as pages.conf has them
_PASSING: Final = (
    "not-rendered",
    "tunnel-outdated",
    POLICY_UNAVAILABLE,
)
_PAGES: Final = {page.name: page for page in DENIALS}
QUOTA: Final = "quota"  # the rule
_NEVER: Final = replace(
    _PAGES[QUOTA],
    advice="Retrying does not help: the whole limit of the quota is less than this request may use. Send another one.",
    retryable=False,
    lines=(),
    members=(),
)


class Pages:
    """The page of a denial, in the form that the client accepts.

    Its commands are for the gateway of `layout`.
    """

    def __init__(self, layout: Layout) -> None:
        texts = dict(files())
        self._texts = {
            form: with_commands(texts[template(form)], layout) for form in Form
        }
        self._by_body = {
            form: with_commands(explained_with_body(texts[template(form)]), layout)
            for form in Form
        }

    def write(
        self,
        decision: Decision,
        asked: AskedBody,
        contact: str | None,
        resets: tuple[str, int] | None = None,
    ) -> FormAnswer:
        """Write the page of a denial.

        `resets`, of one by a quota: when it begins again, and in how many seconds.

        Without it, that quota never has enough.
        """
        form = form_of(asked.sent.values("accept"))
        page = _PAGES[
            QUOTA if resets else "passing" if decision.rule in _PASSING else "denied"
        ]
        if decision.rule == QUOTA and resets is None:
            page = _NEVER
        values = {
            "rule_": decision.rule,
            "reason_": (decision.reason or "-").replace("</", "< /"),
            "contact_": contact or NO_CONTACT,
            ">rm": asked.sent.method,
            ">ru": quote(asked.url, safe=_SAFE_IN_URL, encoding="latin-1"),
            ">a": asked.client,
            "tg": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        }
        if resets is not None:
            values |= {"resets_": resets[0], "resets_in_": str(resets[1])}
        texts = (
            self._by_body
            if decision.found and decision.rule not in (QUOTA, POLICY_UNAVAILABLE)
            else self._texts
        )
        text = fill_denial(
            explained_with_user(texts[form], asked.user), page, values, asked.request_id
        )
        return FormAnswer(HTTPStatus.FORBIDDEN, _TYPES[form], text.encode())


def form_of(accept: Iterable[str]) -> Form:
    """Choose the form of a page by the values of Accept."""
    accepted = ", ".join(accept)
    return next(
        (form for form, pattern in WANTS.items() if pattern.search(accepted)), Form.TEXT
    )


def form_answer(
    decision: Decision, rules: Iterable[Rule], asked: AskedBody
) -> FormAnswer | None:
    """Write a denial in the words of the first form that has its own; None: clients
    understand the page.
    """
    reason = decision.reason or "The policy does not allow it."
    bodies = (rule.body for rule in rules if rule.body is not None)
    answers = (answer(body, asked.sent, decision.rule, reason) for body in bodies)
    return next((found for found in answers if found is not None), None)


def http_head(denial: FormAnswer) -> bytes:
    """Write the head of the response."""
    phrase = HTTPStatus(denial.status).phrase
    lines = {
        "Content-Type": denial.content_type,
        "Content-Length": len(denial.body),
        "Cache-Control": "no-store",
    }
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {denial.status} {phrase}\r\n{fields}\r\n".encode("latin-1")


class DenialTurns:
    """Calls back when the denial of a client is due: at most so many of one client a
    second, as for other denials.

    What has to wait longer is surplus: one queue of all clients, as at `squidkeeper
    throttle`. If too many wait there, each new one releases the oldest.
    """

    def __init__(
        self, limits: Limits, at: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self._clients = Clients(limits)
        self._at = at
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._surplus = Surplus(
            limits.per_second, self._release_oldest, SURPLUS_AT_MOST
        )

    def wait(self, client: str, now: float, then: Callable[[], None]) -> None:
        """Call `then` at the client's turn: now, or later."""
        due = self._clients.due(client_network(client), now)
        if due is None:
            due = min(self._surplus.due(now), now + _LONGEST_SECONDS)
            self._waiting.append((due, then))
            self._at(due, partial(self._release, due))
        elif due > now:
            self._at(due, then)
        else:
            then()

    def _release_oldest(self, _: float) -> None:
        """Release one, whose turn comes sooner here than in the queue of turns."""
        if self._waiting:
            self._waiting.popleft()[1]()

    def _release(self, until: float) -> None:
        while self._waiting and self._waiting[0][0] <= until:
            self._waiting.popleft()[1]()


SURPLUS_AT_MOST: Final = 1_000  # each is a connection of Squid's to this process
_LONGEST_SECONDS: Final = 10.0  # Squid gives up an answer after icap_io_timeout
