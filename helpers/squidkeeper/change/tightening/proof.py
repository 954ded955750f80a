"""The proof of edits: replayed on the record that they come from, they change nothing.

What a rule no longer allows can be allowed by one below it. Where that one would do
more with such a request, or where fewer quotas would count it, the rule stays as it is,
whatever the record holds.

What would deny, open or change a recorded request, or break a test of the policy, is
taken back: the paths of its rule first, then all that was to change in it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from squidkeeper.change.replay.replay import replay
from squidkeeper.change.tightening.edits import Edits, with_edits
from squidkeeper.change.tightening.narrowing import Field
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.engine.selftest import rules_of_failing_tests
from squidkeeper.policy.language.matching.host_fields import share_a_host
from squidkeeper.policy.language.model import Action, Policy, Rule
from squidkeeper.policy.language.passthrough import conflicts
from squidkeeper.policy.language.quotas import DEFAULT_RULE, Counted, QuotaUnit
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions

if TYPE_CHECKING:
    import duckdb


def proven(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy,
    edits: Edits,
    now: datetime,
    rows: str = "requests",
    sessions: RecordedSessions = NO_SESSIONS,
) -> Edits:
    """Return the edits that open nothing, and change nothing about any recorded
    request.
    """
    edits = {
        name: changes
        for name, changes in edits.items()
        if name not in _loosening(policy, now)
    }
    # what the default observes is allowed whatever the rules are
    decisive = replace(policy, observe_default=None)
    old = CompiledPolicy(decisive)
    while edits:
        edited = with_edits(decisive, edits)
        new = CompiledPolicy(edited)
        found = replay(connection, old, new, rows, sessions=sessions)
        broken = {group.flip.was for group in found.flips}
        broken |= rules_of_failing_tests(new, old, now)
        if not broken and any(conflicts(edited)):
            return {}
        if not broken:
            return edits
        edits = _without(edits, broken)
    return edits


def _loosening(policy: Policy, now: datetime) -> set[str]:
    """Name the rules that hold back what others would allow.

    Of the default that is so while it observes.
    """
    allowing = (
        *policy.rules,
        *(grant for grant in policy.grants if not grant.lapsed(now)),
    )
    counts, found = partial(_counts, policy), set()
    for position, rule in enumerate(policy.rules):
        # what the default never gives
        given = rule.strip or rule.connections or policy.rewrites or policy.credentials
        by_default = policy.observe_default and (
            given or not counts(rule.name) <= counts(DEFAULT_RULE)
        )
        if by_default or any(
            _loosens(policy, rule, other) for other in allowing[position + 1 :]
        ):
            found.add(rule.name)
    return found


def _loosens(policy: Policy, rule: Rule, below: Rule) -> bool:
    """Whether what a rule no longer allows could be allowed by one below it with other
    effects.

    That one may open private addresses or WebSockets, pass tunnels through, leave a
    header in the request, or have fewer quotas. As the first rule for a host it may
    make it unrestricted, which opens WebSockets too.
    """
    if below.action is not Action.ALLOW or below.observe:
        return False
    unrestricts = below.certain and not (rule.certain or below.websocket)
    is_same = _effects(rule) == _effects(below) and not unrestricts
    if is_same and _counts(policy, rule.name) <= _counts(policy, below.name):
        return False
    return share_a_host(rule, below, policy.lists)


def _effects(rule: Rule) -> object:
    return (
        rule.private,
        rule.websocket,
        rule.passthrough,
        rule.strip,
        rule.connections,
        rule.meter,
    )


def _counts(policy: Policy, rule: str) -> frozenset[str]:
    """Name the counts of a request that a rule allows.

    A quota for each rule has a count for each.
    """
    quotas = [
        quota
        for quota in policy.quotas
        if quota.unit is not QuotaUnit.TICKETS and quota.counts(rule)
    ]
    return frozenset(
        f"{quota.name} of {rule}" if quota.per is Counted.RULE else quota.name
        for quota in quotas
    )


def _without(edits: Edits, broken: set[str]) -> Edits:
    if broken.isdisjoint(edits):
        return {}
    kept = dict(edits)
    for name in broken & edits.keys():
        changes = kept.pop(name)
        others = tuple(
            change for change in changes or () if change.field is not Field.PATHS
        )
        if others and others != changes:
            kept[name] = others
    return kept
