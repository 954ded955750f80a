"""Write the values of a policy as MessagePack, and read them again.

Text, bytes, numbers, true, false and nothing stand for themselves. Everything else is
an array that begins with the number of its kind in `_KINDS`. The order of `_KINDS` is a
part of the format: a change needs another `FORMAT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path, PosixPath
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from squidkeeper.base.errors import InvalidPublication, SquidkeeperError
from squidkeeper.base.faults import Location
from squidkeeper.policy.engine.timetable import Timed
from squidkeeper.policy.language import bodies, forms, secret_sources
from squidkeeper.policy.language.exact_urls import ExactUrl
from squidkeeper.policy.language.hosts import HostForm, HostPattern
from squidkeeper.policy.language.model import (
    Action,
    Client,
    Credential,
    Match,
    Parent,
    Policy,
    Preset,
    ReloadGate,
    Rewrite,
    Route,
    Rule,
    Strip,
    Target,
    Token,
)
from squidkeeper.policy.language.paths import PathPattern, parse_path_pattern
from squidkeeper.policy.language.prices import Metering, Price, Prices
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.policy.language.roles import Role, Variable, VariableType
from squidkeeper.policy.language.schedules import Hours, Schedule
from squidkeeper.policy.url import Host, Url

Parts = Iterable[object]


class _Kind(NamedTuple):
    """How the values of a type are written: as parts, of which `made` makes one."""

    of: type
    parts: Callable[[Any], Parts]
    made: Callable[..., object]


def encode(value: object) -> bytes:
    """Write a value; `TypeError` where it holds one of a type that no policy has."""
    return msgspec.msgpack.encode(_written(value))


def decode(data: bytes | memoryview) -> Any:
    """Read a value; `InvalidPublication` where there is none."""
    try:
        return _read(msgspec.msgpack.decode(data))
    except _UNREADABLE as error:
        raise InvalidPublication(f"a value cannot be read: {error}") from error


def _written(value: object) -> object:
    if type(value) in _PLAIN:
        return value
    number = _NUMBERS.get(type(value))
    if number is None:
        raise TypeError(f"a {type(value).__name__} is not a part of a policy")
    return [number, *map(_written, _KINDS[number].parts(value))]


def _read(raw: object) -> object:
    if type(raw) is list:
        return _MADE[raw[0]](*map(_read, raw[1:]))
    if type(raw) in _PLAIN:
        return raw
    raise TypeError(f"a {type(raw).__name__} is not a part of a policy")


def _of_class(cls: type) -> _Kind:
    """Write a dataclass by the fields that its constructor takes."""
    taken = [field for field in fields(cls) if field.init]
    names = tuple(field.name for field in taken)

    def parts(value: object) -> Parts:
        return (getattr(value, name) for name in names)

    def made(*values: object) -> object:
        return cls(**dict(zip(names, values, strict=True)))

    return _Kind(cls, parts, made if any(f.kw_only for f in taken) else cls)


def _of_tuple(cls: type) -> _Kind:
    return _Kind(cls, tuple, cls)


def _of_enum(cls: type[StrEnum]) -> _Kind:
    return _Kind(cls, lambda value: (value.value,), cls)


def _of_network(cls: type[IPv4Network] | type[IPv6Network]) -> _Kind:
    def parts(network: IPv4Network | IPv6Network) -> Parts:
        return network.network_address.packed, network.prefixlen

    def made(address: bytes, length: int) -> IPv4Network | IPv6Network:
        return cls((address, length))

    return _Kind(cls, parts, made)


def _of_dict() -> _Kind:
    def parts(value: dict[object, object]) -> Parts:
        return (part for item in value.items() for part in item)

    def made(*parts: object) -> dict[object, object]:
        return dict(zip(parts[::2], parts[1::2], strict=True))

    return _Kind(dict, parts, made)


def _tuple_of(*parts: object) -> tuple[object, ...]:
    return parts


def _frozenset_of(*parts: object) -> frozenset[object]:
    return frozenset(parts)


def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


# What stands for itself: an integer has 64 bits at most.
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_UNREADABLE: Final = (
    msgspec.DecodeError,
    SquidkeeperError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
_KINDS: Final = (
    _Kind(tuple, tuple, _tuple_of),
    _Kind(frozenset, sorted, _frozenset_of),
    _of_dict(),
    _Kind(range, lambda value: (value.start, value.stop), range),
    _Kind(datetime, lambda at: (at.isoformat(),), datetime.fromisoformat),
    _Kind(ZoneInfo, lambda zone: (zone.key,), _zone),
    _Kind(PosixPath, lambda path: (str(path),), Path),
    _Kind(IPv4Address, lambda address: (address.packed,), IPv4Address),
    _Kind(IPv6Address, lambda address: (address.packed,), IPv6Address),
    _of_network(IPv4Network),
    _of_network(IPv6Network),
    _of_tuple(Host),
    _of_tuple(Url),
    _of_tuple(Hours),
    _of_tuple(Timed),
    *map(
        _of_enum,
        (
            Action,
            HostForm,
            QuotaUnit,
            Counted,
            Window,
            VariableType,
            secret_sources.Grant,
            secret_sources.ClientAuth,
        ),
    ),
    # a pattern is parsed again: an expression is no data
    _Kind(PathPattern, lambda pattern: (pattern.text,), parse_path_pattern),
    *map(
        _of_class,
        (
            Location,
            HostPattern,
            QueryPattern,
            ExactUrl,
            Schedule,
            Token,
            Client,
            Match,
            Strip,
            Rule,
            Preset,
            Target,
            Rewrite,
            Parent,
            Route,
            forms.InjectedValue,
            forms.Headers,
            forms.QueryParameters,
            forms.AwsSigV4,
            Credential,
            bodies.Allowed,
            bodies.Member,
            bodies.JsonBody,
            bodies.GitBody,
            bodies.McpBody,
            Metering,
            Price,
            Prices,
            Quota,
            ReloadGate,
            secret_sources.FileSource,
            secret_sources.EnvironmentSource,
            secret_sources.CommandSource,
            secret_sources.OAuth2Source,
            secret_sources.GitHubAppSource,
            secret_sources.SessionSource,
            Variable,
            Role,
            secret_sources.NamedSecret,
            Policy,
        ),
    ),
)
_NUMBERS: Final = {kind.of: number for number, kind in enumerate(_KINDS)}
_MADE: Final = tuple(kind.made for kind in _KINDS)
