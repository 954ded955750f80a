"""Which of the entries that hold apply: the order of a policy, for one URL or for a whole cell of them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from squidkeeper.policy.engine.compiled_policy import Candidates
from squidkeeper.policy.engine.fields import Entry
from squidkeeper.policy.language.model import Action, Credential, Rewrite, Rule

Holds = Callable[[Entry], bool]


class Applied(NamedTuple):
    """The entries that apply; `rule` is None for the default."""

    rule: Rule | None
    rewrite: Rewrite | None
    credentials: tuple[Credential, ...]


def applied_entries(candidates: Candidates, rules: Iterable[Rule], grants: Iterable[Rule], holds: Holds) -> Applied:
    """Find the entries that apply: a request that is rewritten gets the credentials of where it is fetched."""
    rule = first_rule(rules, grants, holds)
    if rule is None and candidates.default_observes:
        return Applied(None, None, ())
    rewrite = next(filter(holds, candidates.rewrites), None)
    return Applied(rule, rewrite, () if rewrite else chosen_credentials(candidates.credentials, holds))


def first_rule(rules: Iterable[Rule], grants: Iterable[Rule], holds: Holds) -> Rule | None:
    """Find the first rule that holds, or the grant that allows what the default or an ask would decide."""
    rule = next(filter(holds, rules), None)
    if rule is None or (rule.action is Action.ASK and not rule.observe):
        return next(filter(holds, grants), rule)
    return rule


def chosen_credentials(credentials: Iterable[Credential], holds: Holds) -> tuple[Credential, ...]:
    """Choose each credential that holds and shares no claim with one that is chosen: never a part of a credential."""
    chosen: list[Credential] = []
    claimed: set[str] = set()
    for credential in credentials:
        if holds(credential) and claimed.isdisjoint(credential.form.claims):
            chosen.append(credential)
            claimed |= credential.form.claims
    return tuple(chosen)
