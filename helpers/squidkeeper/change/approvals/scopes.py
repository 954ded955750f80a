"""How wide an approval is, and what else recorded requests it would have let
through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from squidkeeper.base.errors import EditRefused, InvalidUrl, PatternError
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine import CompiledPolicy, Decision, HostMatch, decide
from squidkeeper.policy.engine.fields import UrlFacts, holds_for_host, holds_for_url
from squidkeeper.policy.language.approvals import ApprovalScope, approved_match
from squidkeeper.policy.language.model import Action, Rule
from squidkeeper.policy.protocol.request import Malformed
from squidkeeper.policy.url import Url, parse_address, parse_url, readings
from squidkeeper.record.log.requests import request_of
from squidkeeper.record.table.questions import Question
from squidkeeper.serving.tickets.store import Ticket
from squidkeeper.serving.tickets.ticket import clients_by_size

_NOWHERE: Final = Location("")


@dataclass(frozen=True, slots=True)
class ApprovedFields:
    """The fields of a grant, as a person would write them."""

    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()


def approved_fields(ticket: Ticket, scope: ApprovalScope) -> ApprovedFields:
    """Write what an approval of a question allows; `EditRefused` where no grant can say
    it.
    """
    url = _parsed(ticket)
    if scope is ApprovalScope.URL:
        return ApprovedFields(urls=(ticket.url,))
    if scope is ApprovalScope.HOST:
        return ApprovedFields(hosts=(url.host.text,), ports=(url.port,))
    if "*" in url.path:
        raise EditRefused(
            "--scope path: the path holds a *, which would match more: use --scope url"
        )
    return ApprovedFields(hosts=(url.host.text,), ports=(url.port,), paths=(url.path,))


def clients_that_asked(policy: CompiledPolicy, ticket: Ticket) -> tuple[str, ...]:
    """Name the clients of the policy that a question belongs to, the one with the
    fewest addresses first.
    """
    try:
        address = parse_address(ticket.client)
    except InvalidUrl as error:
        raise EditRefused(
            f"the ticket {ticket.number} is of no client: {error}"
        ) from error
    return clients_by_size(policy, address, ticket.user)


def reach(
    policy: CompiledPolicy,
    waiting: Sequence[Ticket],
    questions: Iterable[Question],
    at: datetime,
) -> Mapping[str, Counter[ApprovalScope]]:
    """Count, by ticket and scope, the other recorded requests that an approval would
    have let through.

    These are requests that the policy asks about; what a rule denies, no approval
    opens.
    """
    asked_about = [_Waiting.of(policy, ticket) for ticket in waiting]
    found: dict[str, Counter[ApprovalScope]] = {
        ticket.number: Counter() for ticket in waiting
    }
    for question in questions:
        request = request_of(question.record())
        if isinstance(request, Malformed) or request.url is None:
            continue
        match = policy.match(request)
        decision = decide(policy, match, at)
        if decision.asks and not decision.allowed:
            for asking in asked_about:
                for scope in asking.lets_through(question, match, decision):
                    found[asking.ticket.number][scope] += question.count
    return found


def hosts_of(waiting: Iterable[Ticket]) -> Collection[str]:
    """Name the hosts that are asked about, as the record has them."""
    return {_parsed(ticket).host.text for ticket in waiting}


@dataclass(frozen=True, slots=True)
class _Waiting:
    ticket: Ticket
    host: str
    grants: Mapping[ApprovalScope, Rule]

    @classmethod
    def of(cls, policy: CompiledPolicy, ticket: Ticket) -> _Waiting:
        clients, url = clients_that_asked(policy, ticket), _parsed(ticket)
        grants = {
            scope: rule
            for scope in ApprovalScope
            if (rule := _rule(ticket, clients, scope))
        }
        return cls(ticket, url.host.text, grants)

    def lets_through(
        self, question: Question, match: HostMatch, decision: Decision
    ) -> list[ApprovalScope]:
        """List the scopes whose grant allows another request than this
        question's own.
        """
        own = (
            self.ticket.client,
            self.ticket.user,
            self.ticket.method,
            self.ticket.url,
        )
        url = _url_facts(match)
        if match.facts.host.text != self.host or url is None or decision.allowed:
            return []
        if own == (
            question.client,
            "" if question.user == "-" else question.user,
            question.method,
            match.url,
        ):
            return []
        grants = self.grants.items()
        return [
            scope
            for scope, rule in grants
            if holds_for_host(rule, match.facts) and holds_for_url(rule, url)
        ]


def _url_facts(match: HostMatch) -> UrlFacts | None:
    try:
        url = parse_url(match.url or "")
        return UrlFacts(readings(url.path)[0], url.query, url.path)
    except InvalidUrl:
        return None


def _rule(
    ticket: Ticket, clients: tuple[str, ...], scope: ApprovalScope
) -> Rule | None:
    try:
        match = approved_match(ticket.method, ticket.url, scope)
    except PatternError:
        return None
    named = frozenset(clients[:1]) if clients else None
    made = replace(match, clients=named)
    return Rule(f"ticket {ticket.number}", _NOWHERE, Action.ALLOW, made)


def _parsed(ticket: Ticket) -> Url:
    try:
        return parse_url(ticket.url)
    except InvalidUrl as error:
        raise EditRefused(
            f"the ticket {ticket.number} is about no URL: {error}"
        ) from error
