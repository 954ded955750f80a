"""The shape of a policy file: pydantic models, and their errors as faults.

Each field parses its text into what it means, so that one validation finds every fault.
What a field may say often hangs on the fields above it (the hosts of an allow, the
target of a rewrite): those come first in the model.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language import body_values, secret_sources
from squidkeeper.policy.language.bodies import MAX_BYTES, Scalar
from squidkeeper.policy.language.document import (
    END,
    END_REQUIRED,
    Document,
    entries,
    is_private,
    shown_key,
)
from squidkeeper.policy.language.exact_urls import ExactUrl, parse_exact_url
from squidkeeper.policy.language.forms import parse_template
from squidkeeper.policy.language.guard_values import (
    EXPECTED_PORT,
    EXPECTED_TIME,
    NARROWER,
    check_narrow,
    parse_ports,
    parse_time,
)
from squidkeeper.policy.language.headers import (
    parse_injected_header,
    parse_stripped_header,
)
from squidkeeper.policy.language.hosts import (
    HostForm,
    HostPattern,
    Network,
    parse_host_pattern,
    parse_network,
)
from squidkeeper.policy.language.methods import parse_method
from squidkeeper.policy.language.model import (
    NO_REWRITE,
    NOT_OBSERVED,
    SESSION_APPROVAL,
    SHORTEST_WATCHED,
    VERDICT_NAMES,
    Action,
    Target,
)
from squidkeeper.policy.language.parameters import parse_parameter
from squidkeeper.policy.language.paths import PathPattern, parse_path_pattern
from squidkeeper.policy.language.prices import RESERVE, parse_amount
from squidkeeper.policy.language.quotas import (
    DEFAULT_RULE,
    LARGEST_COUNT,
    LARGEST_SIZE,
    Counted,
    QuotaUnit,
    Window,
    parse_counted,
    parse_size,
)
from squidkeeper.policy.language.roles import (
    LONGEST_BY_DEFAULT,
    VALUES_AT_MOST,
    VariableType,
    parse_pattern,
    parse_ttl,
    parse_variable_name,
)
from squidkeeper.policy.language.schedules import (
    Hours,
    parse_days,
    parse_hours,
    parse_zone,
)
from squidkeeper.policy.language.targets import check_target, parse_target
from squidkeeper.policy.language.unquoted import Unquoted, describe, kind, quote_it
from squidkeeper.policy.language.upstreams import (
    parse_upstream_name,
    parse_upstream_url,
)
from squidkeeper.policy.language.variables import BEGINNING, REFERENCE
from squidkeeper.policy.url import Address, Host, parse_address

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Names:
    """The names that all files together define, by section: a reference is to one of
    them.

    If the files are not `complete`, as with a misspelt section or a list for a mapping,
    any name may be defined in the rest. `presets` are all that there are. `hidden`
    names are in no fault: keys of `secrets` without a mapping, which may be values.
    """

    clients: frozenset[str] = frozenset()  # roles are among them
    roles: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    grants: frozenset[str] = frozenset()
    rewrites: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    canaries: frozenset[str] = frozenset()
    credentials: frozenset[str] = frozenset()
    upstreams: frozenset[str] = frozenset()
    quotas: frozenset[str] = frozenset()
    presets: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    complete: bool = True


# --- what a field may hold ------------------------------------------------------------


def _fault(code: FaultCode, message: str) -> PydanticCustomError:
    return PydanticCustomError("fault", "{message}", {"code": code, "message": message})


def _wrong_type(expected: str) -> PydanticCustomError:
    return PydanticCustomError(
        "wrong_type", "expected {expected}", {"expected": expected}
    )


@dataclass(frozen=True, slots=True)
class _OneOf:
    """A value that is one of some words: a fault lists them."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Check the value ahead of pydantic, which knows the words too."""
        words = tuple(map(str, get_args(source) or source))

        def validate(value: object) -> object:
            if value not in words:
                raise _wrong_type(one_of(words))
            return value

        return core_schema.no_info_before_validator_function(validate, handler(source))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type("text")
    return value


def _some_text(value: object) -> str:
    if not _text(value).strip():
        raise _wrong_type("text")
    return cast("str", value)


def _parsed(code: FaultCode, parse: Callable[[str], T]) -> Any:
    """Make the validator of a text field out of a parser that raises `PatternError`,
    which is a fault of this code.
    """

    def validate(value: object) -> T:
        try:
            return parse(_some_text(value))
        except PatternError as error:
            raise _fault(code, str(error)) from None

    return PlainValidator(validate)


def _known(section: str, kind: str) -> Any:
    def validate(value: object, info: ValidationInfo) -> str:
        names = _names_of(info)
        return _check_known(_some_text(value), kind, getattr(names, section), names)

    return PlainValidator(validate)


def _names_of(info: ValidationInfo) -> Names:
    return cast("Names", info.context)


def _check_known(name: str, kind: str, known: frozenset[str], names: Names) -> str:
    if name not in known and names.complete:
        shown = known - names.hidden
        expected = suggestion(name, shown) or f", expected {_one_defined(kind, shown)}"
        if kind == "secret":
            raise _fault(
                FaultCode.UNKNOWN_NAME,
                f"there is no secret of this name ({_NO_VALUES}){expected}",
            )
        raise _fault(FaultCode.UNKNOWN_NAME, f"there is no {kind} {name!r}{expected}")
    return name


def _one_defined(kind: str, shown: frozenset[str]) -> str:
    if shown:
        return one_of(shown)
    beside = ", or of local.yaml beside its folder" if kind == "secret" else ""
    return f"one that is defined in the section {_SECTIONS[kind]!r} of any file of the policy{beside}"


def _name(text: str) -> str:
    if len(text) > _NAME_AT_MOST or not text.isprintable():
        raise PatternError(
            f"name {text[:_NAME_AT_MOST]!r} is not up to {_NAME_AT_MOST} printable characters"
        )
    return text


def _rule_name(text: str) -> str:
    if text in VERDICT_NAMES or text == SESSION_APPROVAL:
        raise PatternError(
            f"{text!r} is a verdict of squidkeeper's own, expected another name"
        )
    return _name(text)


def _secret_name(text: str) -> str:
    if set(text) & set("{}[]!:"):  # string.Formatter takes them for more than a name
        raise PatternError(
            "the name of the secret holds a character that has a meaning in 'value', expected none of {}[]!:"
        )
    if len(text) > _NAME_AT_MOST or not text.isprintable():
        raise PatternError(
            f"the name of the secret is not up to {_NAME_AT_MOST} printable characters"
        )
    return text


def _prose(text: str) -> str:
    """Read a text for people; the newline that a YAML block ends with is not part of
    it.
    """
    text = text.strip()
    if len(text) > _PROSE_AT_MOST:
        raise PatternError(
            f"the text is {len(text):,} characters long, expected {_PROSE_AT_MOST:,} at most"
        )
    if any(
        unicodedata.category(character) == "Cc" for character in text.replace("\n", "")
    ):
        raise PatternError("the text holds a control character, expected none")
    return text


