"""What the connections of this process share: policies, pages, the turns of denials,
and bounds on what is held.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from squidkeeper.base.client_network import client_network
from squidkeeper.base.errors import PatternError
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Decision,
    decide_body,
    deny,
    listed_rules,
    unavailable,
)
from squidkeeper.policy.language.model import (
    SESSION_REQUIRED,
    Rule,
    Unavailable,
)
from squidkeeper.policy.language.roles import Session
from squidkeeper.services.bodies.body_judgement import (
    JUDGED_AT_ONCE,
    Judgement,
    is_encoded,
)
from squidkeeper.services.bodies.body_question import AskedBody
from squidkeeper.services.bodies.denials import (
    DenialTurns,
    Pages,
    form_answer,
    http_head,
)
from squidkeeper.services.bodies.policies import Policies
from squidkeeper.serving.counters.layout import Key
from squidkeeper.serving.replies import body_count

if TYPE_CHECKING:
    from squidkeeper.services.bodies.settlement import Settler

_AT_ONCE_FOR_ALL_RULES: Final = 2 * JUDGED_AT_ONCE  # each rule may read the body
_BYTES_OF_A_VALUE: Final = 64  # a value takes about as long as so many bytes of text
# bytes of a content. It is parsed alone: that can take ten times as much memory
_LARGE: Final = 4 << 20
BYTES_AT_MOST: Final = 192 << 20  # of requests and their answers, in this process
_SHARE: Final = (
    3  # a client has a third of it at most, which is the largest body and more
)
METERED_BYTES: Final = 32 << 20  # of the body of a metered request, which is read whole
_UNKNOWN: Final = unavailable(
    Unavailable.POLICY_CHANGED,
    "The policy that allowed this request is no longer stored, so its body cannot be judged. Repeat it.",
)
_UNREAD: Final = unavailable(
    Unavailable.NOT_PASSED_ON,
    "The rules of the policy for this body are none that this gateway can read.",
)
_ENDED: Final = deny(
    SESSION_REQUIRED, "The session of this request has ended since it began."
)
# from the head of a request, after which an edit of the policy reaches its body too
EDITED_SECONDS: Final = 5.0
EDITED: Final = unavailable(
    Unavailable.POLICY_CHANGED,
    "The policy has changed since this request began. Repeat it.",
)
TOO_MUCH: Final = unavailable(
    Unavailable.BODY_OVER_SHARE,
    "The gateway cannot hold as much of a body as the policy needs to see. Repeat the request later.",
)
DECIDE_SECONDS: Final = 300.0  # in which a body has to come, as far as it is read
LATE: Final = unavailable(
    Unavailable.BODY_LATE,
    f"The body of this request did not come within {DECIDE_SECONDS:.0f} s, so the gateway could not judge it.",
)
_log = logging.getLogger(__name__)


class SquidConnection(asyncio.Protocol):
    """A connection of Squid's, as the process sees it."""

    def check(self, now: float) -> None:
        """End what takes too long; called once a second."""

    def drain(self) -> None:
        """Close the connection, after the answer to a request that is under way."""


class Room:
    """Counts the bytes that are held for requests, of each client and of all."""

    def __init__(self, bytes_at_most: int = BYTES_AT_MOST) -> None:
        self._at_most = bytes_at_most
        self._held: Counter[str] = Counter()
        self.held = 0

    def take(self, client: str, size: int) -> bool:
        """Count bytes that are held now, or no longer where `size` is negative; returns
        whether there is room.

        They count in any case.
        """
        network = client_network(client)
        self.held += size
        self._held[network] += size
        if self._held[network] <= 0:
            del self._held[network]
        return (
            self.held <= self._at_most
            and self._held[network] <= self._at_most // _SHARE
        )


