"""The content of a sealed token: guards in the language of the policy, a header's form,
and the secret.

Anyone can seal. So everything is bounded, and the header is one that the gateway
injects anyway.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from pydantic import Field, PlainValidator, ValidationError

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.forms import fields_of, parse_template
from squidkeeper.policy.language.headers import INJECTABLE_HEADERS, shipped_header
from squidkeeper.policy.language.hosts import HostPattern
from squidkeeper.policy.language.model import Match
from squidkeeper.policy.language.queries import QueryPattern
from squidkeeper.policy.language.schema import (
    CredentialHost,
    Many,
    MatchFields,
    Names,
    Time,
)

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


class SealedEntry(MatchFields):
    """The JSON of a token."""

    hosts: Many[CredentialHost]
    expires: Time | None = None
    header: str = INJECTABLE_HEADERS[0]
    value: str = DEFAULT_VALUE
    username: str | None = None
    secret: Annotated[str, PlainValidator(lambda value: _secret(value))] = Field(
        repr=False
    )


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
    try:
        entry = SealedEntry.model_validate(fields, context=_ANY_NAMES)
    except ValidationError as error:
        raise PatternError(_first_problem(error)) from None
    if parse_template(entry.value) != (SECRET,) or len(fields_of(entry.value)) > 1:
        raise PatternError("value: expected {secret} once, as the only name in braces")
    if entry.username is not None and (
        ":" in entry.username or not entry.username.isprintable()
    ):
        raise PatternError(
            "username: it holds a ':' or a control character, which a basic credential cannot"
        )
    return SealedContent(
        entry.hosts,
        _match(entry),
        entry.expires,
        _header(entry.header),
        entry.value,
        entry.username,
        entry.secret,
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


def _match(entry: SealedEntry) -> Match:
    query = (
        tuple(QueryPattern(key, pattern) for key, pattern in entry.query.items())
        if entry.query
        else None
    )
    return Match(
        clients=entry.clients,
        ports=entry.ports,
        methods=entry.methods,
        paths=entry.paths,
        query=query,
    )


def _header(text: str) -> str:
    header = shipped_header(text)
    if header is None:
        expected = ", ".join(INJECTABLE_HEADERS)
        raise PatternError(
            f"header: the gateway does not inject this one, expected one of {expected}"
        )
    return header


def _secret(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value
        or not all(" " <= character <= "~" for character in value)
    ):
        raise ValueError("expected printable ASCII")  # shown without the value
    return value


def _first_problem(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in detail["loc"])
    message = detail.get("ctx", {}).get("message") or detail["msg"]
    return f"{place}: {message}"


# clients are named by the policy in force when the token is used
_ANY_NAMES = Names(complete=False)
