"""What people have answered to the tickets of a session, as its store keeps it.

An approval ends by wall clock, and by age within a boot, as sessions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.approvals import ApprovalScope, approved_rule
from squidkeeper.policy.language.model import Rule
from squidkeeper.policy.language.roles import TicketAnswer
from squidkeeper.serving.sessions.clock import TimeNow

ANSWERS_AT_MOST: Final = 60  # of a session
_URL_CHARACTERS: Final = 32_768


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer. `seconds` is how long an approval was given for, `by` who gave it.

    Of a denial, `reason` is for the client.
    """

    ticket: str
    approved: bool
    by: str
    at: float
    reason: str = ""
    method: str = ""
    url: str = ""
    scope: ApprovalScope = ApprovalScope.URL
    seconds: int = 0
    boot: str = ""
    since_boot: float = 0.0

    @property
    def ends(self) -> float:
        """When an approval lapses, in seconds since 1970."""
        return self.at + self.seconds if self.approved else 0.0

    @property
    def boot_ends(self) -> float:
        """The same, in seconds since the start `boot` of the machine."""
        return self.since_boot + self.seconds

    def is_over(self, at: TimeNow) -> bool:
        """Whether an approval has lapsed."""
        by_age = self.boot == at.boot and at.since_boot >= self.boot_ends
        return self.approved and (by_age or at.wall >= self.ends)

    def is_same(self, other: StoredAnswer) -> bool:
        """Whether another answer says the same, whoever gives it."""
        return (self.approved, self.reason, self.scope, self.seconds) == (
            other.approved,
            other.reason,
            other.scope,
            other.seconds,
        )

    def grant(self) -> Rule | None:
        """Make the rule of an approval; None of a denial."""
        if not self.approved:
            return None
        expires = datetime.fromtimestamp(self.ends, UTC)
        try:
            return approved_rule(self.method, self.url, self.scope, expires)
        except PatternError:  # which the service does not write
            return None


def answers_text(answers: Sequence[StoredAnswer]) -> str:
    """Write the answers of a session for its store."""
    return msgspec.json.encode(answers).decode()


def parse_answers(text: str) -> tuple[StoredAnswer, ...]:
    """Read the answers of a session; ValueError where they are damaged."""
    return msgspec.json.decode(text, type=tuple[StoredAnswer, ...])


def told_answers(answers: Sequence[StoredAnswer]) -> dict[str, TicketAnswer]:
    """Return the answers as helpers know them, by the numbers of the tickets."""
    return {
        one.ticket: TicketAnswer(one.approved, one.ends, one.reason) for one in answers
    }


def grants_of(answers: Sequence[StoredAnswer], at: TimeNow | None) -> tuple[Rule, ...]:
    """Return the rules of the approvals that are in force at a time; without a time, of
    all that are kept.
    """
    held = (one for one in answers if at is None or not one.is_over(at))
    return tuple(grant for one in held if (grant := one.grant()) is not None)


def with_answer(
    answers: Sequence[StoredAnswer], new: StoredAnswer, at: TimeNow
) -> tuple[StoredAnswer, ...] | None:
    """Add an answer in place of a former one to its ticket; None where there are too
    many.

    Where there is no room, what has lapsed leaves, and then the oldest denial.
    """
    kept = [one for one in answers if one.ticket != new.ticket]
    kept.sort(key=lambda one: (not one.is_over(at), one.approved, one.at))
    while _is_full([*kept, new]):
        if not kept or (kept[0].approved and not kept[0].is_over(at)):
            return None
        del kept[0]
    return tuple(sorted([*kept, new], key=lambda one: one.at))


def _is_full(answers: Sequence[StoredAnswer]) -> bool:
    characters = sum(len(one.url) for one in answers)
    return len(answers) > ANSWERS_AT_MOST or characters > _URL_CHARACTERS
