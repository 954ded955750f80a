"""`squidkeeper throttle`: when does a client get its denial?

Squid asks after it has denied a request. The answer changes the time at which the
client gets its page, and nothing else. It bounds the lines of the access log that a
client causes. A denial that would wait too long is surplus: it waits at a second
`external_acl_type`, in Squid's queue, and takes none of the lookups (`concurrency=`) in
which others wait.

Squid also asks after a request with a long head. The next request on that connection
then waits, because a head of 16 KB can hold 4,000 lines: ten times the work of a usual
request.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import nlargest
from typing import Final

from squidkeeper.base.client_network import client_network
from squidkeeper.base.helper_metrics import THROTTLED
from squidkeeper.policy.protocol.lines import Reply, Result, parse_tokens
from squidkeeper.serving.counters.layout import counter_key
from squidkeeper.serving.helpers.delayed_replies import DelayedReply

TOKENS: Final = (1, 2, 3)
HEAD: Final = "head"  # the argument of the ACL that asks after a long head
SPARE_LOOKUPS: Final = (
    50  # never held, so that a client below its rate is answered at once
)
SURPLUS_SECONDS: Final = 60.0
# More than one machine can have open: three times client_ip_max_connections. A client
# that has gone leaves its lookup behind, and Squid holds the request for it, 11 KB of
# memory or more.
SURPLUS_AT_MOST: Final = 8192
CLIENTS_AT_MOST: Final = 50_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one client: denials per second, the burst before that, and the
    longest wait for a turn.
    """

    per_second: float
    burst: int
    longest_seconds: float

    @property
    def of_heads(self) -> "Limits":
        """The limits of long heads, in thousands of bytes.

        Each takes 0.2 ms of Squid's processor. With 10 denials a second, and 200 at
        once, a client gets a twentieth of it, and 0.4 s at once.
        """
        return Limits(
            per_second=self.per_second * 25,
            burst=self.burst * 10,
            longest_seconds=self.longest_seconds / 10,
        )


class Clients:
    """The next turn of each client, by the generic cell rate algorithm (ITU-T I.371),
    with a bound on their number.
    """

    def __init__(self, limits: Limits, at_most: int = CLIENTS_AT_MOST) -> None:
        self._interval = 1 / limits.per_second
        self._tolerance = (limits.burst - 1) * self._interval
        self._longest = limits.longest_seconds
        self._at_most = at_most
        self._full_at: dict[
            str, float
        ] = {}  # when the client has its whole burst again

    def due(
        self, client: str, now: float, *, may_wait: bool = True, units: int = 1
    ) -> float | None:
        """Return the client its next turn, which takes as many units; None, and no
        turn, if that is too far away.
        """
        full_at = max(now, self._full_at.get(client, now))
        due = max(now, full_at - self._tolerance)
        if due - now > (self._longest if may_wait else 0):
            return None
        self._full_at[client] = full_at + self._interval * units
        if len(self._full_at) > self._at_most:
            self._forget()
        return due

    def _forget(self) -> None:
        """Forget the half that has used least: they have their whole burst again
        soonest.
        """
        self._full_at = dict(
            nlargest(
                self._at_most // 2, self._full_at.items(), key=lambda item: item[1]
            )
        )


class Surplus:
    """The turns of the surplus of all clients: one queue, each turn later than the one
    before.

    If too many wait, each new one releases the oldest: `release` gets the time until
    which all are due now.
    """

    def __init__(
        self,
        per_second: float,
        release: Callable[[float], None],
        at_most: int = SURPLUS_AT_MOST,
    ) -> None:
        self._interval = 1 / per_second
        self._release = release
        self._at_most = at_most
        self._last = 0.0
        self._waiting: deque[float] = deque()

    def due(self, now: float) -> float:
        """Return the next turn, at most a minute away."""
        while self._waiting and self._waiting[0] <= now:
            self._waiting.popleft()
        if len(self._waiting) >= self._at_most:
            self._release(self._waiting.popleft())
        self._last = min(max(now, self._last + self._interval), now + SURPLUS_SECONDS)
        self._waiting.append(self._last)
        return self._last


class Throttle:
    """Answers at client scope: OK at the client's turn, or ERR at once with the time
    for the surplus queue.
    """

    def __init__(
        self, limits: Limits, concurrency: int, release: Callable[[float], None]
    ) -> None:
        self._denials = Clients(limits)
        self._heads = Clients(limits.of_heads)
        self._surplus = Surplus(limits.per_second, release)
        self._lookups_to_hold = concurrency - SPARE_LOOKUPS

    def answer(self, request: bytes, now: float, held: int) -> DelayedReply:
        """Answer one line; `held` is the number of lines that wait already."""
        client, *rest = parse_tokens(request, TOKENS)
        network, may_wait = client_network(client or ""), held < self._lookups_to_hold
        if rest[1:] == [HEAD]:
            size = int(rest[0] or 0)
            due = self._heads.due(network, now, may_wait=may_wait, units=size)
            return self._as_surplus(now) if due is None else DelayedReply(due, _OK)
        due = self._denials.due(network, now, may_wait=may_wait)
        if due is None:
            return self._as_surplus(now, _SURPLUS)
        return DelayedReply(due, _AT_ONCE if due <= now else _HELD)

    def _as_surplus(self, now: float, *counts: tuple[str, ...]) -> DelayedReply:
        until = f"{self._surplus.due(now):.2f}"
        return DelayedReply(
            now, Reply(Result.ERR, (("held_until_", until),), counts=counts)
        )


def answer_surplus(request: bytes, now: float, held: int) -> DelayedReply:  # noqa: ARG001 - as at client scope
    """Answer at surplus scope: at the time that the first answer named, or at once if
    it named none.
    """
    until, *_ = parse_tokens(request, TOKENS)
    try:
        due = float(until or "")
    except ValueError:
        due = now
    # also for NaN
    return (
        DelayedReply(min(due, now + SURPLUS_SECONDS), _OK)
        if due > now
        else DelayedReply(now, _OK)
    )


_OK = Reply(Result.OK)
_AT_ONCE = Reply(Result.OK, counts=(counter_key(THROTTLED, "at_once"),))
_HELD = Reply(Result.OK, counts=(counter_key(THROTTLED, "held"),))
_SURPLUS = counter_key(THROTTLED, "surplus")