def _contact(text: str) -> str:
    """Read a line for every page, which is the same in plain text, HTML and JSON."""
    if len(text) > _CONTACT_AT_MOST or not text.isprintable():
        raise PatternError(
            f"the contact is not up to {_CONTACT_AT_MOST} printable characters"
        )
    if set(text) & set(_ESCAPED):
        message = f"the contact holds one of {_ESCAPED}, expected text that is the same in plain text, HTML and JSON"
        raise PatternError(f"{message}, such as platform@example.com")
    return text


def _query_value(value: object) -> str:
    text = _text(value)
    if text.startswith("regex:"):
        message = f"query pattern {text!r}: a query has no expressions, expected text, in which '*' is any"
        raise _fault(FaultCode.INVALID_QUERY, message)
    return text


def _user(text: str) -> str:
    if not text.isprintable():
        raise PatternError(
            f"user {text!r} holds a control character, expected the name of a proxy user"
        )
    return text


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        message = "this is no SHA-256 of a token, expected 64 hexadecimal digits, as `squidkeeper client add` writes"
        raise _fault(
            FaultCode.INVALID_TOKEN, f"{message} (a value is never shown here)"
        )
    return value.lower()


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _token_fields(value: object) -> object:
    return value if isinstance(value, dict) else {"sha256": value}


def _stripped(value: object, info: ValidationInfo) -> str:
    try:
        header = parse_stripped_header(_some_text(value))
    except PatternError as error:
        raise _fault(FaultCode.INVALID_HEADER, str(error)) from None
    if info.data.get("action") is Action.DENY:
        raise _fault(
            FaultCode.INVALID_HEADER,
            "a deny forwards no headers, expected 'strip' in an allow",
        )
    return header


def _few_headers(headers: tuple[str, ...]) -> tuple[str, ...]:
    if len(headers) > _STRIPPED_AT_MOST:
        raise _fault(
            FaultCode.INVALID_HEADER,
            f"{len(headers)} headers, expected {_STRIPPED_AT_MOST} at most",
        )
    return headers


def _few_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    if len(keys) > _KEYS_AT_MOST:
        message = f"{len(keys)} keys, expected {_KEYS_AT_MOST} at most: the one in use, and the one before it"
        raise _fault(FaultCode.KEY_CHOICE, message)
    return keys


def _placeholder(text: str) -> str:
    if (
        len(text) < SHORTEST_WATCHED
        or len(text) > _PLACEHOLDER_AT_MOST
        or not (text.isascii() and text.isprintable())
    ):
        raise PatternError(
            f"the placeholder is not {SHORTEST_WATCHED} to {_PLACEHOLDER_AT_MOST} printable ASCII characters:"
            " shorter ones are in many requests"
        )
    return text


def _aws_name(text: str) -> str:
    if not _AWS_NAME.fullmatch(text):
        raise PatternError("this is not a name such as eu-central-1 or s3")
    return text


def _environment_name(text: str) -> str:
    if "=" in text or "\0" in text:
        raise PatternError(
            f"this is not the name of an environment variable ({_NO_VALUES})"
        )
    return text


def _file(text: str) -> str:
    if not text.isprintable():
        raise PatternError("the file name holds a control character, expected none")
    return text


def _period(shortest: int, longest: int) -> Any:
    return _parsed(
        FaultCode.INVALID_SOURCE,
        lambda text: secret_sources.parse_period(text, shortest, longest),
    )


def _gate_period(text: str) -> int:
    match = _GATE_PERIOD.fullmatch(text)
    seconds = int(match[1]) * _GATE_UNITS[match[2]] if match else 0
    if not 0 < seconds <= _GATE_SECONDS_AT_MOST:
        raise PatternError(
            f"{text!r} is not a period of at most 31d, expected one such as 12h or 1d"
        )
    return seconds


def _some_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if arguments[:1] == ("",):
        raise _fault(
            FaultCode.INVALID_SOURCE,
            "no program is named, expected [PROGRAM, ARGUMENT, …]",
        )
    return arguments


def _app_id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return str(value)
    if isinstance(value, str) and _APP_ID.fullmatch(value):
        return value
    raise _wrong_type("the ID of a GitHub App, a number, or its client ID")


