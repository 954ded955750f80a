"""Why a decision came out as it did (floor 3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from squidkeeper.engine.decision import Decision
from squidkeeper.engine.fields import Asked, failing_fields
from squidkeeper.engine.judge import Judge, Scope
from squidkeeper.engine.query import Query
from squidkeeper.policy.model import Rule
from squidkeeper.url import ReadPath, parse_url


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A rule for the same host that did not decide, and the fields of it that did not hold."""

    rule: Rule
    fields: tuple[str, ...]


def passed_over(judge: Judge, query: Query, decision: Decision, at: datetime) -> list[PassedOver]:
    """List the rules for the query's host ahead of the one that decided, with the fields that did not hold."""
    scope = judge.scope(query)
    if isinstance(scope, Decision):
        return []
    asked = _asked(query, decision)
    found = []
    for position in judge.rules.positions(scope.facts.host):
        rule = judge.policy.rules[position]
        if rule.location == decision.location:
            break
        fields = [*failing_fields(rule, scope.facts, asked), *(["expires"] if rule.lapsed(at) else [])]
        if fields:
            found.append(PassedOver(rule, tuple(fields)))
    return found


def by_reading(judge: Judge, query: Query, decision: Decision, at: datetime) -> list[tuple[ReadPath, Decision]]:
    """Give the decision that each reading of the path would lead to, were it the only one."""
    scope = judge.scope(query)
    if not isinstance(scope, Scope) or not decision.readings:
        return []
    sent = parse_url(query.url or "").query
    return [(path, judge.decide_reading(scope, Asked(path, sent), at)) for path in decision.readings]


def _asked(query: Query, decision: Decision) -> Asked | None:
    if query.url is None or not decision.readings:
        return None
    return Asked(decision.readings[0], parse_url(query.url).query)
