"""The decision by the body: the rules that it decides among, as Squid passes them on,
and the first that holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Location
from squidkeeper.policy.bodies.sent_request import HOLDS, BodyOutcome, Fit, SentRequest
from squidkeeper.policy.engine.decision import Decision, deny
from squidkeeper.policy.engine.precedence import agree, decides_without_body
from squidkeeper.policy.language.agreement import AGREED
from squidkeeper.policy.language.model import APPROVED, Action, Match, Rule
from squidkeeper.policy.language.roles import Session

if TYPE_CHECKING:
    from squidkeeper.policy.engine.compiled_policy import Candidates, CompiledPolicy

LISTED_AT_MOST: Final = 64  # rules, so that a reply of a helper has room for them
# in a list, as its last: the default, and the default where it denies a port
_DEFAULT, _CLOSED = (
    "d",
    "c",
)
_APPROVED = "s"  # what was approved for the session
_OF_SESSION = "@"  # between a list and the number of the session that asks
_SESSION = re.compile(r"(?:@([0-9]{1,19}))?", re.ASCII)
_POSITION = re.compile(r"[rg](0|[1-9][0-9]{0,5})")
_SHOWN = 3  # reasons on a page
_FOUND_LENGTH = 200  # characters
# found where no form has a reason
_DENIES, _NOTHING_HOLDS = (
    "the rule denies this body",
    "no rule allows this body",
)
# Ends a list where the default allows, but not on this port.
CLOSED_DEFAULT: Final = Rule(
    "default",
    Location(""),
    Action.DENY,
    Match(),
    "The default allows http and https on their own ports alone.",
)
_UNFINISHED: Final = deny("invalid-request", "The body ends too early.")
_TOO_MANY: Final = deny(
    "invalid-request",
    f"More than {LISTED_AT_MOST} rules of the policy may decide by the body of this request.",
)
_DISAGREEING: Final = deny(
    "invalid-request",
    "Rules that may decide by the body of this request differ in how it is forwarded.",
)


class Judged(NamedTuple):
    """A rule of a list, and what its `body:` comes to; one without it holds."""

    rule: Rule
    outcome: BodyOutcome

    @property
    def holds(self) -> bool:
        """Whether the rule holds: what cannot be read holds for every deny, and for no
        allow.
        """
        unreadable_deny = (
            self.outcome.fit is Fit.UNREADABLE and self.rule.action is not Action.ALLOW
        )
        return self.outcome.fit is Fit.HOLDS or unreadable_deny

    @property
    def text(self) -> str:
        """Say why it did not hold, or why it denies."""
        return f"{self.rule.name}: {self.outcome.reason}" if self.outcome.reason else ""


# --- which rules ----------------------------------------------------------------------


def decided_by_body(
    policy: CompiledPolicy,
    decision: Decision,
    rules: tuple[Rule, ...],
    candidates: Candidates,
) -> Decision:
    """Add the rules that the body decides among, some of the candidates, to what is
    decided before.
    """
    last = rules[-1]
    if (
        not decides_without_body(last)
        and not candidates.default.allowed
        and policy.source.default is Action.ALLOW
    ):
        rules = (*rules, CLOSED_DEFAULT)
    if len(rules) > LISTED_AT_MOST:
        return _TOO_MANY
    if not agree(rules) or (
        _reaches_default(policy, rules) and any(map(_opens_more, rules))
    ):
        # a fault of the policy keeps it from loading; nothing passes where one is
        # overlooked
        return _DISAGREEING
    counted = last if last.uses is not None else None
    return policy.with_body(decision, rules, counted, candidates.stamp)


def _reaches_default(policy: CompiledPolicy, rules: tuple[Rule, ...]) -> bool:
    return policy.source.default is Action.ALLOW and not decides_without_body(rules[-1])


def _opens_more(rule: Rule) -> bool:
    """Whether a rule allows what the default does not."""
    return (
        rule.action is Action.ALLOW
        and not rule.observe
        and any(value(rule) for value in AGREED.values())
    )


def listed_text(
    policy: CompiledPolicy, decision: Decision, session: int | None = None
) -> str | None:
    """Write the list of a decision: of a metered one, its rule alone; and the number of
    the session that asks.

    None where `squidkeeper bodies` is not asked.
    """
    if not decision.reads_body:
        return None
    listed = (
        format_listed(policy, decision.by_body)
        if decision.by_body
        else policy.position_names[decision.rule]
    )
    return listed if session is None else f"{listed}{_OF_SESSION}{session}"


def session_of_list(text: str) -> tuple[str, int | None]:
    """Split a list from the number of the session that asks; `PatternError` where it is
    none.
    """
    listed, at, number = text.partition(_OF_SESSION)
    found = _SESSION.fullmatch(at + number)
    if found is None:
        raise PatternError(f"{number!r} is not the number of a session")
    return listed, int(found[1]) if at else None


def format_listed(policy: CompiledPolicy, rules: Sequence[Rule]) -> str:
    """Write a list as Squid passes it on: positions of rules and grants, and `d` for
    the default.
    """
    others = {CLOSED_DEFAULT.name: _CLOSED, APPROVED.name: _APPROVED}
    names = [
        others.get(rule.name) or policy.position_names[rule.name] for rule in rules
    ]
    return ",".join([*names, *([] if decides_without_body(rules[-1]) else [_DEFAULT])])


def listed_rules(
    policy: CompiledPolicy, text: str, session: Session | None = None
) -> tuple[Rule, ...]:
    """Read the list of a request, by the same revision; `PatternError` where it is none
    of this policy, or its rules need the session of the request.
    """
    names = text.split(",")
    rules = tuple(
        _rule_at(policy, name, session)
        for name in (names[:-1] if names[-1] == _DEFAULT else names)
    )
    ends = [decides_without_body(rule) for rule in rules]
    if not rules or any(ends[:-1]) or ends[-1] is (names[-1] == _DEFAULT):
        raise PatternError(f"{text!r} is no list of rules that a body decides among")
    return rules


def _rule_at(policy: CompiledPolicy, name: str, session: Session | None) -> Rule:
    if name == _CLOSED:
        return CLOSED_DEFAULT
    if name == _APPROVED:
        return APPROVED
    group = policy.source.grants if name[:1] == "g" else policy.source.rules
    if not _POSITION.fullmatch(name) or int(name[1:]) >= len(group):
        raise PatternError(f"the policy has no rule at {name!r}")
    rule = group[int(name[1:])]
    if not rule.variables:
        return rule
    if session is None or session.role not in (rule.match.clients or ()):
        raise PatternError(f"the rule at {name!r} is for sessions, and this is none")
    return policy.rules_of_sessions.at(int(name[1:]), session)


# --- which of them holds --------------------------------------------------------------


def decide_body(
    policy: CompiledPolicy, listed: Decision | Sequence[Rule], sent: SentRequest
) -> Decision | None:
    """Decide by the body: the first rule of the list that holds; None while more of the
    body has to come.

    `listed` is the decision before the body, or its list. A denial has why each rule
    that could allow did not hold.
    """
    rules = listed.by_body if isinstance(listed, Decision) else listed
    passed: list[Judged] = []
    observed: str | None = None
    for judged in judge(rules, sent):
        if judged.outcome.fit is Fit.NEEDS_MORE:
            return None
        if not judged.holds:
            passed.append(judged)
        elif not judged.rule.observe:
            decision = _decided(policy, judged, passed)
            return (
                decision
                if decision.observed == observed
                else replace(decision, observed=observed)
            )
        elif observed is None:
            observed = f"{judged.rule.verdict}:{judged.rule.name}"
    return _by_default(policy, passed, observed)


def decide_sent(
    policy: CompiledPolicy, before: Decision, sent: SentRequest
) -> Decision:
    """Decide a request with the whole of its body: what was decided before the body
    keeps all but the verdict.
    """
    after = decide_body(policy, before, sent)
    if after is None or not after.allowed:
        return after or _UNFINISHED
    decided = {
        name: getattr(after, name)
        for name in ("rule", "reason", "location", "observed", "meter")
    }
    return replace(before, **decided)


def judge(rules: Sequence[Rule], sent: SentRequest) -> Iterator[Judged]:
    """Yield what the `body:` of each rule of a list comes to, in their order, down to
    the one that decides.
    """
    from squidkeeper.policy.bodies.body_forms import (
        examine,  # late: only a body needs it
    )

    for rule in rules:
        is_deny = rule.action is not Action.ALLOW
        judged = Judged(
            rule, HOLDS if rule.body is None else examine(rule.body, sent, deny=is_deny)
        )
        yield judged
        if judged.outcome.fit is Fit.NEEDS_MORE or (judged.holds and not rule.observe):
            return


def _decided(
    policy: CompiledPolicy, judged: Judged, passed: Sequence[Judged]
) -> Decision:
    rule = judged.rule
    decision = (
        deny("default", rule.reason or "")
        if rule is CLOSED_DEFAULT
        else policy.decision_by(rule)
    )
    if decision.allowed:
        return decision
    return _with_reasons(replace(decision, asks=False), judged, passed)


def _by_default(
    policy: CompiledPolicy, passed: Sequence[Judged], observed: str | None
) -> Decision:
    decision = policy.default_decision
    if decision.allowed:
        return replace(decision, observed=observed or decision.observed)
    return replace(
        _with_reasons(replace(decision, asks=False), None, passed), observed=observed
    )


def _with_reasons(
    decision: Decision, denier: Judged | None, passed: Sequence[Judged]
) -> Decision:
    """Add to a denial why the rule holds that denies, and why those that could allow
    did not hold.
    """
    could_allow = (
        one
        for one in passed
        if one.rule.action is Action.ALLOW and not one.rule.observe
    )
    told = [
        one.text for one in (*([denier] if denier else []), *could_allow) if one.text
    ]
    if not told:
        return replace(
            decision, found=_DENIES if denier and denier.rule.body else _NOTHING_HOLDS
        )
    reason = " ".join([decision.reason or "", *(f"{text}." for text in told[:_SHOWN])])
    return replace(
        decision, reason=reason.strip()[:1_000], found="; ".join(told)[:_FOUND_LENGTH]
    )
