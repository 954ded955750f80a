"""The record held against the policy that was in force (floor 5): what was served, and should not have been.

The policy decides in the helpers, and squid.conf is what makes their answers count; a line of the operator's, a Squid
of another release or a fault of ours could come between. So each request that was served is judged once more: by the
revision that its record names, and where that was outdated by then, by the one that had replaced it. What Squid denied
is no business of this module, whatever for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final, Generic, TypeVar
from urllib.parse import quote, unquote

import msgspec

from squidkeeper import metrics
from squidkeeper.engine import Decision, Judge, Query
from squidkeeper.engine.judge import Scope, asks_url
from squidkeeper.engine.query import CONNECT
from squidkeeper.errors import InvalidUrl
from squidkeeper.record.record import NONE, Record, parse_time, truncated_fields
from squidkeeper.record.requests import asked, token
from squidkeeper.record.urls import authority_of
from squidkeeper.url import is_unusual, parse_address, unrecorded_url

T = TypeVar("T")

# Squid keeps an answer for a second, and one that is being asked for longer serves who asks meanwhile.
_ANSWER_SECONDS: Final = 3
_KNOWN_BYTES: Final = 32 * 1024 * 1024  # some 20,000 places
_PLACE_BYTES, _CLIENT_BYTES = 1_500, 300  # of Python objects, beside the key and a reference to each entry
_KEY_CHARACTERS: Final = 1_000  # a longer one is judged each time
_OPENED: Final = 200
_ANY_TIME: Final = datetime.max.replace(tzinfo=UTC)


class DriftKind(StrEnum):
    """What is wrong with a request that was served."""

    ALLOWED = "allowed"  # the policy, or the record itself, denies it
    UNASKED = "unasked"  # no helper was asked
    CREDENTIAL = "credential"  # it had a credential put in that the policy does not give it


@dataclass(frozen=True, slots=True)
class Finding:
    """A request that should not have been served as it was. `rule` is what the policy says, `reason` why."""

    kind: DriftKind
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Who asks for which host how; `boundaries` are the times at which the answer can change.

    It holds no judge: what is remembered of a policy that was replaced must not keep all of it in memory.
    """

    query: Query
    scope: Scope | Decision
    boundaries: tuple[datetime, ...]
    settled: bool  # allowed for every URL, at any time

    @property
    def held_bytes(self) -> int:
        """Estimate the bytes that are held for it."""
        return _PLACE_BYTES + (0 if isinstance(self.scope, Decision) else self.scope.entries.held_bytes)


class Known(Generic[T]):
    """What is asked for again and again, within bounds: a client can make up as many hosts as it likes.

    Two generations stand in for the order of use, which is dearer to keep: what is asked for while the younger one
    fills up is kept, the rest goes.
    """

    def __init__(self, bytes_at_most: int) -> None:
        self._young: dict[tuple[str, ...], tuple[T, int]] = {}
        self._old: dict[tuple[str, ...], tuple[T, int]] = {}
        self._young_bytes = 0
        self._generation_bytes = bytes_at_most // 2

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: tuple[str, ...]) -> T | None:
        """Give what is known; None where nothing is."""
        known = self._young.get(key)
        if known is None:
            known = self._old.pop(key, None)
            if known is None:
                return None
            self.add(key, *known)
        return known[0]

    def add(self, key: tuple[str, ...], value: T, size: int) -> None:
        """Remember a value that takes so many bytes beside its key; not with too long a key."""
        characters = sum(map(len, key))
        if characters > _KEY_CHARACTERS:
            return
        if self._young_bytes + size + characters > self._generation_bytes:
            self._young, self._old, self._young_bytes = {}, self._young, 0
        self._young[key] = (value, size)
        self._young_bytes += size + characters