def _installation_id(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    raise _wrong_type("the number of an installation")


def _argument(value: object) -> str:
    try:
        return secret_sources.parse_argument(_text(value))
    except PatternError as error:
        raise _fault(FaultCode.INVALID_SOURCE, str(error)) from None


def _client_address(text: str) -> Address:
    try:
        return parse_address(text)
    except InvalidUrl as error:
        raise PatternError(f"{error}, expected one such as 192.168.137.10") from error


def _request(text: str) -> tuple[str, str]:
    method, _, url = text.partition(" ")
    if not _TOKEN.fullmatch(method) or not _ABSOLUTE.match(url):
        raise PatternError(
            f"request {text!r} is not 'METHOD URL', expected one such as GET https://example.com/"
        )
    if method == "CONNECT" or method != method.upper():
        raise PatternError(
            f"a test cannot have method {method!r}, expected an upper-case one other than CONNECT"
        )
    return method, url


def _username(value: object) -> str:
    text = _text(value)
    if ":" in text or not text.isprintable():
        message = "the username holds a ':' or a control character, which a basic credential cannot"
        raise _fault(FaultCode.INVALID_TEXT, message)
    return text


def _port(value: object) -> range:
    return _value_of(parse_ports, value, FaultCode.INVALID_PORT, EXPECTED_PORT)


def _time(value: object) -> datetime:
    text = value.text if isinstance(value, Unquoted) else value
    return _value_of(parse_time, text, FaultCode.INVALID_TIME, EXPECTED_TIME)


def _value_of(
    parse: Callable[[object], T | None], value: object, code: FaultCode, expected: str
) -> T:
    try:
        found = parse(value)
    except PatternError as error:
        raise _fault(code, str(error)) from None
    if found is None:
        raise _wrong_type(expected)
    return found


def _version(value: object) -> int:  # pydantic's Literal[1] takes true
    if value != 1 or not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(
            "the number 1, which is the version of the language that this squidkeeper understands"
        )
    return value


def _matched_host(value: object) -> HostPattern:
    """Read a host pattern, or the variable of sessions that stands for hosts."""
    text = _some_text(value)
    if BEGINNING not in text:
        return _host(text)
    if (reference := REFERENCE.fullmatch(text)) is None:
        message = f"host pattern {text!r} is no variable alone, expected one such as {{session.docs}}"
        raise _fault(FaultCode.INVALID_HOST, message)
    return HostPattern(text, HostForm.EXACT, variable=reference[1])


def _within(value: object) -> HostPattern:
    """Read a pattern of which hosts a session may name."""
    pattern = _host(value)
    if pattern.network is not None:
        message = f"{pattern.text!r} is no pattern of host names, which the values of a variable are"
        raise _fault(FaultCode.INVALID_HOST, message)
    if pattern.form is HostForm.ANY or pattern.covers_top_level:
        message = f"host pattern {pattern.text!r} is too wide for a variable, expected the hosts that sessions may name"
        raise _fault(FaultCode.TOO_WIDE, message)
    return pattern


def _session_secret(value: object) -> bool:
    if value is not True:
        raise _wrong_type("true (or the key left out)")
    return True


def _rule_host(value: object, info: ValidationInfo) -> HostPattern:
    if isinstance(value, str) and value.startswith("!"):
        raise _fault(
            FaultCode.INVALID_HOST,
            f"host pattern {value!r} cannot exclude hosts, {_RULE_ABOVE}",
        )
    pattern = _matched_host(value)
    if info.data.get("action") is Action.ALLOW and pattern.covers_top_level:
        message = f"host pattern {pattern.text!r} in an allow covers a whole top-level domain, {NARROWER}"
        raise _fault(FaultCode.TOO_WIDE, message)
    return pattern


def _granted_host(value: object) -> HostPattern:
    pattern = _host(value)
    if pattern.form is HostForm.ANY or pattern.covers_top_level:
        message = f"host pattern {pattern.text!r} is too wide for a grant, expected the hosts that it is for"
        raise _fault(FaultCode.TOO_WIDE, message)
    return pattern


def _injected_host(value: object) -> HostPattern:
    pattern = _matched_host(value)
    return pattern if pattern.variable else _credential_host(value)


def _credential_host(value: object) -> HostPattern:
    pattern = _host(value)
    try:
        return check_narrow(pattern)
    except PatternError as error:
        raise _fault(FaultCode.TOO_WIDE, str(error)) from None


def _host(value: object) -> HostPattern:
    try:
        return parse_host_pattern(_some_text(value))
    except PatternError as error:
        raise _fault(FaultCode.INVALID_HOST, str(error)) from None


def _default_action(action: Action) -> Action:
    if action is Action.ASK:
        raise _fault(
            FaultCode.WRONG_TYPE,
            "'action' is 'ask', expected allow or deny, or ask: true instead",
        )
    return action


def _number(at_most: int, hint: str = " (without quotes and commas)") -> Any:
    def validate(value: object) -> int:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 1 <= value <= at_most
        ):
            raise _wrong_type(f"a number from 1 to {at_most:,}{hint}")
        return value

    return PlainValidator(validate)


def _size_at_most(value: object) -> int:
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and 1 <= value <= LARGEST_SIZE
    ):
        return value
    if not isinstance(value, str):
        raise _wrong_type("a size such as 500KB, 20MB or 1GB, or a number of bytes")
    try:
        return parse_size(value)
    except PatternError as error:
        raise _fault(FaultCode.INVALID_TEXT, str(error)) from None


def _tokens_at_most(value: object) -> int:
    """Read a number of tokens, which may be longer than the numbers that YAML of a
    policy takes.
    """
    number = body_values.number_of(value)
    if not isinstance(number, int) or not 1 <= number <= LARGEST_SIZE:
        raise _wrong_type(
            f"a number from 1 to {LARGEST_SIZE:,} (without quotes and commas)"
        )
    return number


def _cost_at_most(value: object) -> int:
    cost = _amount(value)
    if not cost:
        raise _wrong_type("a cost above 0")
    return cost


def _amount(value: object) -> int:
    try:
        return parse_amount(value)
    except PatternError as error:
        raise _wrong_type(str(error).removeprefix("expected ")) from None


def _body_size(value: object) -> int:
    try:
        return body_values.checked_size(_size_at_most(value))
    except PatternError as error:
        raise _fault(FaultCode.INVALID_BODY, str(error)) from None


def _place_fields(value: object) -> object:
    """Read what may stand at a place of a document: one value, or several, stand for
    `values`.
    """
    return value if isinstance(value, dict) else {"values": _one_or_many(value)}


def _scalar(value: object) -> Scalar:
    try:
        return body_values.scalar_of(value)
    except PatternError as error:
        raise _wrong_type(str(error).removeprefix("expected ")) from None


def _bound(value: object) -> float:
    number = body_values.number_of(value)
    if number is None:
        raise _wrong_type("a number")
    return number


def _counted(value: object) -> tuple[Counted, str | None]:
    try:
        return parse_counted(str(value))
    except PatternError as error:
        raise _wrong_type(str(error).removeprefix("expected ")) from None


def _counted_rule(value: object, info: ValidationInfo) -> str:
    names = _names_of(info)
    return _check_known(_some_text(value), "rule", names.rules | {DEFAULT_RULE}, names)


def _to(value: object, info: ValidationInfo) -> Target:
    """Parse a target, as far as the fields above it are valid in the light of them."""
    try:
        target = parse_target(_some_text(value))
        if "schemes" in info.data and "paths" in info.data:
            check_target(target, info.data["schemes"], info.data["paths"])
    except PatternError as error:
        raise _fault(FaultCode.INVALID_TARGET, str(error)) from None
    return target


def _preset(value: object, info: ValidationInfo) -> str:
    name, known = _some_text(value), _names_of(info).presets
    if name not in known:
        expected = f", expected {one_of(known)}" if known else ": none is shipped"
        raise _fault(FaultCode.UNKNOWN_NAME, f"there is no preset {name!r}{expected}")
    return name


def _preset_fields(value: object) -> object:
    return {"preset": value} if isinstance(value, str) else value


def _value(value: object, info: ValidationInfo) -> str:
    text = _some_text(value)
    if not _secrets_in(text, info):
        raise _fault(FaultCode.INVALID_TEMPLATE, f"the value {_NAMES_NO_SECRET}")
    return text


def _secrets_in(template: str, info: ValidationInfo) -> tuple[str, ...]:
    try:
        secrets = parse_template(template)
    except PatternError as error:
        raise _fault(FaultCode.INVALID_TEMPLATE, str(error)) from None
    for name in secrets:
        _check_known(name, "secret", _names_of(info).secrets, _names_of(info))
    return secrets


def _value_beside(value: object, info: ValidationInfo) -> str:
    """Read one value of several, which may hold no secret."""
    text = _some_text(value)
    _secrets_in(text, info)
    return text


def _several_values(values: dict[str, str]) -> dict[str, str]:
    """Check values by name: there are few, and one of them has a secret."""
    if len(values) > _VALUES_AT_MOST:
        raise _fault(
            FaultCode.INVALID_TEMPLATE,
            f"{len(values)} values, expected {_VALUES_AT_MOST} at most",
        )
    if values and not any(map(parse_template, values.values())):
        raise _fault(FaultCode.INVALID_TEMPLATE, f"no value {_NAMES_A_SECRET}")
    return values


