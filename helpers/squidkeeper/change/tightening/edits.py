"""What is to change in a policy: rules that go, and fields of rules that become narrower."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from squidkeeper.change.tightening.narrowing import Field, Narrowing, narrowings
from squidkeeper.change.tightening.usage import PolicyUse
from squidkeeper.policy.language.hosts import parse_host_pattern
from squidkeeper.policy.language.model import Action, Match, Policy, Rule
from squidkeeper.policy.language.paths import parse_path_pattern

Edits = Mapping[str, tuple[Narrowing, ...] | None]  # by rules; None: the rule goes
_PARSERS: Final[Mapping[Field, Callable[[Iterable[str]], object]]] = {
    Field.CLIENTS: frozenset,
    Field.HOSTS: lambda texts: tuple(map(parse_host_pattern, texts)),
    Field.LISTS: tuple,
    Field.SCHEMES: frozenset,
    Field.METHODS: frozenset,
    Field.PATHS: lambda texts: tuple(map(parse_path_pattern, texts)),
}


def proposed_edits(policy: Policy, use: PolicyUse, now: datetime) -> Edits:
    """Propose what nobody would miss: allows that were never used go, the others hold what was used.

    Rules of presets, and what denies, asks or observes, stay as they are. So does an unused rule that a quota names:
    without it the policy would not load.
    """
    if policy.default_action is Action.ALLOW:
        return {}
    counted = {name for quota in policy.quotas for name in quota.rules or ()}
    found: dict[str, tuple[Narrowing, ...] | None] = {}
    for position, rule in enumerate(policy.rules):
        if not is_edited(rule):
            continue
        used = use.of(rule)
        if not used.requests:
            if not used.tunnels and not _is_to_come(rule, now) and rule.name not in counted:
                found[rule.name] = None
            continue
        by_url = not any(other.passthrough for other in policy.rules[position + 1 :])
        narrower = narrowings(rule, used, by_url=by_url)
        if narrower:
            found[rule.name] = narrower
    return found


def is_edited(rule: Rule) -> bool:
    """Whether a rule is one that is made narrower: an allow of the operator's that decides."""
    return rule.action is Action.ALLOW and rule.preset is None and not rule.observe


def with_edits(policy: Policy, edits: Edits) -> Policy:
    """Return the policy with its edits, under a revision of its own."""
    return replace(policy, rules=tuple(_edited(policy.rules, edits)), revision=f"{policy.revision} narrowed")


def _edited(rules: Iterable[Rule], edits: Edits) -> Iterator[Rule]:
    for rule in rules:
        changes = edits.get(rule.name, ())
        if changes is not None:
            yield replace(rule, match=_narrowed(rule.match, changes)) if changes else rule


def _narrowed(match: Match, changes: Iterable[Narrowing]) -> Match:
    values = {str(one.field): None if one.narrower is None else _PARSERS[one.field](one.narrower) for one in changes}
    return replace(match, **values)  # type: ignore[arg-type] # each parser gives what its field holds


def _is_to_come(rule: Rule, now: datetime) -> bool:
    """Whether a rule may have had no time to be used: it has a schedule."""
    return rule.when is not None and not rule.lapsed(now)
