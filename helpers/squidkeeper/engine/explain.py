"""Why a decision came out as it did (floor 3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from squidkeeper.engine.decision import Decision
from squidkeeper.engine.fields import Asked, failing_fields
from squidkeeper.engine.judge import Judge, Scope
from squidkeeper.engine.query import Query
from squidkeeper.errors import InvalidUrl
from squidkeeper.policy.model import Rule
from squidkeeper.url import ReadPath, parse_url, readings


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
    asked = next(iter(_readings(query)), None)
    found = []
    for position in judge.rules.positions(scope.facts.host):
        rule = judge.policy.rules[position]
        if rule.location == decision.location:
            break
        fields = [*failing_fields(rule, scope.facts, asked), *(["expires"] if rule.lapsed(at) else [])]
        if fields:
            found.append(PassedOver(rule, tuple(fields)))
    return found


def by_reading(judge: Judge, query: Query, at: datetime) -> list[tuple[ReadPath, Decision]]:
    """Give the decision that each reading of the path would lead to, were it the only one."""
    scope = judge.scope(query)
    if not isinstance(scope, Scope):
        return []
    return [(asked.path, judge.decide_reading(scope, asked, at)) for asked in _readings(query)]


def _readings(query: Query) -> list[Asked]:
    try:
        url = parse_url(query.url or "")
        return [Asked(path, url.query) for path in readings(url.path)]
    except InvalidUrl:
        return []
