"""What is known of all rules of a policy together, without reading each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from squidkeeper.base.faults import Location
from squidkeeper.policy.engine.timetable import Timed
from squidkeeper.policy.language.host_index import HostIndex
from squidkeeper.policy.language.model import Credential, Policy, Rewrite, Rule

RuleKey = tuple[str, Location]


@dataclass(frozen=True, slots=True)
class RuleIndex:
    """The rules of a policy by host and by name.

    `timed` has the rules and grants that hold at some times alone. `methods` are those
    that any entry names. `of_variables` are the positions of the rules that name
    variables of sessions. `needs` are the keys of Squid's configuration that the policy
    needs; None where they were not collected.
    """

    hosts: HostIndex
    names: Sequence[str]
    timed: Mapping[RuleKey, Timed]
    methods: frozenset[str]
    reads_bodies: bool
    meters: bool
    of_variables: frozenset[int] = frozenset()
    needs: frozenset[str] | None = None

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """Index the rules of a policy."""
        return cls(
            hosts=HostIndex(policy.rules, policy.lists),
            names=[rule.name for rule in policy.rules],
            timed=dict(_timed(policy)),
            methods=frozenset(_named_methods(policy)),
            reads_bodies=any(rule.body is not None for rule in policy.rules),
            meters=policy.meters,
            of_variables=positions_of_variables(policy.rules if policy.roles else ()),
        )


def positions_of_variables(
    entries: Sequence[Rule | Rewrite | Credential],
) -> frozenset[int]:
    """Return the positions of the entries that name variables of sessions."""
    return frozenset(
        position for position, entry in enumerate(entries) if entry.variables
    )


def rule_key(rule: Rule) -> RuleKey:
    """Tell a rule or grant from all others of its policy."""
    return rule.name, rule.location


def _timed(policy: Policy) -> Iterator[tuple[RuleKey, Timed]]:
    for rule in policy.rules_and_grants:
        timed = Timed(rule.expires, rule.when)
        if timed.depends_on_time:
            yield rule_key(rule), timed


def _named_methods(policy: Policy) -> Iterator[str]:
    return (method for entry in policy.entries for method in entry.match.methods or ())
