"""Roles, their variables, and what the engine knows of a session.

A program gives a session a role and values for the variables of the role. A value is
text: it is compared, and never read as a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final, Self

import re2

from squidkeeper.base.errors import PatternError
from squidkeeper.base.faults import Location
from squidkeeper.policy.language.globs import compile_regex
from squidkeeper.policy.language.hosts import (
    HostForm,
    HostPattern,
    parse_host_pattern,
)
from squidkeeper.policy.url import Host, parse_host

LONGEST_VALUE: Final = 256  # characters
VALUES_AT_MOST: Final = 100
SHORTEST_TTL: Final = 60  # seconds
LONGEST_TTL: Final = 30 * 86_400
LONGEST_BY_DEFAULT: Final = 8 * 3600
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TTL: Final = re.compile(r"([0-9]{1,6})([mhd])")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}
_SHOWN: Final = 100
_IN_NO_PATH: Final = re.compile(r"[^!$&'()+,\-./0-9:;=@A-Z\[\]_a-z~]")


class VariableType(StrEnum):
    """What the values of a variable are.

    `PATH`: a part of a path, of one segment or more. `HOSTS`: host names.
    """

    PATH = "path"
    HOSTS = "hosts"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a role.

    `pattern` is an RE2 expression for a whole value of a path. `within` are patterns of
    which one must match a value of hosts. `many` is how many values there may be.
    """

    name: str
    type: VariableType
    pattern: str = ""
    within: tuple[HostPattern, ...] = ()
    many: int = 1

    def check(self, values: Sequence[str]) -> tuple[str, ...]:
        """Return the values in their one spelling; `PatternError` for what the type
        does not hold.
        """
        if not 1 <= len(values) <= self.many:
            raise PatternError(f"{len(values)} values, expected 1 to {self.many}")
        return tuple(map(self._checked, values))

    def _checked(self, value: str) -> str:
        if not 1 <= len(value) <= LONGEST_VALUE:
            raise PatternError(
                f"a value of {len(value):,} characters, expected 1 to {LONGEST_VALUE}"
            )
        if self.type is VariableType.HOSTS:
            return _host_within(value, self.within)
        _check_path(value)
        if compile_regex(self.pattern).fullmatch(value) is None:
            raise PatternError(f"{value!r} does not match the pattern {self.pattern}")
        return value


def _check_path(value: str) -> None:
    if found := _IN_NO_PATH.search(value):
        raise PatternError(
            f"{value!r} holds {found[0]!r}, expected letters, digits and -._~!$&'()+,;=:@[]/"
        )
    # some servers cut off what follows a ';'
    names = {segment.partition(";")[0] for segment in value.split("/")}
    if "" in names:
        raise PatternError(
            f"{value!r} has an empty segment, expected none: no '/' first, last or doubled"
        )
    if {".", ".."} & names:
        raise PatternError(f"{value!r} has a dot segment, expected none")


def _host_within(value: str, within: Sequence[HostPattern]) -> str:
    pattern = parse_host_pattern(value)
    if pattern.form is not HostForm.EXACT:
        raise PatternError(f"{value!r} is not a host name, such as example.com")
    host = parse_host(pattern.name)
    if not any(one.matches(host) for one in within):
        shown = ", ".join(one.text for one in within)
        raise PatternError(f"{value!r} is not within {shown}")
    return pattern.name


def parse_variable_name(text: str) -> str:
    """Parse the name of a variable."""
    if _NAME.fullmatch(text) is None:
        raise PatternError(
            f"variable {text[:_SHOWN]!r} is not up to 32 of a-z, 0-9 and '_' that begin with a letter"
        )
    return text


def parse_ttl(text: str) -> int:
    """Parse how long a session lives at most, into seconds."""
    match = _TTL.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not SHORTEST_TTL <= seconds <= LONGEST_TTL:
        raise PatternError(
            f"{text[:_SHOWN]!r} is not a time from 1m to 30d, expected one such as 30m, 8h or 2d"
        )
    return seconds


def parse_pattern(text: str) -> str:
    """Check the RE2 expression of a variable; `PatternError` where it is none."""
    try:
        compile_regex(text)
    except re2.error as error:
        raise PatternError(f"{text!r} is not an RE2 expression") from error
    return text


@dataclass(frozen=True, slots=True)
class Role:
    """What sessions may be: `ttl` is how many seconds one lives at most."""

    name: str
    location: Location
    variables: tuple[Variable, ...] = ()
    ttl: int = LONGEST_BY_DEFAULT

    def variable(self, name: str) -> Variable | None:
        """Return a variable of the role."""
        return next((one for one in self.variables if one.name == name), None)

    def check(self, values: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Return the values of every variable in their one spelling; `PatternError`
        with the first that is missing, unknown or wrong.
        """
        known = {variable.name: variable for variable in self.variables}
        if missing := sorted(known.keys() - values.keys()):
            raise PatternError(f"the variable {missing[0]} has no value, expected one")
        if unknown := sorted(values.keys() - known.keys()):
            raise PatternError(f"the role {self.name} has no variable {unknown[0]}")
        return {name: known[name].check(given) for name, given in values.items()}


def why_invalid(
    role: Role | None, name: str, values: Mapping[str, Sequence[str]]
) -> str:
    """Say why the policy does not know a session as it was given, for who made it;
    nothing where it does.
    """
    if role is None:
        return f"the policy has no role {name}"
    try:
        role.check(values)
    except PatternError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class TicketAnswer:
    """What a person has answered to a ticket of a session.

    `ends` is when an approval lapses, in seconds since 1970. `reason` is why a ticket
    was denied, for the client.
    """

    approved: bool
    ends: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A session, as the engine knows it.

    `number` is never used twice. `stamp` is another one after each change of the
    session, and that of no other session: what is kept for a session has it in its key.
    `values` are those of its variables. `orchestrator` is who made it. `grants` are
    what was approved for it, and is in force; `answers` are what people have answered
    to its tickets, by their numbers.
    """

    number: int
    name: str
    role: str
    values: Mapping[str, tuple[str, ...]]
    stamp: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    orchestrator: str = ""
    grants: tuple[object, ...] = ()  # rules
    answers: Mapping[str, TicketAnswer] = field(default_factory=dict)

    @classmethod
    def assumed(
        cls,
        role: str,
        values: Mapping[str, tuple[str, ...]],
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a session that nobody has created, as of a test of the policy.

        Its number and its stamp are below 0.
        """
        content = repr((role, sorted(values.items()), sorted((labels or {}).items())))
        number = -int(sha256(content.encode()).hexdigest()[:15], 16) - 1
        return cls(number, "", role, values, number, labels or {})

    @property
    def is_assumed(self) -> bool:
        """Whether nobody has created it."""
        return self.number < 0

    def holds_host(self, variable: str, host: Host) -> bool:
        """Whether a host is one of the values of a variable."""
        return host.address is None and host.text in self.values.get(variable, ())