def _tested_rule(value: object, info: ValidationInfo) -> str:
    names = _names_of(info)
    return _check_known(
        _some_text(value),
        "rule or verdict",
        names.rules | names.grants | VERDICT_NAMES,
        names,
    )


def _tested_rewrite(value: object, info: ValidationInfo) -> str:
    """Read the name of the rewrite that must apply; an empty list, for none, becomes
    the name that none has.
    """
    if value == []:
        return NO_REWRITE
    if isinstance(value, list):
        raise _wrong_type("the name of one rewrite, or [] for none")
    names = _names_of(info)
    return _check_known(_some_text(value), "rewrite", names.rewrites, names)


def _tested_observed(value: object, info: ValidationInfo) -> str:
    """Read what must be observed, as it is recorded; an empty list stands for
    nothing.
    """
    if value == []:
        return NOT_OBSERVED
    verdict, colon, rule = (
        _some_text(value) if not isinstance(value, list) else ""
    ).partition(":")
    if not colon or verdict not in _VERDICTS:
        raise _wrong_type('what is recorded, such as "deny:RULE", or [] for nothing')
    names = _names_of(info)
    return f"{verdict}:{_check_known(rule, 'rule or verdict', names.rules | {'default'}, names)}"


def _tested_body(value: object) -> bytes:
    """Read the body of a test: text as it is, a mapping or a list as JSON."""
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, dict | list):
        raise _wrong_type("text, or a mapping or list, which is sent as JSON")
    try:
        return body_values.written_document(value)
    except PatternError as error:
        raise _fault(FaultCode.INVALID_BODY, str(error)) from None


_VERDICTS = (str(Action.ALLOW), str(Action.DENY))
_SECTIONS = {
    "client": "clients",
    "role": "roles",
    "list": "lists",
    "rule": "rules",
    "rule or verdict": "rules",
    "rewrite": "rewrites",
    "secret": "secrets",
    "credential": "credentials",
}
_NO_VALUES = "a policy never holds a value itself"
_NAMES_A_SECRET = f"names a secret, expected one such as {{name}}: {_NO_VALUES}"
_NAMES_NO_SECRET = f"names no secret, expected one such as {{name}}: {_NO_VALUES}"
_VALUES_AT_MOST = 8
_NAME_AT_MOST = 100
_PLACEHOLDER_AT_MOST = 200
_STRIPPED_AT_MOST = 16  # so that a reply of a helper has room for their keys
_AWS_NAME = re.compile(r"[a-z0-9-]{1,64}")
_KEYS_AT_MOST = 2
_USES_AT_MOST = 100_000  # each is a byte of the count on disk
_RESERVE_AT_MOST = 10_000_000
_PROSE_AT_MOST = 1000
_CONTACT_AT_MOST = 100  # so that a reply of a helper has room for it
_ESCAPED = '"\\<>&'
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/]\S*")
_DIGITS = re.compile(r"[1-9][0-9]{0,18}")  # YAML takes more than nine in quotes alone
_GATE_PERIOD = re.compile(r"([0-9]{1,6})([mhd])")
_GATE_UNITS = {"m": 60, "h": 3600, "d": 86400}
_GATE_SECONDS_AT_MOST = 31 * 86400
_GATE_DENIALS_AT_MOST = 1_000_000
_APP_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_RULE_ABOVE = (
    "expected a rule above this one for what is excepted (a deny above an "
    "allow): the first that matches decides"
)

Name = Annotated[str, _parsed(FaultCode.INVALID_NAME, _name)]
RuleName = Annotated[str, _parsed(FaultCode.INVALID_NAME, _rule_name)]
SecretName = Annotated[str, _parsed(FaultCode.INVALID_NAME, _secret_name)]
Contact = Annotated[str, _parsed(FaultCode.INVALID_TEXT, _contact)]
Prose = Annotated[str, _parsed(FaultCode.INVALID_TEXT, _prose)]
Word = Annotated[T, _OneOf()]
# strict, pydantic takes no text for a member of an enum
Member = Annotated[T, Field(strict=False), _OneOf()]
Scheme = Word[Literal["http", "https"]]
ActionText = Member[Action]
Time = Annotated[datetime, PlainValidator(_time)]
Days = Annotated[frozenset[int], _parsed(FaultCode.INVALID_TIME, parse_days)]
HoursText = Annotated[Hours, _parsed(FaultCode.INVALID_TIME, parse_hours)]
KnownClient = Annotated[str, _known("clients", "client")]
KnownList = Annotated[str, _known("lists", "list")]
KnownSecret = Annotated[str, _known("secrets", "secret")]
KnownCredential = Annotated[str, _known("credentials", "credential")]
CredentialHost = Annotated[HostPattern, PlainValidator(_credential_host)]
InjectedHost = Annotated[HostPattern, PlainValidator(_injected_host)]
KnownRole = Annotated[str, _known("roles", "role")]
HeaderName = Annotated[str, _parsed(FaultCode.INVALID_HEADER, parse_injected_header)]
ParameterName = Annotated[str, _parsed(FaultCode.INVALID_QUERY, parse_parameter)]
ValueBeside = Annotated[str, PlainValidator(_value_beside)]
File = Annotated[str, _parsed(FaultCode.INVALID_TEXT, _file)]
Argument = Annotated[str, PlainValidator(_argument)]
Endpoint = Annotated[
    str, _parsed(FaultCode.INVALID_SOURCE, secret_sources.parse_endpoint)
]
FormText = Annotated[
    str, _parsed(FaultCode.INVALID_SOURCE, secret_sources.parse_form_text)
]
Repository = Annotated[
    str, _parsed(FaultCode.INVALID_SOURCE, secret_sources.parse_repository)
]

# --- the models -----------------------------------------------------------------------


# Strict, pydantic takes no list for these. Neither takes text or a mapping.
Many = Annotated[tuple[T, ...], Field(strict=False)]
Several = Annotated[frozenset[T], Field(strict=False)]


class _Model(BaseModel):
    """A mapping of the language: only its own keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, arbitrary_types_allowed=True, defer_build=True
    )


class ReloadGateEntry(_Model):
    """Which edits are refused for what they would deny."""

    since: Annotated[int, _parsed(FaultCode.INVALID_TIME, _gate_period)]
    denials: Annotated[int, _number(_GATE_DENIALS_AT_MOST, "")]


class Defaults(_Model):
    """What happens when no rule matches, and whom to ask."""

    action: Annotated[ActionText, AfterValidator(_default_action)] = Action.DENY
    ask: bool = False
    reason: Prose | None = None
    contact: Contact | None = None
    watch_secrets: bool = False
    observe: bool = False
    reload_gate: ReloadGateEntry | None = None


class TokenEntry(_Model):
    """The hash of a client's token, and when the token lapses."""

    sha256: Annotated[str, PlainValidator(_sha256)]
    expires: Time | None = None


