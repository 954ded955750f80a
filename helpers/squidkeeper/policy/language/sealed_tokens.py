"""The content of a sealed token: guards in the language of the policy, a header's form,
and the secret.

Anyone can seal. So everything is bounded, and the header is one that the gateway
injects anyway.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.forms import fields_of, parse_template
from squidkeeper.policy.language.guard_values import (
    EXPECTED_PORT,
    EXPECTED_TIME,
    check_narrow,
    parse_ports,
    parse_time,
)
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS, shipped_header
from squidkeeper.policy.language.hosts import HostPattern, parse_host_pattern
from squidkeeper.policy.language.methods import parse_method
from squidkeeper.policy.language.model import Match
from squidkeeper.policy.language.paths import parse_path_pattern
from squidkeeper.policy.language.queries import QueryPattern

T = TypeVar("T")

SECRET = "secret"  # noqa: S105 - the one name that a template of a sealed token uses
DEFAULT_VALUE = "Bearer {secret}"
_PATTERNS_AT_MOST = 16
_TEXT_LENGTH = 256  # characters
# Matching fields of a policy that a token cannot have: a list is the policy's.
_UNKNOWN = ("lists", "schemes")


@dataclass(frozen=True, slots=True)
class SealedContent:
    """What a token holds, checked.

    `hosts` is separate from `match` as nothing looks tokens up by host.
    """

    hosts: tuple[HostPattern, ...]
    match: Match
    expires: datetime | None
    header: str
    template: str
    username: str | None
    secret: str = field(repr=False)


def format_content(fields: Mapping[str, object]) -> bytes:
    """Write the content of a token; `PatternError` if it could not be used."""
    content = json.dumps(
        {key: value for key, value in fields.items() if value}, separators=(",", ":")
    ).encode()
    parse_content(content)
    return content


def parse_content(content: bytes) -> SealedContent:
    """Parse the content of a token; `PatternError` names the field, and shows nothing
    of the secret.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise PatternError("the content is not JSON") from None
    _check_bounds(fields)
    given = {name: value for name, value in fields.items() if value is not None}
    for name in ("hosts", SECRET):
        if name not in given:
            raise PatternError(f"{name}: it is missing")
    read = {name: _READERS[name](name, value) for name, value in given.items()}
    return SealedContent(
        hosts=read["hosts"],
        match=Match(**{name: read.get(name) for name in _GUARDS}),
        expires=read.get("expires"),
        header=read.get("header", INJECTABLE_HEADERS[0]),
        template=read.get("value", DEFAULT_VALUE),
        username=read.get("username"),
        secret=read[SECRET],
    )


def _check_bounds(fields: object) -> None:
    """Refuse what would cost much to match or to fill in: many patterns, long texts,
    expressions.
    """
    if not isinstance(fields, dict):
        raise PatternError("the content is not a mapping")
    for name in _UNKNOWN:
        if name in fields:
            raise PatternError(f"{name}: a sealed token has no such guard")
    for name, value in fields.items():
        if name not in _READERS:
            raise PatternError(
                f"{name[:_TEXT_LENGTH]}: a sealed token has no such field"
            )
        if name != SECRET:  # the length of a token limits that one
            _check_texts(name[:_TEXT_LENGTH], value)


def _check_texts(name: str, value: object) -> None:
    several = [*value, *value.values()] if isinstance(value, dict) else value
    texts = several if isinstance(several, list) else [value]
    if len(texts) > _PATTERNS_AT_MOST:
        raise PatternError(f"{name}: expected at most {_PATTERNS_AT_MOST} values")
    if any(len(str(text)) > _TEXT_LENGTH for text in texts):
        raise PatternError(
            f"{name}: expected text of at most {_TEXT_LENGTH} characters"
        )
    if texts is several and any(str(text).startswith("regex:") for text in texts):
        raise PatternError(
            f"{name}: a sealed token has no expressions, expected text, in which '*' is any"
        )


# --- its fields -----------------------------------------------------------------------


def _many(parse: Callable[[object], T]) -> Callable[[str, object], tuple[T, ...]]:
    """Make the reader of a list, which names the place of what it refuses."""

    def read(name: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list) or not value:
            raise PatternError(f"{name}: expected a list of one or more")
        return tuple(
            _at(f"{name}.{number}", parse, item) for number, item in enumerate(value)
        )

    return read


def _set(parse: Callable[[object], T]) -> Callable[[str, object], frozenset[T]]:
    read = _many(parse)
    return lambda name, value: frozenset(read(name, value))


def _one(parse: Callable[[object], T]) -> Callable[[str, object], T]:
    return lambda name, value: _at(name, parse, value)


def _at(place: str, parse: Callable[[object], T], value: object) -> T:
    try:
        return parse(value)
    except PatternError as error:
        raise PatternError(f"{place}: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PatternError("expected text")
    return value


def _of_text(parse: Callable[[str], T]) -> Callable[[object], T]:
    return lambda value: parse(_text(value))


def _host(value: object) -> HostPattern:
    return check_narrow(parse_host_pattern(_text(value)))


def _ports(value: object) -> range:
    ports = parse_ports(value)
    if ports is None:
        raise PatternError(f"expected {EXPECTED_PORT}")
    return ports


def _expiry(value: object) -> datetime:
    time = parse_time(value)
    if time is None:
        raise PatternError(f"expected {EXPECTED_TIME}")
    return time


def _query(name: str, value: object) -> tuple[QueryPattern, ...]:
    if not isinstance(value, dict) or not value:
        raise PatternError(f"{name}: expected keys with their patterns")
    if not all(isinstance(pattern, str) for pattern in value.values()):
        raise PatternError(f"{name}: expected text")
    return tuple(QueryPattern(key, pattern) for key, pattern in value.items())


def _template(text: str) -> str:
    if parse_template(text) != (SECRET,) or len(fields_of(text)) > 1:
        raise PatternError("expected {secret} once, as the only name in braces")
    return text


def _username(value: object) -> str:
    if not isinstance(value, str) or ":" in value or not value.isprintable():
        raise PatternError(
            "it holds a ':' or a control character, which a basic credential cannot"
        )
    return value


def _header(text: str) -> str:
    header = shipped_header(text)
    if header is None:
        expected = ", ".join(INJECTABLE_HEADERS)
        raise PatternError(
            f"the gateway does not inject this one, expected one of {expected}"
        )
    return header


def _secret(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value
        or not all(" " <= character <= "~" for character in value)
    ):
        raise PatternError("expected printable ASCII")  # shown without the value
    return value


# clients are named by the policy in force when the token is used
_READERS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "hosts": _many(_host),
    "clients": _set(_text),
    "ports": _many(_ports),
    "methods": _set(_of_text(parse_method)),
    "paths": _many(_of_text(parse_path_pattern)),
    "query": _query,
    "expires": _one(_expiry),
    "header": _one(_of_text(_header)),
    "value": _one(_of_text(_template)),
    "username": _one(_username),
    SECRET: _one(_secret),
}
_GUARDS: Final = ("clients", "ports", "methods", "paths", "query")
