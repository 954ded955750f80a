"""Drift: requests that were served although the policy in force denies them.

The policy decides in the helpers, and squid.conf makes their replies count. A line of
the operator's, another release of Squid or a defect of ours can come between. So each
request that was served is decided once more: by the revision that its record names, and
where that was outdated, by the one that had replaced it. What Squid denied is not
checked.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from cachetools import LRUCache, TTLCache

from squidkeeper.base import helper_metrics
from squidkeeper.base.errors import PolicyError
from squidkeeper.policy.engine import CompiledPolicy, Decision, Stage, asks_url, decide
from squidkeeper.policy.language.model import SEALED_TOKEN
from squidkeeper.policy.language.paths import Beginning
from squidkeeper.policy.policy_store.loading import load_stored_revision
from squidkeeper.policy.policy_store.revisions import StoredRevision, stored_revisions
from squidkeeper.policy.protocol.request import CONNECT
from squidkeeper.policy.url import is_unusual, unrecorded_url
from squidkeeper.record.log import host_judging
from squidkeeper.record.log.record import NONE, Record, parse_time, truncated_fields
from squidkeeper.record.log.recorded_sessions import (
    NO_SESSIONS,
    RecordedSessions,
    Unknown,
)
from squidkeeper.record.log.requests import token

# Squid keeps a reply for a second; who asks while Squid waits for a new one gets the
# old one.
_REPLY_SECONDS: Final = 3
_OPENED: Final = 200
_NO_TLS: Final = "ERR_SECURE_CONNECT_FAIL"
# every helper has loaded an edit by then, long lists too
OUTDATED_AFTER: Final = timedelta(seconds=60)
_POLICIES_AT_MOST: Final = (
    4  # a log names its revisions in turn; one of 10,000 rules takes 35 MB
)
_MISSING_AT_MOST: Final = 1000
_READ_AGAIN_SECONDS: Final = 2.0


class DriftKind(StrEnum):
    """What is wrong with a request that was served."""

    ALLOWED = "allowed"  # the policy denies it, or its verdict is deny
    UNASKED = "unasked"  # no helper was asked
    CREDENTIAL = (
        "credential"  # a credential was injected that the policy does not give it
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """A request that should not have been served as it was; `rule` and `reason` are the
    policy's.
    """

    kind: DriftKind
    rule: str
    reason: str


class Unjudged(StrEnum):
    """Why a request that was served could not be checked."""

    UNKNOWN = "unknown"  # its revision is not stored, or its time is no time
    CUT = "cut"  # the access log holds only the beginning of what decided
    SESSION = "session"  # its session is not in the store, or cannot be read


def _allowed(rule: str, reason: str) -> Finding:
    return Finding(DriftKind.ALLOWED, rule, reason)


_UNASKED: Final = Finding(
    DriftKind.UNASKED,
    helper_metrics.NONE,
    "No helper was asked: does an http_access line allow it?",
)


@dataclass(frozen=True, slots=True)
class HostQuestion:
    """What is asked about every record of one client, method, host and tunnel: by its
    policy, and the newer one.

    `answer` is the same for all of them, where their URLs do not matter. `otherwise` is
    the answer where nothing is found.
    """

    asked: tuple[tuple[CompiledPolicy, host_judging.RecordedHost], ...] = ()
    answer: Finding | Unjudged | None = None
    otherwise: Unjudged | None = None

    @property
    def same_for(self) -> host_judging.SameFor:
        """For which URLs the answer is the same."""
        if self.answer is not None:
            return host_judging.SameFor.EVERY_URL
        return (
            host_judging.SameFor.USUAL_URLS
            if self.silent
            else host_judging.SameFor.NO_OTHER
        )

    @property
    def silent(self) -> bool:
        """Whether no usual URL can be a finding, where no credential was injected."""
        answered = self.answer is not None or self.otherwise is not None
        return not answered and all(host.always_allowed for _, host in self.asked)

    @property
    def depends_on_time(self) -> bool:
        """Whether the time of a record matters."""
        return any(host.match.depends_on_time for _, host in self.asked)

    @property
    def beginnings(self) -> frozenset[Beginning] | None:
        """What decides about a usual URL whose path has one reading; None where more of
        the URL does.
        """
        return host_judging.beginnings_of(host for _, host in self.asked)

    def judge(self, record: Record) -> Finding | Unjudged | None:
        """Find what is wrong with one of these records."""
        if self.answer is not None:
            return self.answer
        (policy, host), *newer = self.asked
        found = _judge(policy, host, record)
        if found is not None or not newer:
            return found or self.otherwise
        found = _judge(*newer[0], record)
        if isinstance(found, Finding):
            return replace(
                found,
                reason=f"Decided by {record.revision}, long replaced. {found.reason}",
            )
        return found


class DriftChecker:
    """Checks records against the policy.

    `policy_of` gives the policy of a revision, or None where it is not stored;
    `current` the one in force, for the clients of records without a revision;
    `replacing` the one that was in force where a record names an outdated revision.
    `sessions` finds those of records. `unchecked` counts served requests that could not
    be checked, `of_unknown_sessions` those of them whose session is unknown, and `cut`
    those of which the record holds only the beginning of what decided.
    """

    def __init__(
        self,
        policy_of: Callable[[str], CompiledPolicy | None],
        current: Callable[[], CompiledPolicy | None] = lambda: None,
        replacing: Callable[[Record], CompiledPolicy | None] = lambda _: None,
        sessions: RecordedSessions = NO_SESSIONS,
    ) -> None:
        self.unchecked = 0
        self.of_unknown_sessions = 0
        self.cut = 0
        self._policy_of = policy_of
        self._current = current
        self._replacing = replacing
        self._sessions = sessions
        self._hosts = host_judging.RecordedHosts(sessions)

    def check(self, record: Record) -> Finding | None:
        """Find what is wrong with a record; None where nothing is, or it could not be
        checked.
        """
        if not was_served(record):
            return None
        found = self.question(record).judge(record)
        self.count(found)
        return found if isinstance(found, Finding) else None

    def count(self, found: Finding | Unjudged | None, records: int = 1) -> None:
        """Count records that could not be checked."""
        is_unknown = found in (Unjudged.UNKNOWN, Unjudged.SESSION)
        self.unchecked += records * is_unknown
        self.of_unknown_sessions += records * (found is Unjudged.SESSION)
        self.cut += records * (found is Unjudged.CUT)

    def question(self, record: Record) -> HostQuestion:
        """Return what to ask about a served record, and all others of its client,
        method, host and tunnel.
        """
        if record.verdict == "deny":
            return HostQuestion(
                answer=_allowed(
                    record.rule, f"Served, although {record.rule} denied it."
                )
            )
        if record.rule == NONE or record.revision == NONE:
            return HostQuestion(answer=_UNASKED)
        policy = self._policy_of(record.revision)
        if policy is None:
            return HostQuestion(answer=Unjudged.UNKNOWN)
        if self._sessions.of(record) is Unknown.SESSION:
            return HostQuestion(answer=Unjudged.SESSION)
        newer, otherwise = self._newer(record)
        policies = (policy, newer) if newer else (policy,)
        return HostQuestion(
            tuple((policy, self._hosts.of(policy, record)) for policy in policies),
            otherwise=otherwise,
        )

    def askers(self, record: Record) -> tuple[str, ...]:
        """Return what `question` depends on of client and user: few values for many of
        them.
        """
        policy = self._policy_of(record.revision) if record.revision != NONE else None
        if policy is None:
            return ()
        newer, _ = self._newer(record)
        return (
            host_judging.asker_of(policy, record),
            host_judging.asker_of(newer, record) if newer else "",
        )

    def client_name(self, record: Record) -> str:
        """Name the policy's first client that a request belongs to, else the role of
        its session, or `none`.
        """
        policy = (
            self._policy_of(record.revision) if record.revision != NONE else None
        ) or self._current()
        if policy is None:
            return helper_metrics.NONE
        session = self._sessions.known(record)
        names = host_judging.clients_of(policy, record, session)
        return next(iter(names), helper_metrics.NONE)

    def _newer(self, record: Record) -> tuple[CompiledPolicy | None, Unjudged | None]:
        try:
            return self._replacing(record), None
        except (
            ValueError,
            OverflowError,
        ):  # the time is no time, or the duration too long
            return None, Unjudged.UNKNOWN


def was_served(record: Record) -> bool:
    """Whether Squid let a request through: to an origin, to its own cache, or into a
    tunnel.
    """
    tag, _, hierarchy = record.squid.partition("/")
    if tag.startswith("TCP_DENIED") and not tag.startswith("TCP_DENIED_REPLY"):
        return False
    is_error = record.error != NONE
    if tag.startswith("NONE"):
        # Squid's own answer; or the CONNECT of a tunnel: that of a denied host leads
        # nowhere
        is_opened = (
            record.method == CONNECT
            and record.status == _OPENED
            and record.verdict != "deny"
        )
        return is_opened and not is_error and "_ABORTED" not in tag
    if (
        tag.startswith("TCP_DENIED_REPLY") and record.error == _NO_TLS
    ):  # our page: nothing was sent to the origin
        return False
    is_own_page = is_error or record.status == 0
    return hierarchy != "HIER_NONE" or not is_own_page


def _judge(
    policy: CompiledPolicy, host: host_judging.RecordedHost, record: Record
) -> Finding | Unjudged | None:
    """Judge at all times at which a helper can have been asked; one that allows the
    request is enough.
    """
    if host.always_allowed and record.credential == NONE and not is_unusual(record.url):
        return None
    try:
        moments = (
            _moments(record) if host.match.depends_on_time else (host_judging.ANY_TIME,)
        )
    except (ValueError, OverflowError):  # as above
        return Unjudged.UNKNOWN
    if truncated_fields(record) and any(
        decide(policy, host.match, at, Stage.HOST).allowed for at in moments
    ):
        return Unjudged.CUT
    found = None
    for at in moments:
        finding = _finding(_decide(policy, host, record, at), record, policy)
        if finding is None:
            return None
        found = found or finding
    return found


def _decide(
    policy: CompiledPolicy,
    host: host_judging.RecordedHost,
    record: Record,
    at: datetime,
) -> Decision:
    match, url, injected = (
        host.match,
        unrecorded_url(record.url),
        record.credential != NONE,
    )
    decision = host.at(policy, at)
    if not decision.allowed or not (asks_url(decision, match, url) or injected):
        return decision
    if match.candidates.rewrites or match.candidates.credentials or injected:
        return decide(policy, match, at, Stage.FETCH, url, token(record.fetched))
    return decide(policy, match, at, Stage.URL, url)


def _finding(
    decision: Decision, record: Record, policy: CompiledPolicy
) -> Finding | None:
    if not decision.allowed:
        return _allowed(decision.rule, decision.reason or "")
    due = {held.name for held in decision.credentials} | (
        {SEALED_TOKEN} if policy.source.sealing_keys else set()
    )
    undue = (
        set()
        if record.credential == NONE
        else set(unquote(record.credential).split(","))
    )
    undue -= due
    if undue:
        names = ", ".join(sorted(undue))
        return Finding(
            DriftKind.CREDENTIAL,
            decision.rule,
            f"It got {names}, which the policy does not give it.",
        )
    return None


def _moments(record: Record) -> tuple[datetime, ...]:
    """Return when a helper can have been asked: from before the start, as replies are
    kept, to the end.
    """
    end = parse_time(record)
    start = end - timedelta(milliseconds=record.duration_ms)
    return start, start - timedelta(seconds=_REPLY_SECONDS), end


class Effective(NamedTuple):
    """A revision, and the time from which no request is decided by an older one any
    more.
    """

    revision: str
    since: datetime


class PastPolicies:
    """The policies of the revisions that are stored in a folder, and the one in force;
    None for others.

    A revision that is missing is read again after a while: helpers store a revision
    only after it comes in force.
    """

    def __init__(
        self, folder: Path, current: Callable[[], CompiledPolicy | None] = lambda: None
    ) -> None:
        self._folder = folder
        self._current = current
        self._known: LRUCache[str, CompiledPolicy] = LRUCache(_POLICIES_AT_MOST)
        self._missing: TTLCache[str, None] = TTLCache(
            _MISSING_AT_MOST, _READ_AGAIN_SECONDS, time.monotonic
        )
        self._effective: tuple[Effective, ...] = ()
        self._places: dict[str, int] = {}  # of each revision in `_effective`
        self._read_at = 0.0

    def __call__(self, revision: str) -> CompiledPolicy | None:
        """Return the policy of a revision."""
        current = self._current()
        if current is not None and current.revision == revision:
            return current
        policy = self._known.get(revision)
        if policy is None and revision not in self._missing:
            policy = self._load(revision)
        return policy

    def effective(self) -> tuple[Effective, ...]:
        """Return the stored revisions, the oldest first, each with the time from which
        it replaces those before it.
        """
        if time.monotonic() >= self._read_at:
            self._read_folder()
        return self._effective

    def replacing(self, record: Record) -> CompiledPolicy | None:
        """Return the policy that was in force where a record names an outdated
        revision; else None.
        """
        effective = self.effective()
        place = self._places.get(record.revision, len(effective))
        if place + 1 >= len(effective):
            return None
        start = parse_time(record) - timedelta(milliseconds=record.duration_ms)
        newest = bisect_right(effective, start, key=lambda revision: revision.since) - 1
        return self(effective[newest].revision) if newest > place else None

    def _read_folder(self) -> None:
        self._read_at = time.monotonic() + _READ_AGAIN_SECONDS
        try:
            stored = stored_revisions(self._folder)
        except OSError:
            return  # what was read before stays
        self._effective = tuple(
            Effective(kept.revision, _effective_from(kept)) for kept in reversed(stored)
        )
        self._places = {
            effective.revision: place for place, effective in enumerate(self._effective)
        }

    def _load(self, revision: str) -> CompiledPolicy | None:
        try:
            policy = load_stored_revision(self._folder, revision)
        except (OSError, PolicyError):
            self._missing[revision] = None
            return None
        self._known[revision] = policy
        return policy


def _effective_from(stored: StoredRevision) -> datetime:
    return datetime.fromtimestamp(stored.loaded, UTC) + OUTDATED_AFTER