class ClientEntry(_Model):
    """Who asks."""

    networks: (
        Many[Annotated[Network, _parsed(FaultCode.INVALID_NETWORK, parse_network)]]
        | None
    ) = None
    users: Several[Annotated[str, _parsed(FaultCode.INVALID_TEXT, _user)]] | None = None
    token_sha256: (
        Annotated[
            Many[Annotated[TokenEntry, BeforeValidator(_token_fields)]],
            BeforeValidator(_one_or_many),
        ]
        | None
    ) = None
    connections: Word[Literal["own"]] | None = None


class VariableEntry(_Model):
    """What the values of a variable may be."""

    type: Member[VariableType]
    pattern: (
        Annotated[str, _parsed(FaultCode.INVALID_VARIABLE, parse_pattern)] | None
    ) = None
    within: Many[Annotated[HostPattern, PlainValidator(_within)]] | None = None
    many: Annotated[int, _number(VALUES_AT_MOST)] = 1


VariableName = Annotated[str, _parsed(FaultCode.INVALID_VARIABLE, parse_variable_name)]


class RoleEntry(_Model):
    """What a session may be."""

    variables: dict[VariableName, VariableEntry] | None = None
    ttl: Annotated[int, _parsed(FaultCode.INVALID_TIME, parse_ttl)] = LONGEST_BY_DEFAULT


class ListEntry(_Model):
    """A long host list in a file of its own."""

    file: File


class CommandEntry(_Model):
    """A program whose standard output is the value."""

    run: Annotated[Many[Argument], AfterValidator(_some_arguments)]
    timeout: Annotated[int, _period(1, 60)] = 10
    refresh: Annotated[int, _period(1, 86400)] = 300


class OAuth2Entry(_Model):
    """A token endpoint."""

    token_url: Endpoint
    grant: Member[secret_sources.Grant]
    client_id: FormText
    client_secret: KnownSecret | None = None
    client_auth: Member[secret_sources.ClientAuth] = secret_sources.ClientAuth.BASIC
    refresh_token: KnownSecret | None = None
    scope: FormText | None = None
    audience: FormText | None = None
    ca: File | None = None
    refresh: Annotated[int, _period(1, 86400)] = 300


class GitHubAppEntry(_Model):
    """An installation of a GitHub App."""

    app_id: Annotated[str, PlainValidator(_app_id)]
    installation_id: Annotated[int, PlainValidator(_installation_id)]
    private_key: KnownSecret
    repositories: Many[Repository]
    permissions: dict[str, Word[Literal["read", "write", "admin"]]]
    api_url: Endpoint = "https://api.github.com"
    ca: File | None = None


class SecretEntry(_Model):
    """Where a value comes from."""

    file: File | None = None
    env: Annotated[str, _parsed(FaultCode.INVALID_TEXT, _environment_name)] | None = (
        None
    )
    command: CommandEntry | None = None
    oauth2: OAuth2Entry | None = None
    github_app: GitHubAppEntry | None = None
    session: Annotated[bool, PlainValidator(_session_secret)] | None = None
    hosts: Many[CredentialHost] | None = None


class CanaryEntry(_Model):
    """A value that is in no request of an honest client."""

    file: File


_Ports = Many[Annotated[range, PlainValidator(_port)]]
_Methods = Several[Annotated[str, _parsed(FaultCode.INVALID_METHOD, parse_method)]]
_Paths = Many[
    Annotated[PathPattern, _parsed(FaultCode.INVALID_PATH, parse_path_pattern)]
]


class TunnelFields(_Model):
    """The fields by which everything matches that is known of a tunnel too, hosts
    aside.
    """

    clients: Several[KnownClient] | None = None
    lists: Many[KnownList] | None = None
    schemes: Several[Scheme] | None = None
    ports: _Ports | None = None


class MatchFields(TunnelFields):
    """The fields by which rules, rewrites and credentials match, hosts aside."""

    methods: _Methods | None = None
    paths: _Paths | None = None
    query: dict[str, Annotated[str, PlainValidator(_query_value)]] | None = None


class WhenEntry(_Model):
    """The days and hours at which a rule holds."""

    days: Annotated[Many[Days], BeforeValidator(_one_or_many)] | None = None
    hours: Annotated[Many[HoursText], BeforeValidator(_one_or_many)] | None = None
    timezone: Annotated[tzinfo, _parsed(FaultCode.INVALID_TIME, parse_zone)]


Pointer = Annotated[str, _parsed(FaultCode.INVALID_BODY, body_values.checked_pointer)]
NameGlob = Annotated[str, _parsed(FaultCode.INVALID_BODY, body_values.parse_name)]


class PlaceEntry(_Model):
    """What may stand at a place of a JSON document."""

    values: Many[Annotated[Scalar, PlainValidator(_scalar)]] | None = None
    min: Annotated[float, PlainValidator(_bound)] | None = None
    max: Annotated[float, PlainValidator(_bound)] | None = None
    absent: bool = False


Places = dict[Pointer, Annotated[PlaceEntry, BeforeValidator(_place_fields)]]


class GitEntry(_Model):
    """The commands of a push."""

    push: Many[Annotated[str, _parsed(FaultCode.INVALID_BODY, body_values.parse_ref)]]
    delete: bool = False
    create: bool = True
    options: Many[NameGlob] | None = None


class McpEntry(_Model):
    """The messages of the Model Context Protocol."""

    tools: Many[NameGlob] | None = None
    arguments: dict[NameGlob, Places] | None = None
    methods: (
        Many[
            Annotated[
                str, _parsed(FaultCode.INVALID_BODY, body_values.parse_rpc_method)
            ]
        ]
        | None
    ) = None


class BodyEntry(_Model):
    """What the body of a request may be."""

    in_json: Places | None = Field(None, alias="json")
    only: Many[Pointer] | None = None
    git: GitEntry | None = None
    mcp: McpEntry | None = None
    max: Annotated[int, PlainValidator(_body_size)] = MAX_BYTES


class RuleEntry(MatchFields):
    """A rule."""

    name: RuleName
    action: ActionText
    hosts: Many[Annotated[HostPattern, PlainValidator(_rule_host)]] | None = None
    reason: Prose | None = None
    private: bool = False
    expires: Time | None = None
    owner: Prose | None = None
    strip: (
        Annotated[
            Many[Annotated[str, PlainValidator(_stripped)]],
            AfterValidator(_few_headers),
        ]
        | None
    ) = None
    headers: Word[Literal["known"]] | None = None
    tls: Word[Literal["passthrough"]] | None = None
    websocket: bool = False
    connections: Word[Literal["own", "shared", "single"]] | None = None
    observe: bool = False
    when: WhenEntry | None = None
    body: BodyEntry | None = None
    meter: Word[Literal["tokens"]] | None = None
    reserve: Annotated[int, _number(_RESERVE_AT_MOST)] = RESERVE
    ask_usage: bool = False


