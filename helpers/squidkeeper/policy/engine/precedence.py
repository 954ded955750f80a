"""Which of the entries that hold apply: the order of a policy, for one URL or for a
whole cell of them.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from squidkeeper.policy.engine.compiled_policy import Candidates
from squidkeeper.policy.engine.decision import Decision, Forwarded
from squidkeeper.policy.language.agreement import AGREED
from squidkeeper.policy.language.model import Action, Credential, Entry, Rewrite, Rule

Holds = Callable[[Entry], bool]


class Applied(NamedTuple):
    """The entries that apply; `rule` is None for the default.

    Of the rules `by_body`, which the body decides among, it is the first that allows,
    or the last.
    """

    rule: Rule | None
    rewrite: Rewrite | None
    credentials: tuple[Credential, ...]
    by_body: tuple[Rule, ...] = ()


class AllowKey(NamedTuple):
    """What two allows have in common that do the same, whichever rule decides."""

    private: bool
    forwarded: Forwarded
    counted: str | None
    rewrite: str | None
    credentials: tuple[str, ...]
    by_body: tuple[str, ...]


def decision_key(decision: Decision, applied: Applied) -> AllowKey | bool:
    """Return what has to be the same for every reading of a path; of a denial, whether
    a person is asked.
    """
    if not decision.allowed:
        return decision.asks
    return AllowKey(
        private=decision.private,
        forwarded=decision.forwarded,
        counted=decision.counted.name if decision.counted else None,
        rewrite=applied.rewrite.name if applied.rewrite else None,
        credentials=names_of(applied.credentials),
        by_body=names_of(decision.by_body),
    )


def names_of(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Name entries, in their order."""
    return tuple(entry.name for entry in entries)


def applied_entries(
    candidates: Candidates, rules: Iterable[Rule], grants: Iterable[Rule], holds: Holds
) -> Applied:
    """Find the entries that apply: a request that is rewritten gets the credentials of
    where it is fetched.
    """
    rule = first_rule(rules, grants, holds)
    if rule is None and candidates.default_observes:
        return Applied(None, None, ())
    rewrite = next(filter(holds, candidates.rewrites), None)
    return Applied(
        rule,
        rewrite,
        () if rewrite else chosen_credentials(candidates.credentials, holds),
    )


def applied_where_bodies_are_read(
    candidates: Candidates, rules: Iterable[Rule], grants: Iterable[Rule], holds: Holds
) -> Applied:
    """Find the same where some of the rules read bodies; `rules` has those that
    observe, too.
    """
    by_body = rules_by_body(rules, grants, holds)
    if not by_body:
        return applied_entries(
            candidates, (rule for rule in rules if not rule.observe), grants, holds
        )
    rule = first_of(by_body)
    applied = applied_entries(candidates, () if rule is None else (rule,), (), holds)
    return applied._replace(by_body=by_body)


def rules_by_body(
    rules: Iterable[Rule], grants: Iterable[Rule], holds: Holds
) -> tuple[Rule, ...]:
    """List the rules that the body decides among, down to the first, or a grant, that
    decides without one.

    None where no rule reads the body. A grant that differs in what is decided before
    the body is passed over.
    """
    listed: list[Rule] = []
    last = None
    for rule in filter(holds, rules):
        if decides_without_body(rule):
            last = rule
            break
        listed.append(rule)
    if all(rule.body is None for rule in listed):
        return ()
    if last is None or last.action is Action.ASK:
        last = next(
            (grant for grant in grants if holds(grant) and agree((*listed, grant))),
            last,
        )
    return (*listed, last) if last is not None else tuple(listed)


def agree(rules: Iterable[Rule]) -> bool:
    """Whether the rules that allow agree on all that is decided before the body is
    read.
    """
    allows = [rule for rule in rules if _allows(rule)]
    return all(
        value(allows[0]) == value(rule)
        for rule in allows[1:]
        for value in AGREED.values()
    )


def decides_without_body(rule: Rule) -> bool:
    """Whether a rule decides whatever the body: such a one ends a list."""
    return rule.body is None and not rule.observe


def _allows(rule: Rule) -> bool:
    return rule.action is Action.ALLOW and not rule.observe


def first_of(rules: tuple[Rule, ...]) -> Rule | None:
    """Return the first rule that allows, or else the one that decides without a body;
    None for the default.
    """
    last = rules[-1] if decides_without_body(rules[-1]) else None
    return next(filter(_allows, rules), last)


def first_rule(
    rules: Iterable[Rule], grants: Iterable[Rule], holds: Holds
) -> Rule | None:
    """Find the first rule that holds, or the grant that allows what the default or an
    ask would decide.
    """
    rule = next(filter(holds, rules), None)
    if rule is None or (rule.action is Action.ASK and not rule.observe):
        return next(filter(holds, grants), rule)
    return rule


def chosen_credentials(
    credentials: Iterable[Credential], holds: Holds
) -> tuple[Credential, ...]:
    """Choose each credential that holds and shares no claim with one that is chosen:
    never a part of a credential.
    """
    chosen: list[Credential] = []
    claimed: set[str] = set()
    for credential in credentials:
        if holds(credential) and claimed.isdisjoint(credential.form.claims):
            chosen.append(credential)
            claimed |= credential.form.claims
    return tuple(chosen)