class BodyJudge:
    """Judges requests for all connections.

    `count` counts a decision and its seconds. `drains`: no connection stays.

    `new_settler` makes what counts for metered requests, when the first one comes.
    `find_session` returns an active session by its number.
    """

    def __init__(
        self,
        policies: Policies,
        pages: Pages,
        turns: DenialTurns,
        pool: Executor,
        count: Callable[[Key, float], None],
        new_settler: Callable[[], Settler] | None = None,
        find_session: Callable[[int], Session | None] = lambda _: None,
    ) -> None:
        self.policies = policies
        self.turns = turns
        self.room = Room()
        self.connections: set[SquidConnection] = set()
        self.drains = False
        self._pages = pages
        self._pool = pool
        self._count = count
        self._new_settler = new_settler
        self._find_session = find_session
        self._settler: Settler | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._large = asyncio.Lock()
        self._under_way: set[asyncio.Task[Judgement | None]] = set()
        self._reported: set[str] = set()

    @property
    def settler(self) -> Settler:
        """What counts for metered requests."""
        if self._settler is None:
            if self._new_settler is None:
                raise RuntimeError("nothing counts what metered requests use")
            self._settler = self._new_settler()
        return self._settler

    @property
    def counting(self) -> Settler | None:
        """The same, once there was a metered request."""
        return self._settler

    def at_once(self, asked: AskedBody) -> CompiledPolicy | None:
        """Return the policy of a request that takes so little time that no other
        request has to wait for it.
        """
        body = asked.sent.body
        if len(body) > JUDGED_AT_ONCE or is_encoded(asked):
            return None
        # a part is not parsed
        values = sum(map(body.count, (b",", b"[", b"{"))) if asked.sent.complete else 0
        rules = max(asked.listed.count(","), 1)  # the last has no body
        if (len(body) + _BYTES_OF_A_VALUE * values) * rules > _AT_ONCE_FOR_ALL_RULES:
            return None
        return self.policies.at_hand(asked.revision)

    def decide(self, policy: CompiledPolicy, asked: AskedBody) -> Judgement | None:
        """Judge a request by as much of its body as has come; None where that does not
        decide.
        """
        began = time.monotonic()
        return self._counted(began, self._judge(policy, asked))

    async def decide_later(self, asked: AskedBody) -> Judgement | None:
        """Judge a request in a thread, by a policy that may have to be loaded.

        A client has one thread at a time, and keeps it where its connection is lost
        meanwhile.
        """
        policy = await self.policies.find(asked.revision)
        if policy is None:
            return self.refused(_UNKNOWN, asked)
        task = asyncio.create_task(self._decide_in_thread(policy, asked))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _decide_in_thread(
        self, policy: CompiledPolicy, asked: AskedBody
    ) -> Judgement | None:
        lock = self._locks.setdefault(client_network(asked.client), asyncio.Lock())
        async with (
            lock,
            self._large if self._may_be_large(policy, asked) else nullcontext(),
        ):
            began = time.monotonic()
            judgement = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._judge, policy, asked
            )
        return self._counted(began, judgement)

    def _counted(self, began: float, judgement: Judgement | None) -> Judgement | None:
        if judgement is not None:
            self._count(body_count(judgement.decision), time.monotonic() - began)
        return judgement

    def _judge(self, policy: CompiledPolicy, asked: AskedBody) -> Judgement | None:
        session = None if asked.session is None else self._find_session(asked.session)
        if session is None and asked.session is not None:
            return self.refused(_ENDED, asked)
        rules = _rules(policy, asked, session)
        if not rules:
            return self.refused(_UNREAD, asked)
        asked.most_bytes = max(map(_most_bytes, rules), default=0)
        decision = decide_body(policy, rules, asked.sent)
        if decision is None:
            return None
        for rule in rules:
            if (
                rule.meter is not None
                and decision.allowed
                and decision.rule == rule.name
            ):
                observed = asked.observed or decision.observed
                return (
                    Judgement(decision, observed, meter=(policy, rule))
                    if asked.sent.complete
                    else None
                )
        if (
            not decision.allowed
            and (denial := form_answer(decision, rules, asked)) is not None
        ):
            return Judgement(
                decision,
                asked.observed or decision.observed,
                (http_head(denial), denial.body),
            )
        return self.refused(decision, asked, policy.source.contact)

    def refused(
        self, decision: Decision, asked: AskedBody, contact: str | None = None
    ) -> Judgement:
        """Return the judgement of a decision, with the page of a denial."""
        observed = asked.observed or decision.observed
        if decision.allowed:
            return Judgement(decision, observed)
        page = self._pages.write(decision, asked, contact)
        return Judgement(decision, observed, (http_head(page), page.body))

    def _may_be_large(self, policy: CompiledPolicy, asked: AskedBody) -> bool:
        """Return whether the content of a body may be large.

        Its rules bound what 1 KB can inflate to.
        """
        if not is_encoded(asked):
            return len(asked.sent.body) > _LARGE
        session = None if asked.session is None else self._find_session(asked.session)
        return any(
            rule.body is not None and rule.body.max_bytes > _LARGE
            for rule in _rules(policy, asked, session)
        )

    def report(self, error: BaseException) -> None:
        """Log an error of ours once, by its type and place: its text may hold what a
        body says.
        """
        where = describe_place(error)
        if where not in self._reported:
            self._reported.add(where)
            _log.error(
                "a request was denied, because squidkeeper itself failed: %s", where
            )


def describe_place(error: BaseException) -> str:
    """Name the type of an error, and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = (
        f" in {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"
        if trace
        else ""
    )
    return f"{type(error).__name__}{place}"


def _rules(
    policy: CompiledPolicy, asked: AskedBody, session: Session | None
) -> tuple[Rule, ...]:
    """Return the rules that Squid has passed on; none where the policy does not have
    them.
    """
    try:
        return listed_rules(policy, asked.listed, session)
    except PatternError:
        return ()


def _most_bytes(rule: Rule) -> int:
    return (
        METERED_BYTES
        if rule.meter is not None
        else rule.body.max_bytes
        if rule.body is not None
        else 0
    )