class PresetEntry(_Model):
    """A preset: rules that are shipped with the program, and the clients that they are
    for.
    """

    preset: Annotated[str, PlainValidator(_preset)]
    clients: Several[KnownClient] | None = None


class GrantEntry(_Model):
    """A grant: an allow for a time, asked where the default or an ask rule would
    decide.
    """

    name: RuleName
    clients: Several[KnownClient] | None = None
    any_client: Literal[True] | None = None
    hosts: Many[Annotated[HostPattern, PlainValidator(_granted_host)]] | None = None
    urls: (
        Many[Annotated[ExactUrl, _parsed(FaultCode.INVALID_URL, parse_exact_url)]]
        | None
    ) = None
    schemes: Several[Scheme] | None = None
    ports: _Ports | None = None
    methods: _Methods | None = None
    paths: _Paths | None = None
    expires: Time
    uses: Annotated[int, _number(_USES_AT_MOST)] | None = None
    reason: Prose
    by: Prose | None = None
    made: Time | None = None


class RewriteEntry(MatchFields):
    """A rewrite."""

    name: Name
    hosts: Many[Annotated[HostPattern, PlainValidator(_matched_host)]] | None = None
    to: Annotated[Target, PlainValidator(_to)]
    redirect: Literal[301, 302, 303, 307, 308] | None = None
    private: bool = False


class Basic(_Model):
    """A basic credential."""

    username: Annotated[str, PlainValidator(_username)]
    password: KnownSecret


class AwsSigV4Entry(_Model):
    """The keys and the scope of AWS signatures."""

    access_key_id: KnownSecret
    secret_access_key: KnownSecret
    session_token: KnownSecret | None = None
    region: Annotated[str, _parsed(FaultCode.INVALID_TEXT, _aws_name)]
    service: Annotated[str, _parsed(FaultCode.INVALID_TEXT, _aws_name)] = "s3"


class CredentialEntry(MatchFields):
    """A credential."""

    name: Name
    hosts: Many[InjectedHost]
    header: HeaderName | None = None
    bearer: KnownSecret | None = None
    basic: Basic | None = None
    value: Annotated[str, PlainValidator(_value)] | None = None
    aws_sigv4: AwsSigV4Entry | None = None
    headers: (
        Annotated[dict[HeaderName, ValueBeside], AfterValidator(_several_values)] | None
    ) = None
    parameters: (
        Annotated[dict[ParameterName, ValueBeside], AfterValidator(_several_values)]
        | None
    ) = None
    placeholder: (
        Annotated[str, _parsed(FaultCode.INVALID_TEXT, _placeholder)] | None
    ) = None


class UpstreamEntry(TunnelFields):
    """Where allowed requests are forwarded."""

    name: Annotated[str, _parsed(FaultCode.INVALID_NAME, parse_upstream_name)]
    hosts: (
        Many[
            Annotated[HostPattern, _parsed(FaultCode.INVALID_HOST, parse_host_pattern)]
        ]
        | None
    ) = None
    url: (
        Annotated[
            tuple[Host, int], _parsed(FaultCode.INVALID_UPSTREAM, parse_upstream_url)
        ]
        | None
    ) = None
    direct: Literal[True] | None = None
    basic: Basic | None = None
    resolve: Word[Literal["upstream"]] | None = None


CountAtMost = Annotated[int, _number(LARGEST_COUNT)]
SizeAtMost = Annotated[int, PlainValidator(_size_at_most)]
TokensAtMost = Annotated[int, PlainValidator(_tokens_at_most)]
CostAtMost = Annotated[int, PlainValidator(_cost_at_most)]


class QuotaEntry(_Model):
    """How much may be used in a time."""

    name: Name
    per: Annotated[tuple[Counted, str | None], PlainValidator(_counted)]
    clients: Several[KnownClient] | None = None
    rules: Several[Annotated[str, PlainValidator(_counted_rule)]] | None = None
    requests: CountAtMost | None = None
    tunnels: CountAtMost | None = None
    tickets: CountAtMost | None = None
    bytes_out: SizeAtMost | None = None
    bytes_in: SizeAtMost | None = None
    tokens_in: TokensAtMost | None = None
    tokens_out: TokensAtMost | None = None
    tokens: TokensAtMost | None = None
    cost: CostAtMost | None = None
    every: Member[Window]


Amount = Annotated[int, PlainValidator(_amount)]


class PriceEntry(_Model):
    """What a million tokens of some models cost."""

    model: NameGlob
    tokens_in: Amount = Field(alias="in")
    tokens_out: Amount = Field(alias="out")
    cached_in: Amount | None = None
    cache_write: Amount | None = None


class SealedTokensEntry(_Model):
    """The keys that open sealed tokens: the newest first, and the one before it."""

    keys: Annotated[Many[KnownSecret], AfterValidator(_few_keys)]


PushedRefs = Many[
    Annotated[str, _parsed(FaultCode.INVALID_BODY, body_values.parse_pushed_ref)]
]


class PushEntry(_Model):
    """A push of a test."""

    update: PushedRefs | None = None
    create: PushedRefs | None = None
    delete: PushedRefs | None = None
    options: Many[NameGlob] | None = None


class TestedSessionEntry(_Model):
    """The session of a test."""

    role: KnownRole
    variables: (
        dict[
            VariableName,
            Annotated[
                Many[Annotated[str, PlainValidator(_some_text)]],
                BeforeValidator(_one_or_many),
            ],
        ]
        | None
    ) = None
    labels: dict[Name, Annotated[str, PlainValidator(_some_text)]] | None = None


class TestEntry(_Model):
    """A test of the policy."""

    request: Annotated[tuple[str, str], _parsed(FaultCode.INVALID_REQUEST, _request)]
    expect: ActionText
    client: (
        Annotated[Address, _parsed(FaultCode.INVALID_REQUEST, _client_address)] | None
    ) = None
    user: Annotated[str, _parsed(FaultCode.INVALID_TEXT, _user)] | None = None
    at: Time | None = None
    rule: Annotated[str, PlainValidator(_tested_rule)] | None = None
    rewrite: Annotated[str, PlainValidator(_tested_rewrite)] | None = None
    credentials: Many[KnownCredential] | None = None
    observed: Annotated[str, PlainValidator(_tested_observed)] | None = None
    body: Annotated[bytes, PlainValidator(_tested_body)] | None = None
    push: PushEntry | None = None
    session: TestedSessionEntry | None = None


