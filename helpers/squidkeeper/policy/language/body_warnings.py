"""Rules with `body` that narrow nothing, because what stands below them opens the same
requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Final

from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.bodies import Allowed, Body, JsonBody
from squidkeeper.policy.language.body_texts import is_narrower, takes_no_more
from squidkeeper.policy.language.matching.host_fields import HostNeighbours
from squidkeeper.policy.language.matching.table import covers
from squidkeeper.policy.language.model import Action, Policy, Rule
from squidkeeper.policy.language.paths import PathPattern
from squidkeeper.policy.url import Reading, ReadPath

# what `**` may stand for: no pattern has this character
_INSTEAD: Final = (
    "",
    "\ue000",
    "\ue000/\ue000/\ue000",
)


def narrowing_nothing(policy: Policy, now: datetime) -> Iterator[Fault]:
    """Find the allows with `body` below which a rule, or the default, allows what their
    body was to close.
    """
    reading = [
        (position, rule)
        for position, rule in enumerate(policy.rules)
        if _narrows(rule, now)
    ]
    neighbours = HostNeighbours(policy.rules if reading else ())
    for position, rule in reading:
        below = (
            policy.rules[other] for other in neighbours.of(rule) if other > position
        )
        opened = _opened_below(policy, rule, below)
        if opened:
            message = f"rule {rule.name!r} narrows nothing: {opened}; expected a deny of them below {rule.name!r}"
            yield Fault(rule.location, FaultCode.NARROWS_NOTHING, message)


def _narrows(rule: Rule, now: datetime) -> bool:
    is_allow = rule.action is Action.ALLOW and not rule.observe
    return (
        is_allow
        and rule.body is not None
        and rule.preset is None
        and not rule.lapsed(now)
    )


def _opened_below(policy: Policy, rule: Rule, below: Iterable[Rule]) -> str | None:
    """Say what opens the requests of a rule; None where something closes them first, or
    nothing opens all of them.
    """
    usual = _usual(rule)
    for other in below:
        if other.observe or not covers(_with_paths(other, usual), usual):
            continue
        if other.action is not Action.ALLOW:
            return None
        if other.body is None:
            return f"{other.name!r} ({other.location}) below it allows the same requests whatever their body"
        if rule.body is not None and _is_wider(other.body, rule.body):
            return f"{other.name!r} ({other.location}) below it allows the same requests, and limits none of the same"
    opens = (
        policy.default_action is Action.ALLOW
        and not policy.observe_default
        and rule.match.ports is None
    )
    return "the default allows the same requests whatever their body" if opens else None


def _usual(rule: Rule) -> Rule:
    """Narrow a rule to the requests that have a body: a POST over https, where it is
    for these.
    """
    match = rule.match
    schemes = (
        match.schemes
        if match.schemes and "https" not in match.schemes
        else frozenset({"https"})
    )
    methods = (
        match.methods
        if match.methods and "POST" not in match.methods
        else frozenset({"POST"})
    )
    return replace(rule, match=replace(match, schemes=schemes, methods=methods))


# --- paths ----------------------------------------------------------------------------


def _with_paths(wide: Rule, narrow: Rule) -> Rule:
    """Take the path patterns of another rule for those of this one where this one's
    hold for all of these.
    """
    some, others = wide.match.paths, narrow.match.paths
    if (
        some is None
        or others is None
        or not all(any(_holds_for(one, two) for one in some) for two in others)
    ):
        return wide
    return replace(wide, match=replace(wide.match, paths=others))


def _holds_for(wide: PathPattern, narrow: PathPattern) -> bool:
    if wide.variables or narrow.variables:
        return False
    if wide == narrow or not (wide.is_glob and narrow.is_glob):
        return wide == narrow
    return all(
        wide.match(ReadPath(Reading.SENT, path)) is not None
        for path in _samples(narrow.text)
    )


def _samples(glob: str) -> Iterator[str]:
    """Fill the wildcards of a glob with what only a wildcard holds for."""
    for instead in _INSTEAD:
        yield glob.replace("**", instead).replace("*", instead[:1])


# --- bodies ---------------------------------------------------------------------------


def _is_wider(wide: Body, narrow: Body) -> bool:
    """Whether a body limits nothing that another one limits; False where that is not
    known.
    """
    if isinstance(wide, JsonBody) and isinstance(narrow, JsonBody):
        return _is_wider_json(wide, narrow)
    return is_narrower(replace(narrow, max_bytes=wide.max_bytes), wide)


def _is_wider_json(wide: JsonBody, narrow: JsonBody) -> bool:
    limits = {member.pointer: member.allowed for member in wide.members}
    frees = all(
        _frees(limits.get(member.pointer), member.allowed) for member in narrow.members
    )
    return frees and (
        narrow.only is None or wide.only is None or {*narrow.only} <= {*wide.only}
    )


def _frees(wide: Allowed | None, narrow: Allowed) -> bool:
    return wide is None or takes_no_more(narrow, wide)
