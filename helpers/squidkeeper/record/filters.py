"""Which records are asked for (floor 5): one predicate for each option of `squidkeeper log`; all must hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from squidkeeper.errors import InvalidUrl, PatternError
from squidkeeper.policy.hosts import Network, parse_host_pattern, parse_network
from squidkeeper.policy.model import Client
from squidkeeper.record.record import Record, text, time_of
from squidkeeper.record.urls import host_of
from squidkeeper.url import Address, parse_address

Predicate = Callable[[Record], bool]

_CACHED: Final = 65_536
_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_STATUS = re.compile(r"([0-9]{3})|([1-5])xx")


def parse_moment(given: str, now: datetime) -> datetime:
    """Parse a span back from now (`15m`, `2h`, `3d`) or an ISO time, in UTC unless it says otherwise; or ValueError."""
    span = _SPAN.fullmatch(given)
    try:
        if span:
            return now - timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
        moment = datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{given!r} is no time, expected 15m, 2h, 3d or an ISO time such as {time_of(now)}") from error


def since(moment: datetime) -> Predicate:
    """Hold for requests that ended at this time or later."""
    start = time_of(moment)
    return lambda record: record.time >= start


def until(moment: datetime) -> Predicate:
    """Hold for requests that ended before this time."""
    end = time_of(moment)
    return lambda record: record.time < end


def of_client(given: Iterable[str], clients: Iterable[Client] = ()) -> Predicate:
    """Hold for one of these: an address, a network, the name of one of the policy's clients, or a proxy user."""
    holds = [_of_client(one, [client for client in clients if client.name == one]) for one in given]
    known = lru_cache(_CACHED)(lambda address, user: any(one(address, user) for one in holds))
    return lambda record: known(record.client, record.user)


def of_host(given: Iterable[str]) -> Predicate:
    """Hold for hosts that one of these patterns matches, as in a policy; `PatternError` for one that is none."""
    patterns = [parse_host_pattern(one) for one in given]
    known = lru_cache(_CACHED)(lambda host: any(pattern.matches(host) for pattern in patterns))
    return lambda record: known(host_of(record.url))


def of_rule(given: Iterable[str]) -> Predicate:
    """Hold for requests that one of these rules decided."""
    rules = frozenset(given)
    return lambda record: record.rule in rules


def of_verdict(verdict: str) -> Predicate:
    """Hold for `allow`, `deny`, or `-`: nobody was asked."""
    return lambda record: record.verdict == verdict


def of_status(given: Iterable[str]) -> Predicate:
    """Hold for one of these statuses (`403`) or classes (`4xx`); ValueError for one that is neither."""
    statuses = frozenset(status for one in given for status in _statuses(one))
    return lambda record: record.status in statuses


def all_of(predicates: Iterable[Predicate]) -> Predicate:
    """Hold where all of them do."""
    every = tuple(predicates)
    return every[0] if len(every) == 1 else lambda record: all(holds(record) for holds in every)


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
            text(user) == given or any(client.matches(_address(address), text(user)) for client in named)
        )
    return lambda address, _: (found := _address(address)) is not None and found in network


def _address(logged: str) -> Address | None:
    try:
        return parse_address(logged)
    except InvalidUrl:
        return None


def _statuses(given: str) -> Iterable[int]:
    match = _STATUS.fullmatch(given)
    if match is None:
        raise ValueError(f"{given!r} is no status, expected one such as 403, or a class such as 4xx")
    return [int(match[1])] if match[1] else range(int(match[2]) * 100, int(match[2]) * 100 + 100)
