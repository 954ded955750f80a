"""What was decided and why (floor 3): a denial is a value, never an exception."""

from __future__ import annotations

from dataclasses import dataclass

from squidkeeper.policy.faults import Location
from squidkeeper.policy.model import Action, Credential, Rewrite
from squidkeeper.url import Url

_LONGEST_REASON = 1_000  # characters, as of the reasons that a policy gives


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A rewrite that applies, and the URL it leads to."""

    rewrite: Rewrite
    url: Url


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A verdict with its reason.

    `rule` is the name of the rule that decided or of a verdict such as `default`; `location` is where that rule stands.
    `private` lets the request reach a private address. Judged without a URL, `needs_url` says that the URL decides,
    `may_rewrite` and `may_inject` that a rewrite or a credential could apply, `whole` that the host is open for every
    URL and method and has no rewrite, and `narrowed` that all the same a credential is for a part of it. Judged with
    one, `rewritten` and `credentials` are what does apply. A decision is equal to itself alone.
    """

    action: Action
    rule: str
    reason: str | None = None
    location: Location | None = None
    private: bool = False
    needs_url: bool = False
    may_rewrite: bool = False
    may_inject: bool = False
    whole: bool = False
    narrowed: bool = False
    rewritten: Rewritten | None = None
    credentials: tuple[Credential, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the request may pass."""
        return self.action is Action.ALLOW


def deny(rule: str, reason: str) -> Decision:
    """Make a denial by one of the verdicts that are no rule's name; its reason may name what a client sent."""
    return Decision(Action.DENY, rule, reason[:_LONGEST_REASON])
