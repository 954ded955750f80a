"""What calls take and answer: pydantic models, of which the OpenAPI document is made.

The judgement of a body needs the policy in force and the caller: they are the context
of its validation, so that all faults are found at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails

from squidkeeper.base.errors import PatternError
from squidkeeper.policy.language.approvals import ApprovalScope
from squidkeeper.policy.language.hosts import parse_network
from squidkeeper.policy.language.roles import LONGEST_TTL, SHORTEST_TTL, Role
from squidkeeper.services.sessions.orchestrators import (
    LABEL_NAME,
    Orchestrator,
    is_within,
)
from squidkeeper.services.sessions.problems import (
    CallRefused,
    FieldProblem,
    ProblemCode,
    pointer,
)

NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
NAME_EXPECTED: Final = (
    "1 to 64 letters, digits and . _ -, with a letter or digit at both ends"
)
_LABELS_AT_MOST: Final = 16
_LABEL_AT_MOST: Final = 128
_SECRETS_AT_MOST: Final = 16
_SECRET_AT_MOST: Final = 8192
_VARIABLES_AT_MOST: Final = 32
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PRINTABLE: Final = re.compile(r"[ -~]+")
_IPV6_BITS: Final = (64, 128)
_LINE_AT_MOST: Final = 200
_ADDRESS_AT_MOST: Final = 60  # characters
_OBJECT_EXPECTED: Final = 'an object, such as {"role": "coding-agent"}'
_TIME: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
M = TypeVar("M", bound=BaseModel)


class SessionState(StrEnum):
    """How a session is.

    `invalid`: its role or a variable is not in the policy as it was given, so that it
    opens nothing. `secrets-missing`: what needs its secrets is denied.
    """

    ACTIVE = "active"
    SECRETS_MISSING = "secrets-missing"
    INVALID = "invalid"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What the policy in force has for sessions.

    `names` are proxy users that the policy has.
    """

    revision: str
    roles: Mapping[str, Role]
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    secrets: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Judging:
    """Whose body is judged, by which policy; `faults` are those that no field's type
    finds. `role` is that of a session which is there.
    """

    terms: PolicyTerms
    caller: Orchestrator
    at: tuple[object, ...] = ()
    role: str = ""
    faults: list[FieldProblem] = field(default_factory=list)

    def fault(self, detail: str, *steps: object) -> None:
        """Note what is wrong at a place of the body."""
        self.faults.append(FieldProblem(pointer(*self.at, *steps), detail))


def _judging(info: ValidationInfo) -> Judging:
    return cast("Judging", info.context)


def _check_given(role: str, judging: Judging) -> None:
    if not judging.caller.may_give(role):
        raise ValueError(
            f"the orchestrator {judging.caller.name} may not give {role!r}"
        )


def _role(name: str, info: ValidationInfo) -> str:
    judging = _judging(info)
    _check_given(name, judging)
    if name not in judging.terms.roles:
        known = filter(judging.caller.may_give, sorted(judging.terms.roles))
        raise ValueError(
            f"the policy has no role {name!r}, expected one of: {', '.join(known)}"
        )
    return name


def _address(text: str, info: ValidationInfo) -> str:
    network = parse_session_network(text)
    _check_place(network, _judging(info))
    return str(network)


def _check_place(network: IPv4Network | IPv6Network, judging: Judging) -> None:
    wider = judging.terms.networks
    if not is_within(network, wider):
        shown = ", ".join(map(str, wider)) or "none"
        raise ValueError(
            f"{network} is not within session_networks of the policy: {shown}"
        )
    if not judging.caller.may_use(network):
        raise ValueError(
            f"{network} is not within the networks of the orchestrator {judging.caller.name}"
        )


def parse_session_network(text: str) -> IPv4Network | IPv6Network:
    """Read the address of a session: one of IPv4 or IPv6, or an IPv6 /64; ValueError
    where it is none.
    """
    expected = "expected an address such as 10.20.0.7, or an IPv6 /64"
    try:
        if "%" in text or len(text) > _ADDRESS_AT_MOST:
            raise PatternError("no zone can stand here")
        network = parse_network(text)
    except PatternError as error:
        shown = text[:_ADDRESS_AT_MOST]
        raise ValueError(f"{shown!r} is no address of a session, {expected}") from error
    if network.prefixlen not in ((32,) if network.version == 4 else _IPV6_BITS):
        raise ValueError(f"{network} is a network, {expected}")
    return network


def _values(given: object) -> object:
    return [given] if isinstance(given, str) else given