class PolicyFile(_Model):
    """One file of a policy."""

    version: Annotated[int, PlainValidator(_version)]
    defaults: Defaults | None = None
    clients: dict[Name, ClientEntry] | None = None
    roles: dict[Name, RoleEntry] | None = None
    session_networks: (
        Many[Annotated[Network, _parsed(FaultCode.INVALID_NETWORK, parse_network)]]
        | None
    ) = None
    lists: dict[Name, ListEntry] | None = None
    rules: list[RuleEntry] | None = None
    presets: list[Annotated[PresetEntry, BeforeValidator(_preset_fields)]] | None = None
    grants: list[GrantEntry] | None = None
    rewrites: list[RewriteEntry] | None = None
    secrets: dict[SecretName, SecretEntry] | None = None
    canaries: dict[SecretName, CanaryEntry] | None = None
    credentials: list[CredentialEntry] | None = None
    sealed_tokens: SealedTokensEntry | None = None
    upstreams: list[UpstreamEntry] | None = None
    quotas: list[QuotaEntry] | None = None
    prices: list[PriceEntry] | None = None
    tests: list[TestEntry] | None = None
    end_required: Literal["required"] | None = Field(None, alias="end: required")
    end: bool | None = None


# --- validation and its words ---------------------------------------------------------


@dataclass(slots=True)
class Checked:
    """One file after validation: its model, or its faults."""

    document: Document
    model: PolicyFile | None = None
    faults: list[Fault] = field(default_factory=list)


def is_understood(document: Document) -> bool:
    """Whether a file was read, has known sections only, and those that define names
    have the right type.
    """
    if document.root is None or not document.data.keys() <= _KEYS_OF_FILE:
        return False
    return all(
        isinstance(document.data.get(section, holder()), holder)
        for section, holder in _DEFINING.items()
    )


def check_document(
    document: Document, names: Names, ended: frozenset[str] = frozenset()
) -> Checked:
    """Validate one file against the language; a file that could not be read has no
    further faults.

    `ended` names the files that ended with `end: true` in the revision before.
    """
    if document.root is None:
        return Checked(document)
    faults = [
        *_choice_faults(document),
        *_end_faults(document, document.path.name in ended),
    ]
    try:
        model = PolicyFile.model_validate(document.data, context=names)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return Checked(document, None, [*faults, *_faults(document, details)])
    return Checked(document, model, faults)


def one_of(choices: Mapping[str, object] | frozenset[str] | tuple[str, ...]) -> str:
    """List what a value may be, in the words of a fault: all words of the language (a
    tuple), some of a policy's.
    """
    if isinstance(choices, tuple):
        shown, more = [*choices], 0
    else:
        names = sorted(filter(str.isprintable, choices))
        shown, more = names[:_SHOWN_AT_MOST], len(names[_SHOWN_AT_MOST:])
    others = f" or one of {more} others" if more else ""
    return f"one of {', '.join(shown)}{others}" if len(shown) > 1 else shown[0]


def suggestion(name: str, known: Mapping[str, object] | frozenset[str]) -> str:
    """Point at the nearest name that is known, if one is near."""
    import difflib  # late: only a fault needs it

    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _faults(document: Document, details: list[ErrorDetails]) -> list[Fault]:
    return [
        fault for detail in details for fault in [_fault_of(document, detail)] if fault
    ]


def _fault_of(document: Document, detail: ErrorDetails) -> Fault | None:
    steps = _as_written(document, [step for step in detail["loc"] if step != "[key]"])
    value = detail["input"]
    if (
        isinstance(value, Unquoted)
        and value.null
        and detail["type"] != "extra_forbidden"
    ):
        return None  # the document has reported it
    on_key = detail["type"] == "extra_forbidden" or detail["loc"][-1:] == ("[key]",)
    if detail["type"] == "missing" and value == {}:
        return None  # the document has reported it
    return Fault(document.locate(steps, key=on_key), *_code_and_message(detail, steps))


def _as_written(document: Document, steps: list[int | str]) -> list[int | str]:
    """Leave out `values` where a place of a JSON document has the values alone."""
    if "values" not in steps:
        return steps
    at = steps.index("values")
    return (
        steps
        if isinstance(document.value_at(steps[:at]), dict)
        else steps[:at] + steps[at + 1 :]
    )


def _code_and_message(
    detail: ErrorDetails, steps: list[int | str]
) -> tuple[FaultCode, str]:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "fault":
            return context["code"], context["message"]
        case "extra_forbidden":
            return FaultCode.UNKNOWN_KEY, _unknown_key(str(steps[-1]), steps)
        case "missing":
            return (
                FaultCode.MISSING_KEY,
                f"key {steps[-1]!r} is missing{_OF.get(str(steps[-1]), '')}",
            )
        case _:
            expected = (
                _EXPECTED_FOR_KEY.get(steps[-1])
                or _EXPECTED.get(detail["type"])
                or str(context["expected"])
            )
            return FaultCode.WRONG_TYPE, _type_message(steps, detail["input"], expected)


def _unknown_key(key: str, steps: list[int | str]) -> str:
    expected = _expected_key(key, steps)
    return (
        f"unknown key{expected} ({_NO_VALUES})"
        if is_private(steps[:-1])
        else f"unknown key {key!r}{expected}"
    )


def _expected_key(key: str, steps: list[int | str]) -> str:
    known = _fields(steps)
    section = steps[0] if len(steps) == _STEPS_TO_KEY else ""
    if key in _WHO_ASKS and section in _LISTED:
        return f", {_WHO_IS_A_CLIENT}"
    if key in ("upstream", "upstreams") and section == "rules":
        return ", expected an entry of the section 'upstreams' with these hosts"
    if key in _EXCEPTIONS and section == "rules":
        return f", {_RULE_ABOVE}"
    if key.partition(":")[0] in known:
        return ", expected a space after its ':'"
    return suggestion(key, known) or f", expected {one_of(tuple(sorted(known)))}"


def _type_message(steps: list[int | str], value: object, expected: str) -> str:
    what = (
        f"an entry of {steps[-2]!r}" if isinstance(steps[-1], int) else f"{steps[-1]!r}"
    )
    hint = quote_it(value) if expected == "text" else ""
    if isinstance(steps[-1], int) and isinstance(value, list):
        hint = "; a list cannot hold another, nor an alias of one"
    if is_private(steps) or (
        steps[0] in ("credentials", "upstreams") and len(steps) <= _STEPS_TO_ENTRY
    ):
        if not isinstance(steps[-1], int):
            what = shown_key(str(steps[-1]), steps[:-1])
        if steps[0] == "canaries" and len(steps) == _STEPS_TO_ENTRY:
            expected = f"{{file: PATH}}; {_NO_VALUES}"
        if steps[0] == "secrets" and len(steps) == _STEPS_TO_ENTRY:
            expected = f"{{file: PATH}}, {{env: NAME}} or a source to fetch it from; {_NO_VALUES}"
        return f"{what} is {kind(value)}, expected {expected}{hint}"
    return f"{what} is {describe(value)}, expected {expected}{hint}"


