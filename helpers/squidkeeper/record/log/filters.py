"""Filters of records: one for each option of `squidkeeper log`; all must hold.

A filter is written once, for one record as `--follow` reads it and for the table, which
asks `MatchFilter` about each distinct combination of its fields instead of each record.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.policy.language.hosts import Network, parse_host_pattern, parse_network
from squidkeeper.policy.language.model import Client
from squidkeeper.policy.url import Address, Host, address_host, parse_address
from squidkeeper.record.log.record import (
    CLIENT_ERRORS,
    NONE,
    TICKET_ANSWERED,
    Record,
    decode_field,
    format_time,
    host_of,
    parse_time,
)

SERVER_ERROR: Final = 500
# no valid HTTP, no login, a deny in local.conf
REFUSED_STATUSES: Final = frozenset({*range(400, 500), 501, 505})
_CACHED: Final = 65_536
_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# 000: Squid had no answer to log
_STATUS = re.compile(r"(000|[1-9][0-9]{2})|([1-5])xx")


def parse_time_option(given: str, now: datetime) -> datetime:
    """Parse a time before now (`15m`, `2h`, `3d`) or an ISO time, UTC by default; raise
    ValueError.
    """
    back = _DURATION.fullmatch(given)
    try:
        if back:
            return now - timedelta(seconds=int(back[1]) * _SECONDS[back[2]])
        moment = datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{given!r} is not a time, expected 15m, 2h, 3d or one like {format_time(now)}"
        ) from error


@dataclass(frozen=True, slots=True)
class PeriodFilter:
    """Holds for requests that ended at `since` or later, and before `until`; both in
    whole milliseconds.
    """

    since: datetime | None = None
    until: datetime | None = None

    def holds(self, record: Record) -> bool:
        """Whether a record is of this period."""
        at = parse_time(record)
        return (self.since is None or at >= self.since) and (
            self.until is None or at < self.until
        )


@dataclass(frozen=True, slots=True)
class ValueFilter:
    """Holds where a field has one of these values; `-` is a value like others."""

    field: str
    values: frozenset[str] | frozenset[int]

    def holds(self, record: Record) -> bool:
        """Whether the field has one of these values."""
        return getattr(record, self.field) in self.values


@dataclass(frozen=True, slots=True)
class MatchFilter:
    """Holds where `matches` does for the values of these fields, which many records
    share; `host` is the URL's.
    """

    fields: tuple[str, ...]
    matches: Callable[..., bool]

    def holds(self, record: Record) -> bool:
        """Whether the values of the fields match."""
        return self.matches(*(_value(record, name) for name in self.fields))


Selecting = ValueFilter | MatchFilter
Filter = PeriodFilter | Selecting


def of_period(since: datetime | None, until: datetime | None) -> PeriodFilter:
    """Hold for requests that ended at `since` or later, and before `until`."""
    return PeriodFilter(
        since and _whole_milliseconds(since), until and _whole_milliseconds(until)
    )


def of_client(given: Iterable[str], clients: Iterable[Client] = ()) -> MatchFilter:
    """Hold for one of these: an address, a network, a client of the policy, or a proxy
    user.
    """
    predicates = [
        _of_client(text, [client for client in clients if client.name == text])
        for text in given
    ]
    matches = lru_cache(_CACHED)(
        lambda address, user: any(predicate(address, user) for predicate in predicates)
    )
    return MatchFilter(("client", "user"), matches)


def of_host(given: Iterable[str]) -> MatchFilter:
    """Hold for hosts that one of these patterns of a policy matches; raise
    `PatternError`.
    """
    patterns = [parse_host_pattern(text) for text in given]
    matches = lru_cache(_CACHED)(
        lambda host: any(pattern.matches(_host(host)) for pattern in patterns)
    )
    return MatchFilter(("host",), matches)


def of_rule(given: Iterable[str]) -> ValueFilter:
    """Hold for requests that one of these rules decided."""
    return ValueFilter("rule", frozenset(given))


def of_verdict(verdict: str) -> ValueFilter:
    """Hold for `allow`, `deny`, or `-`: no helper decided."""
    return ValueFilter("verdict", frozenset((verdict,)))


def of_observed(given: Iterable[str]) -> MatchFilter:
    """Hold for what was observed, as it is recorded (`deny:RULE`), or for a verdict
    alone; raise ValueError.
    """
    wanted = frozenset(map(_observed, given))
    return MatchFilter(
        ("observed",),
        lambda value: not wanted.isdisjoint((unquote(value), value.partition(":")[0])),
    )


def _observed(given: str) -> str:
    verdict, colon, rule = given.partition(":")
    if verdict not in ("allow", "deny") or (colon and not rule):
        raise ValueError(
            f"{given!r} is not observed, expected allow, deny, allow:RULE or deny:RULE"
        )
    return given


def of_status(given: Iterable[str]) -> ValueFilter:
    """Hold for one of these statuses (`403`) or classes (`4xx`); raise ValueError."""
    return ValueFilter(
        "status", frozenset(status for text in given for status in _statuses(text))
    )


def of_request_id(given: Iterable[str]) -> ValueFilter:
    """Hold for the requests with one of these IDs, which pages show."""
    return ValueFilter("request_id", frozenset(given))


def of_session(
    given: Iterable[str], name_of: Callable[[str], str | None]
) -> MatchFilter:
    """Hold for the requests of one of these sessions: by number, or by name.

    `name_of` tells the name of a number; None where the session is not known.
    """
    wanted = frozenset(given)
    return MatchFilter(
        ("session",),
        lambda number: (
            number != NONE and not wanted.isdisjoint((number, name_of(number)))
        ),
    )


def of_gateway(given: Iterable[str]) -> ValueFilter:
    """Hold for the requests that one of these gateways served."""
    return ValueFilter("gateway", frozenset(given))


def failed() -> MatchFilter:
    """Hold for requests that failed: see `has_failed`."""
    return MatchFilter(("method", "verdict", "status", "error", "upstream"), has_failed)


def has_failed(
    method: str, verdict: str, status: int, error: str, upstream: str
) -> bool:
    """Whether a request was not denied and ended in 5xx or an error of Squid that its
    client did not cause.

    A connection on which no request came is none, and what Squid refuses before a rule
    is asked is the client's fault.
    """
    if (
        verdict == "deny"
        or error in CLIENT_ERRORS
        or is_refused(verdict, status, error, upstream)
    ):
        return False
    came = method != NONE or verdict != NONE
    return came and (status >= SERVER_ERROR or error not in (NONE, TICKET_ANSWERED))


def is_refused(verdict: str, status: int, error: str, upstream: str) -> bool:
    """Whether Squid refused a request before a rule was asked."""
    return (
        verdict == NONE
        and upstream == NONE
        and error != NONE
        and status in REFUSED_STATUSES
    )


def network_of(given: str) -> Network | None:
    """Parse an address or a network; None for a name."""
    try:
        return parse_network(given)
    except PatternError:
        return None


def _of_client(given: str, named: Sequence[Client]) -> Callable[[str, str], bool]:
    network = network_of(given)
    if network is None:
        return lambda address, user: (
            (name := decode_field(user)) == given
            or any(client.matches(_address(address), name) for client in named)
        )
    return lambda address, _: (
        (found := _address(address)) is not None and found in network
    )


def _address(logged: str) -> Address | None:
    try:
        return parse_address(logged)
    except InvalidUrl:
        return None


def _statuses(given: str) -> Iterable[int]:
    match = _STATUS.fullmatch(given)
    if match is None:
        raise ValueError(
            f"{given!r} is not a status, expected one such as 403, or a class such as 4xx"
        )
    return (
        [int(match[1])]
        if match[1]
        else range(int(match[2]) * 100, int(match[2]) * 100 + 100)
    )


def _value(record: Record, name: str) -> object:
    return host_of(record.url).text if name == "host" else getattr(record, name)


def _host(text: str) -> Host:
    address = _address(text)
    return Host(text) if address is None else address_host(address)


def _whole_milliseconds(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
