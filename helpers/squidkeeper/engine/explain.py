"""Why a decision came out as it did (floor 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import dropwhile

from squidkeeper.engine.decision import Decision
from squidkeeper.engine.fields import Asked, Entry, Facts, failing_fields, is_deny
from squidkeeper.engine.index import HostIndex
from squidkeeper.engine.judge import Judge, Scope, injects
from squidkeeper.engine.query import Query
from squidkeeper.errors import InvalidUrl
from squidkeeper.policy.hosts import HostForm
from squidkeeper.policy.model import Match, Rewrite, Rule
from squidkeeper.url import ReadPath, Url, parse_url, readings


@dataclass(frozen=True, slots=True)
class PassedOver:
    """An entry for the same host that did not apply, and the fields of it that did not hold."""

    entry: Entry
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WebSocket:
    """Whether Squid passes a WebSocket on; if not, the entry that keeps it from that, and what a rule names for it."""

    passes: bool
    entry: Rule | Rewrite | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A name that Squid resolves after the decision, and what would open a private address of it by `private: true`."""

    host: str
    opener: str


def passed_over(judge: Judge, query: Query, at: datetime) -> list[PassedOver]:
    """List the rules for the query's host ahead of the one that matches, with the fields that did not hold.

    That one need not be what decides: a private address may deny what it allows.
    """
    scope = judge.scope(query)
    asked = next(iter(_readings(query)), None)
    if isinstance(scope, Decision) or (asked is None and query.url is not None):  # no rule was asked
        return []
    found = []
    for rule in _rules(judge, scope.facts):
        fields = _failing_rule_fields(rule, scope.facts, asked, at)
        if fields:
            found.append(PassedOver(rule, fields))
        elif _settles(rule, asked):
            break
    return found


def not_reached(judge: Judge, query: Query, decision: Decision, at: datetime) -> list[Rule]:
    """List the denies below the rule that allows which hold for the query too: each would deny, if it stood first.

    Not those for every host: as the last rule, such a one is meant to be reached by nothing that is allowed.
    """
    scope = judge.scope(query)
    if isinstance(scope, Decision) or not decision.allowed:
        return []
    facts = scope.facts
    below = dropwhile(lambda rule: rule.location != decision.location, _rules(judge, facts))
    denies = (rule for rule in below if is_deny(rule) and not _is_for_every_host(rule.match))
    return [rule for rule in denies if _holds_for_any(rule, facts, _readings(query), at)]


def _holds_for_any(rule: Rule, facts: Facts, asked: Sequence[Asked], at: datetime) -> bool:
    """Tell whether a rule holds for one of the readings; without a URL, whether it does for all that could follow."""
    return any(not _failing_rule_fields(rule, facts, one, at) and _settles(rule, one) for one in asked or (None,))


def _is_for_every_host(match: Match) -> bool:
    return match.any_host or any(pattern.form is HostForm.ANY for pattern in match.hosts or ())


def _rules(judge: Judge, facts: Facts) -> Iterator[Rule]:
    return (judge.policy.rules[position] for position in judge.rules.positions(facts.host))


def _failing_rule_fields(rule: Rule, facts: Facts, asked: Asked | None, at: datetime) -> tuple[str, ...]:
    return (*failing_fields(rule, facts, asked), *(["expires"] if rule.lapsed(at) else []))


def _settles(rule: Rule, asked: Asked | None) -> bool:
    """Tell whether a rule whose fields hold ends the search: for a tunnel, a deny that is not certain does not."""
    return asked is not None or not is_deny(rule) or rule.certain


def not_applied(judge: Judge, query: Query, decision: Decision) -> list[PassedOver]:
    """List the rewrites and credentials that are for the host and yet do not apply, with the fields that did not hold.

    Credentials are those for the host that is fetched, after a rewrite. Of a denied request, or without a URL, none.
    """
    scope = judge.scope(query)
    asked = next(iter(_readings(query)), None)
    if isinstance(scope, Decision) or asked is None or not decision.allowed:
        return []
    rewritten = decision.rewritten
    found = [] if rewritten else list(_failing(judge.policy.rewrites, judge.rewrites, scope.facts, asked))
    if rewritten and rewritten.rewrite.redirect is not None:
        return found
    facts, asked = (scope.facts, asked) if rewritten is None else _fetched(scope.facts, rewritten.url)
    return [*found, *_not_injected(judge, facts, asked)]


def _fetched(facts: Facts, url: Url) -> tuple[Facts, Asked]:
    return facts._replace(scheme=url.scheme, host=url.host, port=url.port), Asked(readings(url.path)[0], url.query)


def _not_injected(judge: Judge, facts: Facts, asked: Asked) -> Iterator[PassedOver]:
    if injects(facts):
        yield from _failing(judge.policy.credentials, judge.credentials, facts, asked)
        return
    field = "methods" if facts.scheme == "https" else "schemes"  # what no credential is for, whatever it says
    for position in judge.credentials.positions(facts.host):
        yield PassedOver(judge.policy.credentials[position], (field,))


def _failing(entries: Sequence[Entry], index: HostIndex, facts: Facts, asked: Asked) -> Iterator[PassedOver]:
    for position in index.positions(facts.host):
        fields = tuple(failing_fields(entries[position], facts, asked))
        if fields:
            yield PassedOver(entries[position], fields)


def websocket(judge: Judge, query: Query, decision: Decision, at: datetime) -> WebSocket | None:
    """Tell whether an allowed GET may become a WebSocket, for which the host has to be open whole; of another, None."""
    scope = judge.scope(query)
    if isinstance(scope, Decision) or not decision.allowed or query.method != "GET":
        return None
    if judge.decide_host(scope, at).whole:
        return WebSocket(passes=True)
    rewrite = judge.first_rewrite(scope)
    if rewrite is not None:
        return WebSocket(False, rewrite)
    rule = judge.first_rule(scope, at)
    return WebSocket(False, rule, _narrowing_fields(rule.match) if rule else ())


def _narrowing_fields(match: Match) -> tuple[str, ...]:
    """Name the fields for which a rule is not certain."""
    narrows = {"methods": match.methods is not None, "paths": not match.any_path, "query": match.query is not None}
    return tuple(name for name, holds in narrows.items() if holds)


def resolved(judge: Judge, query: Query, decision: Decision) -> Resolved | None:
    """Name the host that Squid resolves once the request is allowed, where a private address denies it then.

    None for an address, where private addresses are open, and for a tunnel that a rewrite may lead elsewhere: Squid
    resolves the hosts of the requests inside.
    """
    scope = judge.scope(query)
    rewritten = decision.rewritten
    if isinstance(scope, Decision) or not decision.allowed or decision.private:
        return None
    if query.url is None and decision.may_rewrite:
        return None
    fetched = rewritten if rewritten is not None and rewritten.rewrite.redirect is None else None
    host = fetched.url.host if fetched else scope.facts.host
    if host.address is not None:
        return None
    if fetched:
        return Resolved(host.text, f"the rewrite {fetched.rewrite.name}")
    return Resolved(host.text, f"the rule {decision.rule}" if decision.location else "a rule that allows it")


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