def _variables(
    given: dict[str, list[str]], info: ValidationInfo
) -> dict[str, list[str]]:
    judging = _judging(info)
    role = judging.terms.roles.get(str(info.data.get("role")))
    if role is None:
        return given  # another fault
    known = {variable.name: variable for variable in role.variables}
    for name in sorted(known.keys() - given.keys()):
        judging.fault("the variable has no value, expected one", "variables", name)
    checked: dict[str, list[str]] = {}
    for name, values in given.items():
        variable = known.get(name)
        if variable is None:
            expected = ", ".join(sorted(known)) or "none"
            message = f"the role {role.name} has no such variable, expected {expected}"
            judging.fault(message, "variables", name)
            continue
        try:
            checked[name] = [*variable.check(values)]
        except PatternError as error:
            judging.fault(str(error), "variables", name)
    return checked


def _label_name(name: str) -> str:
    if not LABEL_NAME.fullmatch(name):
        raise ValueError(
            "expected a name of up to 32 lower-case letters, digits and . _ -"
        )
    return name


def _label_value(value: str) -> str:
    if not _PRINTABLE.fullmatch(value) or len(value) > _LABEL_AT_MOST:
        raise ValueError(
            f"expected 1 to {_LABEL_AT_MOST} printable characters of ASCII"
        )
    return value


def _labels(given: object, info: ValidationInfo) -> object:
    """Note labels that are missing, also where others are faulty."""
    if isinstance(given, dict):
        _note_missing(given, _judging(info))
    return given


def _note_missing(labels: Container[str], judging: Judging) -> None:
    for name in judging.caller.labels:
        if name not in labels:
            message = f"the orchestrator {judging.caller.name} has to set this label"
            judging.fault(message, "labels", name)


def judge_kept(
    role: str, labels: Container[str], network: str | None, judging: Judging
) -> None:
    """Note what the caller may no longer give of a session that it keeps."""
    _note_missing(labels, judging)
    checks = [("role", partial(_check_given, role, judging))]
    if network is not None:
        checks.append(("address", partial(_check_place, ip_network(network), judging)))
    for field_name, check in checks:
        try:
            check()
        except ValueError as error:
            judging.fault(str(error), field_name)


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not _PRINTABLE.fullmatch(text) or len(text) > _SECRET_AT_MOST:
        raise ValueError(
            f"expected 1 to {_SECRET_AT_MOST:,} printable characters of ASCII"
        )
    return value


def _secrets(given: object, info: ValidationInfo) -> object:
    """Note secrets that are unknown, also where others are faulty."""
    judging = _judging(info)
    for name in given if isinstance(given, dict) else ():
        if name not in judging.terms.secrets:
            known = ", ".join(sorted(judging.terms.secrets)) or "none"
            message = (
                f"the policy has no such secret with `session: true`, expected {known}"
            )
            judging.fault(message, "secrets", name)
    return given


def _ttl(given: object, info: ValidationInfo) -> int:
    judging = _judging(info)
    name = str(info.data.get("role", judging.role))
    role = judging.terms.roles.get(name)
    if role is None and judging.role:
        raise ValueError(f"the policy has no role {name} any longer, so its end stays")
    most = role.ttl if role else LONGEST_TTL
    seconds = _seconds(given)
    if seconds is None or not SHORTEST_TTL <= seconds <= most:
        bounds = (
            f"from {SHORTEST_TTL} to {most} seconds, which is that of the role {name}"
        )
        raise ValueError(
            f"expected a time {bounds}: a number, or one such as 30m or 8h"
        )
    return seconds


def _seconds(given: object) -> int | None:
    if isinstance(given, str) and (found := _TIME.fullmatch(given)):
        return int(found[1]) * _UNITS[found[2]]
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _token(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError(
            "expected the SHA-256 of the token: 64 hexadecimal digits, in lower case"
        )
    return text


def _session_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"expected {NAME_EXPECTED}")
    return name


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )


_Values = Annotated[list[str], BeforeValidator(_values)]
_ValuesSchema = WithJsonSchema(
    {
        "type": "object",
        "maxProperties": _VARIABLES_AT_MOST,
        "additionalProperties": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        },
    }
)
_Address = Annotated[
    str, AfterValidator(_address), Field(examples=["10.20.0.7", "2001:db8:7::/64"])
]
_Secrets = Annotated[
    dict[str, Annotated[SecretStr, AfterValidator(_secret)]],
    Field(max_length=_SECRETS_AT_MOST),
    BeforeValidator(_secrets),
]
_Ttl = Annotated[
    int,
    BeforeValidator(_ttl),
    WithJsonSchema({"type": ["integer", "string"], "examples": [3600, "30m", "8h"]}),
]


