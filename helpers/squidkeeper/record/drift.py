"""Drift (floor 5): requests that were served although the policy in force denies them.

The policy decides in the helpers, and squid.conf makes their replies count. A line of the operator's, another release
of Squid or a defect of ours can come between. So each request that was served is decided once more: by the revision
that its record names, and where that was outdated, by the one that had replaced it. What Squid denied is not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote

import msgspec
from cachetools import LRUCache

from squidkeeper import metrics
from squidkeeper.engine import CompiledPolicy, Decision, HostMatch, Stage, asks_url, decide
from squidkeeper.errors import InvalidUrl
from squidkeeper.policy.model import SEALED_TOKEN
from squidkeeper.protocol.request import CONNECT
from squidkeeper.record.record import NONE, Record, parse_time, truncated_fields
from squidkeeper.record.requests import asks_splice, request_of, token
from squidkeeper.record.urls import authority_of
from squidkeeper.url import address_host, is_unusual, parse_address, unrecorded_url

# Squid keeps a reply for a second; who asks while Squid waits for a new one gets the old one.
_REPLY_SECONDS: Final = 3
_CACHE_BYTES: Final = 32 * 1024 * 1024  # some 20,000 hosts
_HOST_BYTES: Final = 1_700  # of Python objects, beside the key and a reference to each entry
_LONGEST_KEY: Final = 1_000  # characters
_OPENED: Final = 200
_NO_TLS: Final = "ERR_SECURE_CONNECT_FAIL"
_ANY_TIME: Final = datetime.max.replace(tzinfo=UTC)
_Key = tuple[str, ...]


class DriftKind(StrEnum):
    """What is wrong with a request that was served."""

    ALLOWED = "allowed"  # the policy denies it, or its verdict is deny
    UNASKED = "unasked"  # no helper was asked
    CREDENTIAL = "credential"  # a credential was injected that the policy does not give it


@dataclass(frozen=True, slots=True)
class Finding:
    """A request that should not have been served as it was; `rule` and `reason` are the policy's."""

    kind: DriftKind
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class _RecordedHost:
    """What a policy holds for a client, method and host of the access log; never the policy, which may be replaced."""

    match: HostMatch
    always_allowed: bool  # for every URL, at any time
    held_bytes: int


class DriftChecker:
    """Checks records against the policy.

    `policy_of` gives the policy of a revision, or None where it is not stored; `current` the one in force, for the
    clients of records without a revision; `replacing` the one that was in force where a record names an outdated
    revision. `unchecked` counts served requests that could not be checked, and `cut` those of which the record holds
    only the beginning of what decided.
    """

    def __init__(
        self,
        policy_of: Callable[[str], CompiledPolicy | None],
        current: Callable[[], CompiledPolicy | None] = lambda: None,
        replacing: Callable[[Record], CompiledPolicy | None] = lambda _: None,
    ) -> None:
        self.unchecked = 0
        self.cut = 0
        self._policy_of = policy_of
        self._current = current
        self._replacing = replacing
        self._hosts: LRUCache[_Key, _RecordedHost] = LRUCache(_CACHE_BYTES, getsizeof=lambda host: host.held_bytes)

    def check(self, record: Record) -> Finding | None:
        """Find what is wrong with a record; None where nothing is, or it could not be checked."""
        if not was_served(record):
            return None
        if record.verdict == "deny":
            return Finding(DriftKind.ALLOWED, record.rule, f"Served, although {record.rule} denied it.")
        if record.rule == NONE or record.revision == NONE:
            return Finding(DriftKind.UNASKED, metrics.NONE, "No helper was asked: does an http_access line allow it?")
        policy = self._policy_of(record.revision)
        if policy is None:
            self.unchecked += 1
            return None
        return self._check_by(policy, record) or self._check_by_newer(record)

    def decide(self, record: Record) -> Decision | None:
        """Decide a request by its revision, at its time; None where that, or its whole URL, is not stored."""
        policy = self._policy_of(record.revision)
        if policy is None or truncated_fields(record):
            return None
        try:
            return _decide(policy, self._host(policy, record), record, parse_time(record))
        except ValueError:  # the time is no time
            return None

    def verdict(self, record: Record) -> tuple[str, str] | None:
        """Give verdict and rule, as a record has them, of a request that no helper has decided; None as `decide`."""
        decision = self.decide(record)
        return None if decision is None else (str(decision.action), quote(decision.rule, safe=""))

    def client_name(self, record: Record) -> str:
        """Name the policy's first client that a request belongs to, or `none`."""
        policy = (self._policy_of(record.revision) if record.revision != NONE else None) or self._current()
        return next(iter(_clients_of(policy, record)), metrics.NONE) if policy else metrics.NONE

    def _check_by(self, policy: CompiledPolicy, record: Record) -> Finding | None:
        """Check against all times at which a helper can have been asked; one that allows the request is enough."""
        host = self._host(policy, record)
        if host.always_allowed and record.credential == NONE and not is_unusual(record.url):
            return None
        try:
            moments = _moments(record) if host.match.depends_on_time else (_ANY_TIME,)
        except (ValueError, OverflowError):  # the time is no time, or the duration too long
            self.unchecked += 1
            return None
        if truncated_fields(record) and any(decide(policy, host.match, at, Stage.HOST).allowed for at in moments):
            self.cut += 1
            return None
        found = None
        for at in moments:
            finding = _finding(_decide(policy, host, record, at), record, policy)
            if finding is None:
                return None
            found = found or finding
        return found

    def _check_by_newer(self, record: Record) -> Finding | None:
        """Check by the revision that was in force, where the one that decided had been replaced."""
        try:
            policy = self._replacing(record)
        except (ValueError, OverflowError):  # as above
            self.unchecked += 1
            return None
        finding = None if policy is None else self._check_by(policy, record)
        return finding and replace(finding, reason=f"Decided by {record.revision}, long replaced. {finding.reason}")

    def _host(self, policy: CompiledPolicy, record: Record) -> _RecordedHost:
        clients = "\0".join(_clients_of(policy, record))  # many addresses, and few clients of the policy
        scheme, slashes, _ = record.url.partition("://")
        origin = f"{scheme}://{authority_of(record.url)}/" if slashes else record.url
        splice = str(asks_splice(record))
        key = (policy.revision, clients, record.method, origin, record.sni, record.tunnel, splice)
        known = self._hosts.get(key)
        if known is None:
            length = sum(map(len, key))
            known = _recorded_host(policy, record, origin, length)
            if length <= _LONGEST_KEY:
                self._hosts[key] = known
        return known


