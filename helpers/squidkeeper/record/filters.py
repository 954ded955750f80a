"""Filters of records (floor 5): one predicate for each option of `squidkeeper log`; all must hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from squidkeeper.errors import InvalidUrl, PatternError
from squidkeeper.policy.hosts import Network, parse_host_pattern, parse_network
from squidkeeper.policy.model import Client
from squidkeeper.record.record import Record, decode_field, format_time
from squidkeeper.record.urls import host_of
from squidkeeper.url import Address, parse_address

Predicate = Callable[[Record], bool]

_CACHED: Final = 65_536
_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_STATUS = re.compile(r"([0-9]{3})|([1-5])xx")


def parse_time_option(given: str, now: datetime) -> datetime:
    """Parse a time before now (`15m`, `2h`, `3d`) or an ISO time, UTC by default; raise ValueError."""
    back = _DURATION.fullmatch(given)
    try:
        if back:
            return now - timedelta(seconds=int(back[1]) * _SECONDS[back[2]])
        moment = datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{given!r} is not a time, expected 15m, 2h, 3d or one like {format_time(now)}") from error


def since(moment: datetime) -> Predicate:
    """Hold for requests that ended at this time or later."""
    start = format_time(moment)
    return lambda record: record.time >= start


def until(moment: datetime) -> Predicate:
    """Hold for requests that ended before this time."""
    end = format_time(moment)
    return lambda record: record.time < end


def of_client(given: Iterable[str], clients: Iterable[Client] = ()) -> Predicate:
    """Hold for one of these: an address, a network, a client of the policy, or a proxy user."""
    predicates = [_of_client(one, [client for client in clients if client.name == one]) for one in given]
    matches = lru_cache(_CACHED)(lambda address, user: any(one(address, user) for one in predicates))
    return lambda record: matches(record.client, record.user)


def of_host(given: Iterable[str]) -> Predicate:
    """Hold for hosts that one of these patterns of a policy matches; raise `PatternError`."""
    patterns = [parse_host_pattern(one) for one in given]
    matches = lru_cache(_CACHED)(lambda host: any(pattern.matches(host) for pattern in patterns))
    return lambda record: matches(host_of(record.url))


def of_rule(given: Iterable[str]) -> Predicate:
    """Hold for requests that one of these rules decided."""
    rules = frozenset(given)
    return lambda record: record.rule in rules


def of_verdict(verdict: str) -> Predicate:
    """Hold for `allow`, `deny`, or `-`: no helper decided."""
    return lambda record: record.verdict == verdict


def of_status(given: Iterable[str]) -> Predicate:
    """Hold for one of these statuses (`403`) or classes (`4xx`); raise ValueError."""
    statuses = frozenset(status for one in given for status in _statuses(one))
    return lambda record: record.status in statuses


def of_request_id(given: Iterable[str]) -> Predicate:
    """Hold for the requests with one of these IDs, which pages show."""
    ids = frozenset(given)
    return lambda record: record.request_id in ids


def all_of(predicates: Iterable[Predicate]) -> Predicate:
    """Hold if all of them hold."""
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
            (name := decode_field(user)) == given or any(client.matches(_address(address), name) for client in named)
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
        raise ValueError(f"{given!r} is not a status, expected one such as 403, or a class such as 4xx")
    return [int(match[1])] if match[1] else range(int(match[2]) * 100, int(match[2]) * 100 + 100)
