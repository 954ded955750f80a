"""What a policy holds for a host of the access log, whatever the URL: what judges
records asks this first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final

import msgspec
from cachetools import LRUCache

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.engine import (
    CompiledPolicy,
    Decision,
    HostMatch,
    Stage,
    asks_url,
    decide,
)
from squidkeeper.policy.engine.fields import URL_FIELDS
from squidkeeper.policy.language.paths import Beginning
from squidkeeper.policy.language.roles import Session
from squidkeeper.policy.url import Host, address_host, parse_address
from squidkeeper.record.log.record import Record, authority_of
from squidkeeper.record.log.recorded_sessions import NO_SESSIONS, RecordedSessions
from squidkeeper.record.log.requests import asks_splice, request_of, token

ANY_TIME: Final = datetime.max.replace(tzinfo=UTC)
_CACHE_BYTES: Final = 32 * 1024 * 1024  # some 20,000 hosts
_HOST_BYTES: Final = (
    1_700  # of Python objects, beside the key and a reference to each entry
)
_LONGEST_KEY: Final = 1_000  # characters
_BESIDE_THE_PATH: Final = URL_FIELDS.keys() - {"paths"}
_Key = tuple[str, ...]


class SameFor(Enum):
    """For which URLs of a client, method and host the answer is the same."""

    EVERY_URL = auto()
    USUAL_URLS = auto()
    NO_OTHER = auto()


@dataclass(frozen=True, slots=True)
class RecordedHost:
    """What a policy holds for a client, method and host of the access log; never the
    policy, which may be replaced.

    `decision` is without the URL, and meaningless where the time matters. `settled`
    tells that it is the decision of every usual URL, at any time.
    """

    match: HostMatch
    decision: Decision
    settled: bool
    held_bytes: int

    @property
    def is_recorded_alike(self) -> bool:
        """Whether the record of every usual URL is the same: what is observed does not
        depend on it either.
        """
        return self.settled and not self.decision.observes_url

    @property
    def always_allowed(self) -> bool:
        """Whether every usual URL is allowed, at any time."""
        return self.settled and self.decision.allowed

    def at(self, policy: CompiledPolicy, at: datetime) -> Decision:
        """Return the decision without the URL at a time."""
        return (
            decide(policy, self.match, at, Stage.HOST)
            if self.match.depends_on_time
            else self.decision
        )


class RecordedHosts:
    """Looks up what a policy holds for the host of a record, and keeps it.

    A record is judged with its session; one whose session is unknown, without.
    """

    def __init__(self, sessions: RecordedSessions = NO_SESSIONS) -> None:
        self._sessions = sessions
        self._hosts: LRUCache[_Key, RecordedHost] = LRUCache(
            _CACHE_BYTES, getsizeof=lambda host: host.held_bytes
        )

    def of(self, policy: CompiledPolicy, record: Record) -> RecordedHost:
        """Return what a policy holds for the client, method, host and tunnel of a
        record.
        """
        scheme, slashes, _ = record.url.partition("://")
        origin = f"{scheme}://{authority_of(record.url)}/" if slashes else record.url
        splice = str(asks_splice(record))
        asker = asker_of(policy, record)
        key = (
            policy.revision,
            asker,
            record.method,
            origin,
            record.sni,
            record.tunnel,
            splice,
            record.hidden,
        )
        known = self._hosts.get(key)
        if known is None:
            length = sum(map(len, key))
            session = self._sessions.known(record)
            known = _recorded_host(policy, record, session, origin, length)
            if length <= _LONGEST_KEY:
                self._hosts[key] = known
        return known


def beginnings_of(hosts: Iterable[RecordedHost]) -> frozenset[Beginning] | None:
    """Return what decides about a usual URL whose path has one reading; None where more
    of the URL does.
    """
    found: set[Beginning] = set()
    for host in hosts:
        candidates = host.match.candidates
        rules = (*(candidates.observing or candidates.rules), *candidates.grants)
        matches = [rule.match for rule in rules]
        by_more = any(
            getattr(match, field) is not None
            for match in matches
            for field in _BESIDE_THE_PATH
        )
        by_more = by_more or any(rule.body is not None for rule in rules)
        if candidates.rewrites or candidates.credentials or by_more:
            return None
        for begins in (
            path.beginning for match in matches for path in match.paths or ()
        ):
            if begins is None:
                return None
            found.add(begins)
    return frozenset(found)


def clients_of(
    policy: CompiledPolicy, record: Record, session: Session | None = None
) -> tuple[str, ...]:
    """Name the policy's clients that a request belongs to, and the role of its
    session.
    """
    names = policy.clients_of(_address_of(record), token(record.user))
    return names if session is None else (*names, session.role)


def asker_of(policy: CompiledPolicy, record: Record) -> str:
    """Write what decides of client and user: many addresses are of few clients of the
    policy.
    """
    address, user = _address_of(record), token(record.user)
    login = record.user if policy.names_login(user) else ""
    unknown = "" if address else record.client  # the reason of its denial names it
    clients = policy.clients_of(address, user)
    return "\0".join((login, unknown, record.session, *clients))


def _recorded_host(
    policy: CompiledPolicy,
    record: Record,
    session: Session | None,
    origin: str,
    key_length: int,
) -> RecordedHost:
    asked = msgspec.structs.replace(record, url=origin)
    match = policy.match(request_of(asked, session))
    decision = decide(policy, match, ANY_TIME, Stage.HOST)
    settled = not match.depends_on_time and not asks_url(decision, match, "")
    return RecordedHost(
        match, decision, settled, _HOST_BYTES + key_length + match.candidates.held_bytes
    )


def _address_of(record: Record) -> Host | None:
    try:
        return address_host(parse_address(record.client))
    except InvalidUrl:
        return None