def was_served(record: Record) -> bool:
    """Tell whether Squid let a request through: to an origin, to its own cache, or into a tunnel."""
    tag, _, hierarchy = record.squid.partition("/")
    if tag.startswith("TCP_DENIED") and not tag.startswith("TCP_DENIED_REPLY"):
        return False
    is_error = record.error != NONE
    if tag.startswith("NONE"):  # Squid's own answer; or the CONNECT of a tunnel that it looks into
        return record.method == CONNECT and record.status == _OPENED and not is_error and "_ABORTED" not in tag
    if tag.startswith("TCP_DENIED_REPLY") and record.error == _NO_TLS:  # our page: nothing was sent to the origin
        return False
    is_own_page = is_error or record.status == 0
    return hierarchy != "HIER_NONE" or not is_own_page


def _recorded_host(policy: CompiledPolicy, record: Record, origin: str, key_length: int) -> _RecordedHost:
    match = policy.match(request_of(msgspec.structs.replace(record, url=origin)))
    decision = decide(policy, match, _ANY_TIME, Stage.HOST)
    always_allowed = decision.allowed and not match.depends_on_time and not asks_url(decision, match, "")
    return _RecordedHost(match, always_allowed, _HOST_BYTES + key_length + match.candidates.held_bytes)


def _decide(policy: CompiledPolicy, host: _RecordedHost, record: Record, at: datetime) -> Decision:
    """Decide as the helpers that Squid asks one after the other."""
    match, url, injected = host.match, unrecorded_url(record.url), record.credential != NONE
    decision = decide(policy, match, at, Stage.HOST)
    if not decision.allowed or not (asks_url(decision, match, url) or injected):
        return decision
    if match.candidates.rewrites or match.candidates.credentials or injected:
        return decide(policy, match, at, Stage.FETCH, url, token(record.fetched))
    return decide(policy, match, at, Stage.URL, url)


def _finding(decision: Decision, record: Record, policy: CompiledPolicy) -> Finding | None:
    if not decision.allowed:
        return Finding(DriftKind.ALLOWED, decision.rule, decision.reason or "")
    due = {one.name for one in decision.credentials} | ({SEALED_TOKEN} if policy.source.sealing_keys else set())
    undue = set() if record.credential == NONE else set(unquote(record.credential).split(","))
    undue -= due
    if undue:
        names = ", ".join(sorted(undue))
        return Finding(DriftKind.CREDENTIAL, decision.rule, f"It got {names}, which the policy does not give it.")
    return None


def _moments(record: Record) -> tuple[datetime, ...]:
    """Give the times at which a helper can have been asked: from before the start, as replies are kept, to the end."""
    end = parse_time(record)
    start = end - timedelta(milliseconds=record.duration_ms)
    return start, start - timedelta(seconds=_REPLY_SECONDS), end


def _clients_of(policy: CompiledPolicy, record: Record) -> tuple[str, ...]:
    try:
        client = address_host(parse_address(record.client))
    except InvalidUrl:
        client = None
    return policy.clients_of(client, token(record.user))
