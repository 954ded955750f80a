"""The proof of edits (floor 8): replayed on the record that they come from, they change nothing.

What would deny, open or change a recorded request, or break a test of the policy, is taken back: the paths of its rule
first, then all that was to change in it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from squidkeeper.engine import CompiledPolicy
from squidkeeper.engine.selftest import rules_of_failing_tests
from squidkeeper.policy.model import Policy
from squidkeeper.policy.passthrough import conflicts
from squidkeeper.replay.replay import replay
from squidkeeper.tightening.edits import Edits, with_edits
from squidkeeper.tightening.narrowing import Field

if TYPE_CHECKING:
    import duckdb


def proven(
    connection: duckdb.DuckDBPyConnection, policy: Policy, edits: Edits, now: datetime, rows: str = "requests"
) -> Edits:
    """Give the edits that change nothing about any recorded request."""
    decisive = replace(policy, observe_default=None)  # what the default observes is allowed whatever the rules are
    old = CompiledPolicy(decisive)
    while edits:
        edited = with_edits(decisive, edits)
        new = CompiledPolicy(edited)
        broken = {group.flip.was for group in replay(connection, old, new, rows).flips}
        broken |= rules_of_failing_tests(new, old, now)
        if not broken and any(conflicts(edited)):
            return {}
        if not broken:
            return edits
        edits = _without(edits, broken)
    return edits


def _without(edits: Edits, broken: set[str]) -> Edits:
    if broken.isdisjoint(edits):
        return {}
    kept = dict(edits)
    for name in broken & edits.keys():
        changes = kept.pop(name)
        others = tuple(one for one in changes or () if one.field is not Field.PATHS)
        if others and others != changes:
            kept[name] = others
    return kept
