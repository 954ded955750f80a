"""What a policy has and nobody used, and what of it is wider than its use."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from squidkeeper.change.learning.path_shapes import Evidence
from squidkeeper.change.tightening.edits import (
    Edits,
    decided_by_bodies,
    is_edited,
    is_kept_for_sessions,
)
from squidkeeper.change.tightening.narrowing import Narrowing
from squidkeeper.change.tightening.usage import PolicyUse
from squidkeeper.policy.language.model import Action, Policy, Rule
from squidkeeper.record.table.questions import SESSION_UNKNOWN


class KeptFor(StrEnum):
    """Why a rule stays that was never used."""

    CLOSES = "closes"
    OBSERVES = "observes"
    SCHEDULED = "scheduled"
    TUNNELS = "tunnels"
    BODIES = "bodies"
    SESSIONS = "sessions"
    DEFAULT = "default"
    NEEDED = "needed"


class Kind(StrEnum):
    """What else of a policy can be unused."""

    CLIENT = "client"
    ROLE = "role"
    LIST = "list"
    CREDENTIAL = "credential"
    REWRITE = "rewrite"
    PRESET = "preset"
    GRANT = "grant"
    LAPSED_GRANT = "lapsed-grant"


@dataclass(frozen=True, slots=True)
class NarrowedRule:
    """A rule that is wider than its use, and what it narrows to; the narrower form
    keeps all `requests`.
    """

    rule: Rule
    requests: int
    evidence: Evidence
    narrowings: tuple[Narrowing, ...]


@dataclass(frozen=True, slots=True)
class Unused:
    """An entry that was not used, beside rules."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found.

    `unused` rules go; those in `kept` were not used either, and stay.

    `narrowed` begins with what was used on the most days, and most: there the record
    tells most.
    """

    use: PolicyUse
    unused: tuple[Rule, ...]
    narrowed: tuple[NarrowedRule, ...]
    kept: tuple[tuple[Rule, KeptFor], ...]
    others: tuple[Unused, ...]

    @property
    def span(self) -> timedelta:
        """The time from the first request to the last."""
        return (
            self.use.last - self.use.first
            if self.use.first and self.use.last
            else timedelta()
        )


def findings(policy: Policy, use: PolicyUse, edits: Edits, now: datetime) -> Findings:
    """Tell what a policy has too much of; `edits` are proven."""
    return Findings(
        use,
        unused=tuple(rule for rule in policy.rules if edits.get(rule.name, ()) is None),
        narrowed=tuple(sorted(_narrowed(policy, use, edits), key=_weight)),
        kept=tuple(_kept(policy, use, edits, now)),
        others=tuple(_others(policy, use, now)),
    )


def _narrowed(policy: Policy, use: PolicyUse, edits: Edits) -> Iterator[NarrowedRule]:
    for rule in policy.rules:
        changes, used = edits.get(rule.name), use.of(rule)
        if changes and used.evidence is not None:
            yield NarrowedRule(rule, used.requests, used.evidence, changes)


def _weight(rule: NarrowedRule) -> tuple[int, int]:
    return -len(rule.evidence.days), -rule.requests


def _kept(
    policy: Policy, use: PolicyUse, edits: Edits, now: datetime
) -> Iterator[tuple[Rule, KeptFor]]:
    for rule in policy.rules:
        is_used = use.observed[rule.name] if rule.observe else use.of(rule).requests
        if not is_used and rule.name not in edits and rule.preset is None:
            yield rule, _kept_for(policy, rule, use, now)


def _kept_for(policy: Policy, rule: Rule, use: PolicyUse, now: datetime) -> KeptFor:
    reasons = {
        KeptFor.OBSERVES: rule.observe,
        KeptFor.CLOSES: rule.action is not Action.ALLOW,
        KeptFor.TUNNELS: use.of(rule).tunnels > 0,
        KeptFor.SCHEDULED: rule.when is not None and not rule.lapsed(now),
        KeptFor.SESSIONS: is_kept_for_sessions(rule, policy, use),
        KeptFor.BODIES: rule.name in decided_by_bodies(policy),
        KeptFor.DEFAULT: is_edited(rule) and policy.default_action is Action.ALLOW,
    }
    return next((reason for reason, holds in reasons.items() if holds), KeptFor.NEEDED)


def _others(policy: Policy, use: PolicyUse, now: datetime) -> Iterator[Unused]:
    used_presets = {rule.preset for rule in policy.rules if use.of(rule).requests}
    lapsed = [grant for grant in policy.grants if grant.lapsed(now)]
    named = {
        Kind.CLIENT: (
            client.name for client in policy.clients if not use.clients[client.name]
        ),
        Kind.ROLE: (
            role.name
            for role in policy.roles
            if not (use.clients[role.name] or use.set_apart.get(SESSION_UNKNOWN))
        ),
        Kind.LIST: (name for name in policy.lists if not use.lists[name]),
        Kind.CREDENTIAL: (
            credential.name
            for credential in policy.credentials
            if not use.credentials[credential.name]
            and not is_kept_for_sessions(credential, policy, use)
        ),
        Kind.REWRITE: (
            rewrite.name
            for rewrite in policy.rewrites
            if not use.rewrites[rewrite.name]
            and not is_kept_for_sessions(rewrite, policy, use)
        ),
        Kind.PRESET: (
            preset.name for preset in policy.presets if preset.name not in used_presets
        ),
        Kind.GRANT: (
            grant.name
            for grant in policy.grants
            if not use.of(grant).requests and grant not in lapsed
        ),
        Kind.LAPSED_GRANT: (grant.name for grant in lapsed),
    }
    yield from _each(named.items())


def _each(named: Iterable[tuple[Kind, Iterable[str]]]) -> Iterator[Unused]:
    return (Unused(kind, name) for kind, names in named for name in names)
