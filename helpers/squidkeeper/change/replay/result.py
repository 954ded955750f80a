"""What a replay found: flips, by rule, client and host."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class FlipKind(StrEnum):
    """How the new policy differs about a request."""

    DENIED = "denied"  # it was allowed, and would be denied
    OPENED = "opened"  # it was denied, and would be allowed
    CHANGED = "changed"  # both allow it, with another credential or rewrite


@dataclass(frozen=True, slots=True)
class Flip:
    """What flips: `was` is the rule that decides by the old policy, `rule` by the new
    one.

    `gained` and `lost` are names of credentials; one that injects something else is in
    both. The rewrites are None where there is none; two of the same name lead to
    different URLs. `observed` is what the new policy would record as observed. `asks`
    tells that its denial is a ticket, which a person may approve.
    """

    kind: FlipKind
    rule: str
    was: str
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    rewrite: str | None = None
    rewrite_was: str | None = None
    observed: str | None = None
    asks: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """Write what changes beside the verdict."""
        changed = {*self.gained} & {*self.lost}
        gained = (
            f"{name} injects something else" if name in changed else f"+{name}"
            for name in self.gained
        )
        lost = (f"-{name}" for name in self.lost if name not in changed)
        return (
            *gained,
            *lost,
            *(
                (self._rewrites,)
                if (self.rewrite, self.rewrite_was) != (None, None)
                else ()
            ),
        )

    @property
    def _rewrites(self) -> str:
        if self.rewrite == self.rewrite_was:
            return f"rewrite {self.rewrite} to another URL"
        return f"rewrite {self.rewrite_was or 'none'} → {self.rewrite or 'none'}"


@dataclass(frozen=True, slots=True)
class Example:
    """One of the requests: the newest that was used, or else the newest."""

    time: datetime
    method: str
    url: str  # as it was logged
    request_id: str


@dataclass(frozen=True, slots=True)
class FlipGroup:
    """The requests of one client to one host that flip alike; `urls` counts their
    distinct URLs.

    `policy_clients` are those of the old policy to which the address or user belongs;
    where there are none, of the new.
    """

    flip: Flip
    client: str
    user: str | None
    host: str
    requests: int
    used: int
    urls: int
    first: datetime
    last: datetime
    example: Example
    policy_clients: tuple[str, ...] = ()

    @property
    def client_name(self) -> str:
        """Write `user@address`, or the address where there is no proxy user."""
        return self.client if self.user is None else f"{self.user}@{self.client}"


@dataclass(frozen=True, slots=True)
class Total:
    """How many requests, how many of them were used, and in how many groups."""

    requests: int = 0
    used: int = 0
    groups: int = 0


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What differs between two policies about the requests of a period.

    `flips` has the groups by kind, those with the most used requests first; of one
    client and kind not more than were asked for, so `totals` may count more. `observed`
    counts what the new policy would record as observed. `disagreeing` requests have
    another verdict in the access log than the old policy gives. `set_apart` counts, by
    reason, what was not judged.
    """

    old: str
    new: str
    requests: int
    first: datetime | None
    last: datetime | None
    flips: tuple[FlipGroup, ...]
    totals: Mapping[FlipKind, Total]
    observed: Mapping[str, Total]
    disagreeing: int
    set_apart: Mapping[str, int]

    def total(self, kind: FlipKind) -> Total:
        """Return the total of a kind."""
        return self.totals.get(kind, Total())

    @property
    def denied_and_used(self) -> int:
        """The number of requests that were used and would be denied."""
        return self.total(FlipKind.DENIED).used

    def of(self, kind: FlipKind) -> tuple[FlipGroup, ...]:
        """Return the groups of a kind."""
        return tuple(group for group in self.flips if group.flip.kind is kind)