class DriftChecker:
    """Holds records against the policy.

    `judge_of` gives the judge of a revision, or None where it is not kept; `current` that of the policy in force, for
    the clients of records that name no revision; `replacing` that of the revision which was in force where a record
    names an outdated one. `unchecked` counts served requests that could not be checked, and `cut` those of which the
    record holds only the beginning of what decided.
    """

    def __init__(
        self,
        judge_of: Callable[[str], Judge | None],
        current: Callable[[], Judge | None] = lambda: None,
        replacing: Callable[[Record], Judge | None] = lambda _: None,
    ) -> None:
        self.unchecked = 0
        self.cut = 0
        self._judge_of = judge_of
        self._current = current
        self._replacing = replacing
        self._places: Known[_Place] = Known(_KNOWN_BYTES)
        self._clients: Known[tuple[str, ...]] = Known(_KNOWN_BYTES // 4)

    def check(self, record: Record) -> Finding | None:
        """Find what is wrong with a record; None where nothing is, or nothing can be said."""
        if not was_served(record):
            return None
        if record.verdict == "deny":
            return Finding(DriftKind.ALLOWED, record.rule, f"Denied by {record.rule} on record, and served.")
        if record.rule == NONE or record.revision == NONE:
            return Finding(DriftKind.UNASKED, metrics.NONE, "No helper was asked: does an http_access line allow it?")
        judge = self._judge_of(record.revision)
        if judge is None:
            self.unchecked += 1
            return None
        return self._checked(judge, record) or self._checked_by_newer(record)

    def decide(self, record: Record) -> Decision | None:
        """Judge a request by its revision, at its time; None where that, or its whole URL, is not kept."""
        judge = self._judge_of(record.revision)
        if judge is None or truncated_fields(record):
            return None
        try:
            return _decide(judge, self._place(judge, record), record, parse_time(record))
        except ValueError:  # of what is no time
            return None

    def verdict(self, record: Record) -> tuple[str, str] | None:
        """Give verdict and rule as a record has them, of a request that nobody has judged; None as `decide`."""
        decision = self.decide(record)
        return None if decision is None else (str(decision.action), quote(decision.rule, safe=""))

    def client_name(self, record: Record) -> str:
        """Name the policy's first client that a request belongs to; `none` where it belongs to none."""
        judge = (self._judge_of(record.revision) if record.revision != NONE else None) or self._current()
        if judge is None:
            return metrics.NONE
        return next(iter(self._clients_of(judge, record)), metrics.NONE)

    def _checked(self, judge: Judge, record: Record) -> Finding | None:
        place = self._place(judge, record)
        if place.settled and record.credential == NONE and not is_unusual(record.url):
            return None
        return self._judged(judge, place, record)

    def _checked_by_newer(self, record: Record) -> Finding | None:
        """Judge by the revision that was in force, where the one that decided had been replaced."""
        try:
            judge = self._replacing(record)
        except (ValueError, OverflowError):  # of what is no time, or no length of time
            self.unchecked += 1
            return None
        finding = None if judge is None else self._checked(judge, record)
        return finding and replace(finding, reason=f"Decided by {record.revision}, long replaced. {finding.reason}")

    def _place(self, judge: Judge, record: Record) -> _Place:
        clients = "\0".join(self._clients_of(judge, record))  # many addresses, and few clients of the policy
        scheme, slashes, _ = record.url.partition("://")
        origin = f"{scheme}://{authority_of(record.url)}/" if slashes else record.url
        key = (judge.policy.revision, clients, record.method, origin, record.sni, record.tunnel)
        known = self._places.get(key)
        if known is None:
            known = _place(judge, record, origin)
            self._places.add(key, known, known.held_bytes)
        return known

    def _clients_of(self, judge: Judge, record: Record) -> tuple[str, ...]:
        key = (judge.policy.revision, record.client, record.user)
        known = self._clients.get(key)
        if known is None:
            known = _clients_of(judge, record)
            self._clients.add(key, known, _CLIENT_BYTES)
        return known

    def _judged(self, judge: Judge, place: _Place, record: Record) -> Finding | None:
        """Judge by all that could have been true when a helper was asked; nothing is found where one of it allows."""
        try:
            moments = _moments(record) if place.boundaries else (_ANY_TIME,)
        except (ValueError, OverflowError):  # of what is no time, or no length of time
            self.unchecked += 1
            return None
        if truncated_fields(record) and _allows_host(judge, place, moments):
            self.cut += 1
            return None
        found = None
        for at in moments:
            finding = _finding(judge, place, record, at)
            if finding is None:
                return None
            found = found or finding
        return found


def was_served(record: Record) -> bool:
    """Tell whether Squid let a request through: to an origin, to what it has of one in its cache, or into a tunnel."""
    return _was_served(record.squid, record.method == CONNECT, record.status, record.error != NONE)


@lru_cache(maxsize=4096)
def _was_served(squid: str, is_connect: bool, status: int, is_error: bool) -> bool:
    tag, _, hierarchy = squid.partition("/")
    if tag.startswith("TCP_DENIED") and not tag.startswith("TCP_DENIED_REPLY"):
        return False
    if tag.startswith("NONE"):  # Squid's own answer; or the CONNECT of a tunnel that it looks into
        return is_connect and status == _OPENED and not is_error and "_ABORTED" not in tag
    is_own_page = is_error or status == 0
    return hierarchy != "HIER_NONE" or not is_own_page


def _place(judge: Judge, record: Record, origin: str) -> _Place:
    query = asked(msgspec.structs.replace(record, url=origin))
    scope = judge.scope(query)
    if isinstance(scope, Decision):
        return _Place(query, scope, (), settled=False)
    boundaries = scope.entries.lapses
    decision = judge.decide_host(scope, _ANY_TIME)
    settled = decision.allowed and not boundaries and not asks_url(decision, scope, "")
    return _Place(query, scope, boundaries, settled)


def _allows_host(judge: Judge, place: _Place, moments: tuple[datetime, ...]) -> bool:
    scope = place.scope
    return isinstance(scope, Scope) and any(judge.decide_host(scope, at).allowed for at in moments)


def _finding(judge: Judge, place: _Place, record: Record, at: datetime) -> Finding | None:
    decision = _decide(judge, place, record, at)
    if not decision.allowed:
        return Finding(DriftKind.ALLOWED, decision.rule, decision.reason or "")
    undue = set() if record.credential == NONE else set(unquote(record.credential).split(","))
    undue -= {one.name for one in decision.credentials}
    if undue:
        return Finding(DriftKind.CREDENTIAL, decision.rule, f"It had {', '.join(sorted(undue))} put in, not due to it.")
    return None


def _decide(judge: Judge, place: _Place, record: Record, at: datetime) -> Decision:
    scope, url = place.scope, unrecorded_url(record.url)
    if isinstance(scope, Decision):
        return scope
    decision = judge.decide_host(scope, at)
    if not decision.allowed or not (asks_url(decision, scope, url) or record.credential != NONE):
        return decision
    if scope.entries.rewrites or scope.entries.credentials or record.credential != NONE:
        return judge.decide_fetched(scope, url, token(record.fetched), at)
    return judge.decide_url(scope, url, at)


def _moments(record: Record) -> tuple[datetime, ...]:
    """Give the times at which a helper can have been asked: from before the start, as answers are kept, to the end."""
    end = parse_time(record)
    start = end - timedelta(milliseconds=record.duration_ms)
    return start, start - timedelta(seconds=_ANSWER_SECONDS), end


def _clients_of(judge: Judge, record: Record) -> tuple[str, ...]:
    try:
        address = parse_address(record.client)
    except InvalidUrl:
        address = None
    user = token(record.user)
    return tuple(one.name for one in judge.policy.clients if one.matches(address, user))