def _fields(steps: list[int | str]) -> frozenset[str]:
    if len(steps) == 1:
        return _KEYS_OF_FILE
    above = next(step for step in reversed(steps[:-1]) if isinstance(step, str))
    is_place = above.startswith("/") and "body" in steps
    return _keys_of(
        PlaceEntry if is_place else _NESTED.get(above) or _ENTRIES[str(steps[0])]
    )


def _keys_of(model: type[_Model]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _end_faults(document: Document, ended: bool) -> Iterator[Fault]:
    end = document.data.get(END, False)
    if END in document.data and [*document.data][-1] != END:
        place = document.locate((END,), key=True)
        yield Fault(
            place,
            FaultCode.END_NOT_LAST,
            "'end' is not the last key of the file, expected nothing below it",
        )
    if END_REQUIRED in document.data and end is False:
        required = document.locate((END_REQUIRED,), key=True)
        message = f"the file {_DOES_NOT_END}, which {required} requires: is it cut off?"
        yield Fault(document.end(), FaultCode.TRUNCATED, message)
    elif ended and END not in document.data:
        message = f"the file {_DOES_NOT_END}, as it did before: is it cut off? {_HOW_TO_DROP_END}"
        yield Fault(document.end(), FaultCode.TRUNCATED, message)


_DOES_NOT_END = "does not end with 'end: true'"
_HOW_TO_DROP_END = "To do without that line, put a file with 'end: false' as its last line in force first"


def _choice_faults(document: Document) -> list[Fault]:
    """Find the entries that have none, or more than one, of the keys of which they need
    one.
    """
    found = []
    for choice, entry, steps in _choosing(document):
        keys, several = _CHOICES[choice]
        given = [key for key in keys if key in entry]
        if entry and (not given or (len(given) > 1 and not several)):
            amount = "at least one" if several else "exactly one"
            names = ", ".join(keys)
            got = " and ".join(map(repr, given))
            message = (
                f"{got} given, expected {amount} of {names}"
                if got
                else f"none of {names} given, expected {amount}"
            )
            found.append(Fault(document.locate(steps), FaultCode.KEY_CHOICE, message))
    return found


def _choosing(
    document: Document,
) -> Iterator[tuple[str, dict[str, Any], tuple[str | int, ...]]]:
    """Yield the mappings that need one of some keys: the choice, the mapping, and the
    steps that lead there.
    """
    yield from entries(document, *(_CHOICES.keys() - _CHOOSING_KEYS.keys()))
    for key, section in _CHOOSING_KEYS.items():
        for _, entry, steps in entries(document, section):
            if isinstance(chosen := entry.get(key), dict):
                yield key, chosen, (*steps, key)


_KEYS_OF_FILE = _keys_of(PolicyFile)
NAMED_BY_KEY = ("clients", "roles", "lists", "secrets", "canaries")
_MATCHING = ("rules", "grants", "rewrites", "credentials", "upstreams")
_LISTED = (*_MATCHING, "quotas")
_DEFINING: dict[str, type] = {
    **dict.fromkeys(NAMED_BY_KEY, dict),
    **dict.fromkeys(_LISTED, list),
}
_SHOWN_AT_MOST = 12
_STEPS_TO_ENTRY = 2
_STEPS_TO_KEY = 3
_WHO_ASKS = ("client", "networks", "network", "users", "user")
_WHO_IS_A_CLIENT = "expected a client that is defined in the section 'clients' and named by 'clients' here"
_EXCEPTIONS = ("except", "not", "exclude")
_ENTRIES: dict[str, type[_Model]] = {
    "defaults": Defaults,
    "clients": ClientEntry,
    "roles": RoleEntry,
    "lists": ListEntry,
    "rules": RuleEntry,
    "presets": PresetEntry,
    "grants": GrantEntry,
    "rewrites": RewriteEntry,
    "secrets": SecretEntry,
    "canaries": CanaryEntry,
    "credentials": CredentialEntry,
    "sealed_tokens": SealedTokensEntry,
    "upstreams": UpstreamEntry,
    "quotas": QuotaEntry,
    "prices": PriceEntry,
    "tests": TestEntry,
}
_NESTED: dict[str, type[_Model]] = {
    "reload_gate": ReloadGateEntry,
    "token_sha256": TokenEntry,
    "basic": Basic,
    "aws_sigv4": AwsSigV4Entry,
    "command": CommandEntry,
    "oauth2": OAuth2Entry,
    "github_app": GitHubAppEntry,
    "when": WhenEntry,
    "body": BodyEntry,
    "git": GitEntry,
    "push": PushEntry,
    "mcp": McpEntry,
    "session": TestedSessionEntry,
}
_CHOICES: dict[str, tuple[tuple[str, ...], bool]] = {
    "clients": (("networks", "users", "token_sha256"), True),
    "secrets": (("file", "env", "command", "oauth2", "github_app", "session"), False),
    "credentials": (
        ("bearer", "basic", "value", "headers", "parameters", "aws_sigv4"),
        False,
    ),
    "upstreams": (("url", "direct"), False),
    "quotas": (tuple(unit.value for unit in QuotaUnit), False),
    "when": (("days", "hours"), True),
    "body": (("json", "git", "mcp"), False),
    "push": (("update", "create", "delete"), True),
}
_EXPECTED_FOR_KEY: dict[int | str, str] = {
    "redirect": "one of the numbers 301, 302, 303, 307, 308",
    "direct": "true (or the key left out)",
    "any_client": "true, or clients instead",
    "end": "true (or false, once, to do without it from then on)",
}
# of entries: mappings that need one of some keys
_CHOOSING_KEYS = {
    "when": "rules",
    "body": "rules",
    "push": "tests",
}
_EXPECTED = {
    **dict.fromkeys(
        ("list_type", "tuple_type", "frozen_set_type"), "a list, such as [one, two]"
    ),
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "string_type": "text",
    "bool_type": "true or false",
}
_OF = {
    "per": ", expected client, rule, all, session or label:NAME",
    "type": ", expected path or hosts",
    "role": ", expected the role of the session",
    "every": ", expected minute, hour, day, week or month",
    "version": ", expected 'version: 1' in each file",
    "hosts": ", expected the hosts that the credential is for",
    "action": ", expected allow, deny or ask",
    "timezone": ", expected a time zone such as Europe/Berlin or UTC",
    "expect": ", expected allow, deny or ask",
    "expires": ", expected a time with its zone: a grant lapses",
    "reason": ", expected why it is granted",
    "push": ", expected the refs that a push may change, such as refs/heads/agent/**",
    "preset": ", expected one such as npm@2 (`squidkeeper preset list`)",
}