class SessionAsked(_Body):
    """A session, as an orchestrator asks for it."""

    role: Annotated[str, AfterValidator(_role)] = Field(
        description="A role of the policy."
    )
    address: _Address | None = Field(
        default=None,
        description="The address that it comes from: IPv4, IPv6 or an IPv6 /64.",
    )
    variables: Annotated[
        dict[str, _Values],
        Field(max_length=_VARIABLES_AT_MOST),
        AfterValidator(_variables),
        _ValuesSchema,
    ] = Field(default={}, description="The values of the variables of the role.")
    labels: Annotated[
        dict[
            Annotated[str, AfterValidator(_label_name)],
            Annotated[str, AfterValidator(_label_value)],
        ],
        Field(max_length=_LABELS_AT_MOST),
        BeforeValidator(_labels),
    ] = Field(default={}, description="What it is for, such as {task: 4711}.")
    secrets: _Secrets = Field(
        default={},
        description="Values of secrets of the policy that sessions bring. They are never shown.",
    )
    ttl: _Ttl | None = Field(
        default=None,
        description="How long it lives: seconds, or a text such as 30m; else as long as the role allows.",
    )
    token_sha256: Annotated[str, AfterValidator(_token)] | None = Field(
        default=None,
        description="The SHA-256 of a token of its own. Without this and `address`, a token is made.",
    )


def _identity(name: str, info: ValidationInfo) -> str:
    known = _judging(info).caller.identities
    if name not in known:
        expected = ", ".join(sorted(known)) or "none"
        raise ValueError(f"the caller may not exchange it, expected {expected}")
    return name


class ExchangeAsked(_Body):
    """A signed token that becomes a session, as an orchestrator asks for it."""

    identity: Annotated[str, AfterValidator(_identity)] = Field(
        description="The identity of sessions.yaml whose token it is."
    )
    token: SecretStr = Field(description="The token: a signed JWT. It is never shown.")
    address: _Address | None = Field(default=None, description="As by PUT.")
    secrets: _Secrets = Field(default={}, description="As by PUT.")
    ttl: _Ttl | None = Field(
        default=None, description="As by PUT. The session ends with its token, too."
    )
    token_sha256: Annotated[str, AfterValidator(_token)] | None = Field(
        default=None, description="As by PUT: of a token for the proxy."
    )


class ExchangedSession(SessionAsked):
    """A session for a signed token, which bounds its whole life."""

    until: float


class ListedSession(SessionAsked):
    """A session of a whole list."""

    name: Annotated[str, AfterValidator(_session_name)] = Field(
        description=f"Its name: {NAME_EXPECTED}."
    )


class SessionChange(_Body):
    """What of a session changes; what is left out stays."""

    address: _Address | None = Field(
        default=None, description="Where it is from now on, such as for a warm VM."
    )
    secrets: _Secrets = Field(
        default={}, description="New values of secrets; those of other names stay."
    )
    ttl: _Ttl | None = Field(default=None, description="How long it lives from now on.")


def _valid(given: object) -> int:
    seconds = _seconds(given)
    if seconds is None or not 1 <= seconds <= LONGEST_TTL:
        raise ValueError("expected a time of at most 30 days, such as 30m or 2h")
    return seconds


def _line(text: str) -> str:
    if not text.isprintable() or len(text) > _LINE_AT_MOST:
        raise ValueError(f"expected at most {_LINE_AT_MOST} printable characters")
    return text


_Line = Annotated[str, AfterValidator(_line)]


class TicketAnswered(_Body):
    """The answer to a ticket."""

    decision: Literal["approve", "deny"]
    valid: Annotated[
        int | None,
        BeforeValidator(lambda given: None if given is None else _valid(given)),
        WithJsonSchema({"type": ["integer", "string"], "examples": ["30m", "2h"]}),
    ] = Field(
        default=None,
        alias="for",
        description="How long an approval holds, from now: needed with `approve`.",
    )
    by: _Line = Field(default="", description="Who answers, for the record.")
    scope: Annotated[ApprovalScope, Field(strict=False)] = Field(
        default=ApprovalScope.URL,
        description="What is approved, by the method that was asked for.",
    )
    reason: _Line = Field(default="", description="Why it is denied, for the client.")


class TicketShown(BaseModel):
    """A ticket of a session."""

    ticket: str
    session: str
    number: int
    method: str
    url: str
    rule: str
    times: int
    first: str
    last: str
    state: Literal["pending", "approved", "denied"]
    until: str | None = None
    by: str | None = None


class TicketList(BaseModel):
    """The tickets of a session that wait."""

    tickets: list[TicketShown]


