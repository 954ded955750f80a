"""What metered requests use: their reserve is taken when they begin, and settled when
their answers have ended.

One process takes the reserve, and any other may settle it. All that settling needs is
in `Metered`, which Squid keeps. One thread counts, and writes the ledger: neither a
disk nor a store of all gateways holds up other requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import msgspec

from squidkeeper.base.client_network import client_network
from squidkeeper.base.errors import (
    CountsBusy,
    CountsUnavailable,
    InvalidIcap,
    InvalidUrl,
    UnreadableBody,
)
from squidkeeper.base.helper_metrics import QUOTA_DENIALS
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.policy.engine import CompiledPolicy, Decision, deny
from squidkeeper.policy.engine.quotas import token_quotas
from squidkeeper.policy.language.model import Rule
from squidkeeper.policy.language.prices import NO_PRICES, Metering, Prices
from squidkeeper.policy.language.quotas import UNCOUNTED, Quota, QuotaUnit, shown_amount
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.url import address_host, parse_address
from squidkeeper.policy.usage.cost import cost_of, dearest_of
from squidkeeper.policy.usage.forms import form_of
from squidkeeper.policy.usage.reserve import reserve_of, with_usage_asked
from squidkeeper.policy.usage.tokens import Unmetered, Usage
from squidkeeper.record.log.record import NONE
from squidkeeper.record.log.requests import token
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageEntry,
    UsageState,
    append_entry,
    ledger_file,
    ledger_files,
    parse_entry,
    recorded_text,
    usage_entry,
)
from squidkeeper.services.bodies.body_judgement import (
    JUDGED_AT_ONCE,
    Judgement,
    is_encoded,
)
from squidkeeper.services.bodies.body_question import AskedBody
from squidkeeper.services.bodies.denials import QUOTA, Pages, form_answer, http_head
from squidkeeper.services.bodies.policies import Policies
from squidkeeper.serving.counters.layout import Key, counter_key
from squidkeeper.serving.helpers.meter import refusal_reason
from squidkeeper.serving.quotas.counts import QuotaCount, held_counts
from squidkeeper.serving.quotas.meter import Refusal
from squidkeeper.serving.quotas.reserves import CountedAnswer, Reserves, Used
from squidkeeper.serving.replies import body_count

# an answer that has just ended is settled within a moment
_AGAIN_SECONDS: Final = (
    0.05,
    0.2,
    0.5,
)
_AWAY_SECONDS: Final = 5.0
_WAITING_AT_MOST: Final = (
    50_000  # settlements, while nothing can be counted. Others stay reserved
)
_encode = msgspec.json.encode
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metered:
    """A request whose reserve was taken. `model` is the one that it asks for."""

    request: MeteredRequest
    model: str
    reserve: Amounts

    def format(self) -> str:
        """Write it as Squid keeps it."""
        reserve = (self.reserve.tokens_in, self.reserve.tokens_out, self.reserve.cost)
        return " ".join(
            [*astuple(self.request), recorded_text(self.model), *map(str, reserve)]
        )

    @classmethod
    def parse(cls, text: str) -> Metered:
        """Read what `format` has written; `InvalidIcap` for another text."""
        try:
            *told, model, tokens_in, tokens_out, cost = text.split(" ")
            reserve = Amounts(int(tokens_in), int(tokens_out), int(cost))
            return cls(
                MeteredRequest(*told), "" if model == NONE else unquote(model), reserve
            )
        except (ValueError, TypeError):
            raise InvalidIcap(
                "an answer comes without what is known of its request"
            ) from None


class Settler:
    """Takes reserves, and settles them.

    `count` counts a denial by a quota. `find_session` finds a session by its number,
    also one that has ended.
    """

    def __init__(
        self,
        directory: Path,
        state: Path,
        policies: Policies,
        pages: Pages,
        count: Callable[[list[Key]], None],
        find_session: Callable[[int], Session | None] = lambda _: None,
    ) -> None:
        self._find_session = find_session
        self._policies = policies
        self._pages = pages
        self._count = count
        self._state = state
        self._ledger = ledger_file(state)
        self._reserves = Reserves(directory, state / BODIES_FOLDER)
        self._thread = ThreadPoolExecutor(1, "counts")
        # work of the thread, to be done again
        self._waiting: deque[Callable[[], None]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        # a client has a thread at a time
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._problem = ""
        self._thread.submit(self._recover)

    # --- the reserve ------------------------------------------------------------------

    async def reserve(
        self, judgement: Judgement, asked: AskedBody
    ) -> tuple[Judgement, bytes | None]:
        """Take the reserve of a request that is allowed, or deny it; also return its
        new body, None for its own.
        """
        if judgement.meter is None:
            return judgement, None
        policy, rule = judgement.meter
        try:
            metered, body = await self._read(policy, rule, asked)
        except UnreadableBody as error:
            decision = deny(
                "invalid-request",
                f"The gateway cannot tell what this request may use: {error}.",
            )
            return self._denied(
                replace(decision, found=str(error)), judgement.meter, asked
            ), None
        if refusal := await self._hold(policy, rule, metered):
            return self._refused(refusal, metered, judgement.meter, asked), None
        return replace(judgement, metered=metered.format()), body

    async def _read(
        self, policy: CompiledPolicy, rule: Rule, asked: AskedBody
    ) -> tuple[Metered, bytes | None]:
        """Read what a request may use.

        One that may take long has a thread: others would wait.
        """
        if len(asked.sent.body) <= JUDGED_AT_ONCE and not is_encoded(asked):
            return _metered(policy, rule, asked)
        task = asyncio.create_task(self._read_in_thread(policy, rule, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _read_in_thread(
        self, policy: CompiledPolicy, rule: Rule, asked: AskedBody
    ) -> tuple[Metered, bytes | None]:
        async with self._locks.setdefault(client_network(asked.client), asyncio.Lock()):
            return await asyncio.to_thread(_metered, policy, rule, asked)

    def _session_of(self, request: MeteredRequest) -> Session | None:
        number = request.session
        return self._find_session(int(number)) if number.isdecimal() else None

    async def _hold(
        self, policy: CompiledPolicy, rule: Rule, metered: Metered
    ) -> Refusal | None:
        session = self._session_of(metered.request)
        quotas = _quotas(policy, metered.request, rule.name, session)
        entry = usage_entry(
            metered.request, datetime.now(UTC), metered.model, metered.reserve
        )
        loop = asyncio.get_running_loop()
        for seconds in (*_AGAIN_SECONDS, None):
            refusal = await loop.run_in_executor(
                self._thread, self._take, quotas, metered, entry
            )
            if refusal is None or not refusal.passes_soon or seconds is None:
                return refusal
            await asyncio.sleep(seconds)
        return None

    def _take(
        self, quotas: list[tuple[Quota, str]], metered: Metered, entry: UsageEntry
    ) -> Refusal | None:
        if quotas:
            try:
                held = self._reserves.hold(
                    metered.request.held_as,
                    quotas,
                    _used(metered.reserve),
                    b"" if _is_nothing(metered.reserve) else _encode(entry),
                )
            except CountsUnavailable as error:
                self._report(str(error))
                busy = isinstance(error, CountsBusy)
                return Refusal(
                    quotas[0][0], _AWAY_SECONDS, unavailable=str(error), busy=busy
                )
            if held is not True:
                return held or None
        if not _is_nothing(metered.reserve):
            self._write(entry)
        return None

    def _refused(
        self,
        refusal: Refusal,
        metered: Metered,
        by: tuple[CompiledPolicy, Rule],
        asked: AskedBody,
    ) -> Judgement:
        name = refusal.quota.name
        found = f"{UNCOUNTED if refusal.unavailable else 'quota'}:{name}"
        decision = replace(deny(QUOTA, _reason(refusal, metered.reserve)), found=found)
        self._count([counter_key(QUOTA_DENIALS, name)])
        if not refusal.unavailable and _never_fits(refusal.quota, metered.reserve):
            return self._denied(decision, by, asked)
        # rounded, as it is cut to the second
        at = datetime.now(UTC) + timedelta(seconds=refusal.ends_in + 0.5)
        return self._denied(
            decision, by, asked, (f"{at:%Y-%m-%dT%H:%M:%SZ}", ceil(refusal.ends_in))
        )

    def _denied(
        self,
        decision: Decision,
        by: tuple[CompiledPolicy, Rule],
        asked: AskedBody,
        resets: tuple[str, int] | None = None,
    ) -> Judgement:
        policy, rule = by
        self._count([body_count(decision)])
        page = form_answer(decision, (rule,), asked) or self._pages.write(
            decision, asked, policy.source.contact, resets
        )
        return Judgement(decision, asked.observed, (http_head(page), page.body))

    # --- the settlement ---------------------------------------------------------------

    def settle(
        self, metered: Metered, outcome: Usage | Unmetered, *, whole: bool
    ) -> None:
        """Count what an answer has reported, or the reserve where it has not.

        `whole`: all of the answer has come.
        """
        policy = self._policies.at_hand(metered.request.revision)
        if policy is not None:
            self._settle(metered, outcome, policy, whole=whole)
            return
        task = asyncio.create_task(self._settle_later(metered, outcome, whole=whole))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle_later(
        self, metered: Metered, outcome: Usage | Unmetered, *, whole: bool
    ) -> None:
        policy = await self._policies.find(metered.request.revision)
        self._settle(metered, outcome, policy, whole=whole)

    def _settle(
        self,
        metered: Metered,
        outcome: Usage | Unmetered,
        policy: CompiledPolicy | None,
        *,
        whole: bool,
    ) -> None:
        if policy is None:
            outcome = Unmetered(
                "its policy is no longer stored", outcome.tokens_in, outcome.tokens_out
            )
        settlement = _settlement(
            metered, outcome, policy.source.prices if policy else NO_PRICES, whole=whole
        )
        session, used = self._session_of(metered.request), _used(settlement.used)
        beyond = _beyond(policy, metered, used, session) if policy else {}
        self._thread.submit(
            self._do, lambda: self._count_used(metered, settlement, beyond)
        )

    def _count_used(
        self,
        metered: Metered,
        settlement: _Settlement,
        beyond: Mapping[QuotaCount, int],
    ) -> None:
        used, answer = settlement.used, None
        if settlement.answer_id:
            answer_id = f"{metered.request.host} {settlement.answer_id}"
            # What has a prompt counts in full: some APIs let a client choose the ID.
            counted = (
                None if metered.reserve.tokens_in else self._reserves.counted(answer_id)
            )
            before = (
                msgspec.json.decode(counted, type=Amounts) if counted else Amounts()
            )
            used = _each(lambda new, old: max(new - old, 0), used, before)
            answer = CountedAnswer(
                answer_id, _encode(_each(max, settlement.used, before))
            )
        told = (
            settlement.model,
            used,
            metered.reserve,
            settlement.state,
            settlement.reason,
        )
        entry = usage_entry(metered.request, datetime.now(UTC), *told)
        uses = not (_is_nothing(used) and _is_nothing(metered.reserve))
        line = _encode(entry) if uses else b""
        self._reserves.settle(
            metered.request.held_as, _used(used), line, answer, beyond
        )
        if uses:
            self._write(entry)

    # --- the thread -------------------------------------------------------------------

    def tick(self) -> None:
        """Try again what could not be counted; called once a second."""
        if self._waiting:
            self._thread.submit(self._try_again)

    async def finish(self) -> None:
        """Wait until all is counted that was submitted, for a moment."""
        with suppress(TimeoutError):
            done = asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: None
            )
            await asyncio.wait_for(done, _AWAY_SECONDS)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (CountsUnavailable, OSError) as error:
            self._report(str(error))
            if len(self._waiting) < _WAITING_AT_MOST:
                self._waiting.append(work)
        else:
            self._problem = ""

    def _try_again(self) -> None:
        for _ in range(len(self._waiting)):
            self._do(self._waiting.popleft())
            if self._problem:
                return

    def _write(self, entry: UsageEntry) -> None:
        try:
            append_entry(self._ledger, entry)
        except OSError as error:
            self._report(f"the ledger cannot be written: {error}")
            if len(self._waiting) < _WAITING_AT_MOST:
                self._waiting.append(lambda: append_entry(self._ledger, entry))

    def _recover(self) -> None:
        """Write what killed processes have counted and not written."""
        self._do(
            lambda: self._reserves.take_last_lines(self._is_written, self._write_line)
        )

    def _is_written(self, line: bytes) -> bool:
        since = datetime.fromisoformat(parse_entry(line).time)
        return any(
            line in file.read_bytes() for file in ledger_files(self._state, since)
        )

    def _write_line(self, line: bytes) -> None:
        append_entry(self._ledger, parse_entry(line))

    def _report(self, problem: str) -> None:
        """Log a failure when it begins or changes, not for each request."""
        if problem != self._problem:
            _log.error("what metered requests use cannot be counted: %s", problem)
        self._problem = problem


def _metered(
    policy: CompiledPolicy, rule: Rule, asked: AskedBody
) -> tuple[Metered, bytes | None]:
    """Read what a request may use; also its body where that has to ask for usage."""
    sent, meter = asked.sent, rule.meter or Metering()
    form = form_of(sent.method, sent.target)
    if meter.ask_usage and form is not None and form.asks_usage and is_encoded(asked):
        raise UnreadableBody(
            f"the body is compressed, and the rule {rule.name} has ask_usage: send it plain"
        )
    reserve = reserve_of(sent, meter.reserve, form)
    told = (
        asked.request_id,
        asked.client,
        asked.user or NONE,
        recorded_text(rule.name),
        asked.revision,
    )
    request = MeteredRequest(
        *told,
        recorded_text(_host(asked.url)),
        recorded_text(asked.worker),
        NONE if asked.session is None else str(asked.session),
    )
    prices = policy.source.prices
    usage = dearest_of(reserve.usages(), prices)
    metered = Metered(request, usage.model, _amounts(usage, prices))
    return metered, with_usage_asked(sent.body, form) if meter.ask_usage else None


def _quotas(
    policy: CompiledPolicy,
    request: MeteredRequest,
    rule: str,
    session: Session | None,
) -> list[tuple[Quota, str]]:
    """List the quotas that count the tokens of a request, each with whose
    count it is.
    """
    address = None
    with suppress(InvalidUrl):
        address = address_host(parse_address(request.client))
    clients = policy.clients_of(address, token(request.user))
    if session is not None:
        clients = (*clients, session.role)
    quotas = token_quotas(policy.source, clients, rule)
    user = None if request.user == NONE else request.user
    return held_counts(quotas, request.client, user, rule, session)


def _beyond(
    policy: CompiledPolicy, metered: Metered, used: Used, session: Session | None
) -> dict[QuotaCount, int]:
    """Return how much of each count a request has used beyond its reserve."""
    more = {
        unit: used[unit] - reserved for unit, reserved in _used(metered.reserve).items()
    }
    if max(more.values()) <= 0:
        return {}
    rule = unquote(metered.request.rule)
    held = _quotas(policy, metered.request, rule, session)
    counts = (QuotaCount.of(*one) for one in held)
    return {count: max(more[count.unit], 0) for count in counts}


class _Settlement(NamedTuple):
    """What a request has used, as what, of which model, why it is its reserve, and the
    ID of its answer.
    """

    used: Amounts
    state: UsageState
    model: str
    reason: str
    answer_id: str


def _settlement(
    metered: Metered, outcome: Usage | Unmetered, prices: Prices, *, whole: bool
) -> _Settlement:
    if isinstance(outcome, Usage):
        model = outcome.model or metered.model
        return _Settlement(
            _amounts(outcome, prices), UsageState.METERED, model, "", outcome.answer_id
        )
    reserve = metered.reserve
    state = UsageState.UNMETERED if whole else UsageState.RESERVED
    tokens_in, tokens_out = (
        max(reserve.tokens_in, outcome.tokens_in),
        max(reserve.tokens_out, outcome.tokens_out),
    )
    cost = max(
        reserve.cost, cost_of(Usage(metered.model, tokens_in, tokens_out), prices)
    )
    return _Settlement(
        Amounts(tokens_in, tokens_out, cost),
        state,
        metered.model,
        outcome.reason,
        outcome.answer_id,
    )


def _is_nothing(amounts: Amounts) -> bool:
    return amounts == Amounts()


def _each(choose: Callable[[int, int], int], new: Amounts, old: Amounts) -> Amounts:
    return Amounts(*map(choose, astuple(new), astuple(old)))


def _amounts(usage: Usage, prices: Prices) -> Amounts:
    cost = cost_of(usage, prices)
    return Amounts(
        usage.tokens_in, usage.tokens_out, cost, usage.cached_in, usage.cache_write
    )


def _used(amounts: Amounts) -> Used:
    return {
        QuotaUnit.TOKENS_IN: amounts.tokens_in,
        QuotaUnit.TOKENS_OUT: amounts.tokens_out,
        QuotaUnit.TOKENS: amounts.tokens_in + amounts.tokens_out,
        QuotaUnit.COST: amounts.cost,
    }


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _never_fits(quota: Quota, reserve: Amounts) -> bool:
    """Whether a request may use more than the whole limit of a quota: no reset helps
    it.
    """
    return _used(reserve)[quota.unit] > quota.limit


def _reason(refusal: Refusal, reserve: Amounts) -> str:
    """Say why a quota refuses a request, for its client."""
    quota = refusal.quota
    if not refusal.unavailable and _never_fits(quota, reserve):
        may = shown_amount(quota.unit, _used(reserve)[quota.unit])
        return (
            f"This request may use {may}, which is more than the whole quota {quota.name} ({quota.text}). Ask for fewer"
            " tokens of answer (max_tokens), or send fewer."
        )
    if refusal.held:
        return f"Of the quota {quota.name} ({quota.text}), requests that have not ended hold what this request may use."
    if refusal.left and not refusal.unavailable:
        may, left = (
            shown_amount(quota.unit, amount)
            for amount in (_used(reserve)[quota.unit], refusal.left)
        )
        return (
            f"This request may use {may}, and the quota {quota.name} ({quota.text}) has {left} left. Ask for fewer"
            " tokens of answer (max_tokens), or send fewer."
        )
    return refusal_reason(refusal)