class SessionShown(BaseModel):
    """A session, as it is shown: never with a value of a secret."""

    name: str
    number: int = Field(description="It is never used twice.")
    role: str
    state: SessionState
    reason: str | None = Field(
        default=None, description="Why it is in this state, where it is not `active`."
    )
    orchestrator: str
    address: str | None = None
    variables: dict[str, list[str]]
    labels: dict[str, str]
    secrets: list[str] = Field(description="The names of its secrets.")
    has_token: bool
    created: str
    expires: str
    ended: str | None = None
    revision: str = Field(description="The revision of the policy in force.")
    proxy: str | None = Field(default=None, description="The URL of the proxy.")
    env: dict[str, str] | None = Field(
        default=None, description="The variables of its programs."
    )
    token: str | None = Field(
        default=None, description="The token that was made. It is shown this once."
    )
    extended: bool | None = Field(
        default=None, description="Whether a repeated call has moved its end."
    )


class SessionPage(BaseModel):
    """Some sessions, and where the others begin."""

    sessions: list[SessionShown]
    next: str | None = Field(
        default=None, description="The next page: its value of `after`."
    )


class SessionEnded(BaseModel):
    """A session that was ended."""

    name: str
    number: int


class SessionsEnded(BaseModel):
    """Sessions that were ended, and what of them could not be cut."""

    ended: list[SessionEnded]
    left: int = Field(default=0, description="Connections that could not be cut.")
    problem: str | None = Field(
        default=None, description="Why nothing is known of their connections."
    )
    note: str | None = Field(
        default=None, description="What the end of a session without an address is."
    )


class SessionListed(BaseModel):
    """What came of one session of a whole list."""

    name: str
    result: Literal["created", "kept", "extended", "replaced", "refused"]
    session: SessionShown | None = None
    problem: dict[str, Any] | None = None


class ListTaken(SessionsEnded):
    """What came of a whole list."""

    sessions: list[SessionListed]


def parse_object(body: bytes) -> dict[str, Any]:
    """Read one JSON object; `CallRefused` for anything else, a doubled key too."""
    try:
        found = json.loads(
            body.decode(),
            object_pairs_hook=_without_doubles,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        detail = "the body nests too deep"
        if isinstance(error, json.JSONDecodeError):
            detail = f"line {error.lineno}, column {error.colno}: {error.msg}"
        elif isinstance(error, DoubtfulJson):
            detail = str(error)
        elif isinstance(error, ValueError):
            detail = "the body is not UTF-8, or has a number of too many digits"
        raise CallRefused(ProblemCode.NOT_JSON, detail) from None
    if not isinstance(found, dict):
        raise CallRefused(ProblemCode.NOT_JSON, f"expected {_OBJECT_EXPECTED}")
    return found


class DoubtfulJson(ValueError):
    """JSON that other readers take in another way; the text says what."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        double = next(name for name, count in counts.items() if count > 1)
        raise DoubtfulJson(f"the key {double[:100]!r} is there twice")
    return found


def _no_constant(name: str) -> object:
    raise DoubtfulJson(f"{name} is not JSON")


def judged(model: type[M], data: Mapping[str, Any], judging: Judging) -> M:
    """Make a model of a body; `CallRefused` with all that is wrong."""
    made, faults = judged_or_faults(model, data, judging)
    if made is None:
        raise CallRefused(ProblemCode.INVALID_SESSION, _told(faults), faults)
    return made


def judged_or_faults(
    model: type[M], data: Mapping[str, Any], judging: Judging
) -> tuple[M | None, list[FieldProblem]]:
    """Make a model of a body, or say all that is wrong."""
    try:
        made = model.model_validate(data, context=judging)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        found = [_field_problem(detail, judging.at) for detail in details]
        return None, sorted([*found, *judging.faults], key=attrgetter("pointer"))
    return (None if judging.faults else made), judging.faults


def refuse_list(faults: Sequence[FieldProblem]) -> NoReturn:
    """Refuse a whole list for its faults."""
    raise CallRefused(ProblemCode.INVALID_SESSION, _told(faults), faults)


def _told(faults: Sequence[FieldProblem]) -> str:
    first, *others = faults
    more = f", and {len(others)} more in `errors`" if others else ""
    return f"{first.pointer}: {first.detail}{more}"


def _field_problem(detail: ErrorDetails, at: tuple[object, ...]) -> FieldProblem:
    steps = [step for step in detail["loc"] if step != "[key]"]
    given = detail.get("ctx", {}).get("error")
    message = str(given) if isinstance(given, ValueError) else detail["msg"]
    if detail["type"] == "extra_forbidden":
        message = "unknown field"
    elif detail["type"] == "missing":
        message = "the field is missing"
    return FieldProblem(pointer(*at, *steps), message)
