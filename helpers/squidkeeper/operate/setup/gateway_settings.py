"""The settings of a gateway: the struct of gateway.yaml, and what is wrong with a file.

Secrets are in files of their own: webhook.yaml, archive-store.yaml, quota-store.yaml.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    PydanticCustomError,
    core_schema,
)

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.operate.setup.configuration import is_gateway_name
from squidkeeper.operate.setup.options import (
    BUMPS,
    GENERATORS,
    MOST_WORKERS,
    NO_EXPORTER,
)
from squidkeeper.policy.language.document import Document, parse_document
from squidkeeper.policy.language.hosts import parse_network
from squidkeeper.policy.language.schema import one_of, suggestion
from squidkeeper.policy.language.unquoted import Unquoted, describe, quote_it
from squidkeeper.policy.language.upstreams import parse_upstream_url
from squidkeeper.record.log.record import GATEWAY_LENGTH
from squidkeeper.services.maintenance.tls import parse_server_names

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
AUTO: Final = "auto"
DIRECT, INTERMEDIATE = CA_USES = ("direct", "intermediate")
_MOST_DAYS: Final = 36_500
_PORT_AT_MOST: Final = 65_535
_LISTEN: Final = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<port>[1-9][0-9]{0,4})"
)
_SIZE: Final = re.compile(r"6[4-9]M|[7-9][0-9]M|[1-9][0-9]{2,}M|[1-9][0-9]*G")
_TEXT: Final = {"type": "string"}
_PLACE: Final = {"type": ["integer", "string"]}
_OF_PROGRAM: Final = ("title", "default", "anyOf")


@dataclass(frozen=True, slots=True)
class _Value:
    """How a value is read, and how the JSON Schema shows it."""

    read: Callable[[object], object]
    shown: dict[str, Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Read the value, whatever its type is."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, made: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Show it as it is written."""
        return self.shown


def _wrong(code: FaultCode, message: str) -> PydanticCustomError:
    return PydanticCustomError("fault", "{message}", {"code": code, "message": message})


def _unexpected(expected: str) -> PydanticCustomError:
    return PydanticCustomError("unexpected", "{expected}", {"expected": expected})


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _unexpected("text")
    return value


def _version(value: object) -> int:  # pydantic's Literal[1] takes true
    if value != 1 or not isinstance(value, int) or isinstance(value, bool):
        raise _unexpected("the number 1, which is the version of these settings")
    return value


def _number(most: int, beyond: str = "") -> _Value:
    def read(value: object) -> int:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 1 <= value <= most
        ):
            raise _unexpected(f"a number from 1 to {most}{beyond}")
        return value

    return _Value(read, {"type": "integer", "minimum": 1, "maximum": most})


def _word(words: tuple[str, ...]) -> _Value:
    def read(value: object) -> str:
        if value not in words:
            raise _unexpected(one_of(words))
        return str(value)

    return _Value(read, {"enum": [*words]})


def _parsed(parse: Callable[[str], str], code: FaultCode) -> _Value:
    def read(value: object) -> str:
        try:
            return parse(_text(value))
        except (PatternError, InvalidUrl) as error:
            raise _wrong(code, str(error)) from None

    return _Value(read, _TEXT)


def _listen(value: object) -> str:
    found = (
        _LISTEN.fullmatch(str(value))
        if isinstance(value, int | str) and not isinstance(value, bool)
        else None
    )
    if found is None or int(found["port"]) > _PORT_AT_MOST or not _has_address(found):
        raise _unexpected("PORT, ADDRESS:PORT or [ADDRESS]:PORT (quote the brackets)")
    return found[0]


def _has_address(found: re.Match[str]) -> bool:
    try:
        return found["address"] is None or bool(
            ip_address(found["address"].strip("[]"))
        )
    except ValueError:
        return False


def _exporter_listen(value: object) -> str:
    if value == NO_EXPORTER:
        return NO_EXPORTER
    listen = _listen(value)
    return f"127.0.0.1:{listen}" if listen.isdecimal() else listen


def _gateway_name(name: str) -> str:
    if not is_gateway_name(name):
        raise PatternError(
            f"{name!r} is no name of a gateway, expected at most {GATEWAY_LENGTH} letters, digits and . _ -,"
            " a letter or digit at both ends, such as egress-1.example"
        )
    return name


def _upstream(url: str) -> str:
    parse_upstream_url(url)
    return url


def _size(text: str) -> str:
    if not _SIZE.fullmatch(text):
        raise PatternError(
            f"{text!r} is no size, expected one such as 512M or 20G, 64M at least"
        )
    return text


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise PatternError(
            f"{text!r} is no address, expected one such as 10.0.0.5"
        ) from None


def _own_address(text: str) -> str:
    address = ip_address(_address(text))
    if address.is_unspecified or address.is_multicast:
        raise PatternError(
            f"{text!r} is for no machine, expected an address of this one, which clients can reach"
        )
    return str(address)


def _network(text: str) -> str:
    return str(parse_network(text))


def _one_of_each_kind(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if len({ip_address(address).version for address in addresses}) < len(addresses):
        raise _wrong(
            FaultCode.INVALID_NETWORK,
            "a name has one address of each kind, expected one of IPv4, one of IPv6, or both",
        )
    return addresses


def _server_name(text: str) -> str:
    names = parse_server_names(text)
    if len(names) != 1:
        raise PatternError(f"{text!r} is several names, expected one an entry")
    return names[0]


def _unless_auto(value: object) -> object:
    return () if value == AUTO else value


Place = Annotated[str, _Value(_listen, _PLACE)]
ExporterPlace = Annotated[str, _Value(_exporter_listen, _PLACE)]
Days = Annotated[int, _number(_MOST_DAYS)]
Workers = Annotated[int, _number(MOST_WORKERS, "; beyond it, add a gateway")]
Size = Annotated[str, _parsed(_size, FaultCode.INVALID_TEXT)]
GatewayName = Annotated[str, _parsed(_gateway_name, FaultCode.INVALID_NAME)]
ParentUrl = Annotated[str, _parsed(_upstream, FaultCode.INVALID_UPSTREAM)]
Address = Annotated[str, _parsed(_address, FaultCode.INVALID_NETWORK)]
OwnAddress = Annotated[str, _parsed(_own_address, FaultCode.INVALID_NETWORK)]
Network = Annotated[str, _parsed(_network, FaultCode.INVALID_NETWORK)]
ServerName = Annotated[str, _parsed(_server_name, FaultCode.INVALID_HOST)]
ServerNames = Annotated[
    tuple[ServerName, ...],
    BeforeValidator(_unless_auto),
    WithJsonSchema({"type": ["array", "string"], "items": _TEXT}),
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(_Settings):
    """HAProxy takes the clients for Squid, with or without TLS."""

    names: ServerNames = Field(
        description="Names and addresses in its certificate; auto: the address of `listen`, or all, and the host name."
    )


class BehindSettings(_Settings):
    """HAProxy on other machines takes the clients. Not with `tls`."""

    addresses: tuple[Address, ...] = Field(
        description="The addresses of HAProxy: clients come from these alone."
    )
    health_listen: Place | None = Field(
        default=None,
        description="Where these addresses ask for the gateway's health; else port 9130 of the address of `listen`"
        " (with --root: Squid's port + 7000).",
    )


class ExporterSettings(_Settings):
    """Metrics and the status page."""

    listen: ExporterPlace | None = Field(
        default=None,
        description="Where they are served, also on 127.0.0.1; none: no exporter; else 127.0.0.1:9129"
        " (with --root: Squid's port + 6000).",
    )
    status_from: tuple[Network, ...] = Field(
        default=(),
        description="Networks that may see the status page, beside this machine.",
    )


class LogSettings(_Settings):
    """The access log."""

    bytes: Size | None = Field(
        default=None,
        description="Its limit with its rotated files, such as 20G; else 8G, at most half of the file system.",
    )


class ArchiveSettings(_Settings):
    """The archive of rotated logs."""

    days: Days | None = Field(
        default=None, description="How many days it keeps; else 90."
    )
    bytes: Size | None = Field(
        default=None,
        description="Its limit, such as 100G; else a quarter of its file system.",
    )


class GatewaySettings(_Settings):
    """The settings of one gateway of squidkeeper. What is left out has its default."""

    version: Annotated[int, _Value(_version, {"const": 1})] = Field(
        description="The version of these settings: 1."
    )
    gateway: GatewayName | None = Field(
        default=None,
        description="The gateway's name in its access log; else the machine's host name.",
    )
    listen: Place = Field(
        default="3129",
        description="Where clients reach the proxy: PORT, ADDRESS:PORT or [ADDRESS]:PORT.",
    )
    workers: Workers = Field(
        default=1, description="How many processes of Squid serve."
    )
    tls: TlsSettings | None = None
    behind: BehindSettings | None = None
    transparent: Annotated[
        tuple[OwnAddress, ...], AfterValidator(_one_of_each_kind)
    ] = Field(
        default=(),
        description="Addresses whose ports 53, 80 and 443 take clients without proxy settings: one of IPv4, one of"
        " IPv6, or both.",
    )
    upstream: ParentUrl | None = Field(
        default=None, description="The parent proxy where the policy names none."
    )
    bump: Annotated[str, _word(BUMPS)] = Field(
        default=BUMPS[0],
        description="shared: connections to origins come from a pool where a rule says so; documented: each tunnel has"
        " its own.",
    )
    certificates: Annotated[str, _word(GENERATORS)] = Field(
        default=GENERATORS[0],
        description="Whose program makes the certificates of hosts.",
    )
    ca: Annotated[str, _word(CA_USES)] | None = Field(
        default=None,
        description="What signs for Squid: an intermediate of the CA, or the CA itself; else an intermediate, if the CA"
        " allows one.",
    )
    intermediate_days: Days | None = Field(
        default=None,
        description="How long an intermediate is valid; else as long as its CA.",
    )
    exporter: ExporterSettings = ExporterSettings()
    log: LogSettings = LogSettings()
    archive: ArchiveSettings = ArchiveSettings()


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """A file after its check: the settings, or all its faults."""

    document: Document
    settings: GatewaySettings | None
    faults: tuple[Fault, ...] = ()


def check_settings(path: Path, content: bytes) -> CheckedSettings:
    """Check a file of settings, and find all its faults."""
    document = parse_document(path, content)
    faults, settings = [*document.faults], None
    if document.root is not None:
        faults += _conflicts(document)
        try:
            settings = GatewaySettings.model_validate(document.data)
        except ValidationError as error:
            details = error.errors(include_url=False)
            faults += filter(None, (_fault_of(document, detail) for detail in details))
    return CheckedSettings(
        document, None if faults else settings, tuple(sorted(faults))
    )


def settings_schema() -> dict[str, Any]:
    """Make the JSON Schema of the file, for editors."""
    made = GatewaySettings.model_json_schema()
    title = "The settings of a gateway of squidkeeper"
    return {"$schema": DIALECT, "title": title, **_as_written(made)}


def _as_written(made: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only the program has: titles, and null for what is left out."""
    [*choices] = (one for one in made.get("anyOf", ()) if one != {"type": "null"})
    left = {key: made[key] for key in made if key not in _OF_PROGRAM}
    left |= choices[0] if choices else {}
    for group in ("properties", "$defs"):
        if group in left:
            left[group] = {
                name: _as_written(inner) for name, inner in left[group].items()
            }
    return left


def _conflicts(document: Document) -> Iterator[Fault]:
    """Find what cannot stand beside each other, by what is written."""
    data, listen = document.data, document.value_at(("exporter", "listen"))
    conflicts = (
        (
            "behind" in data and "tls" in data,
            ("behind",),
            "'behind' and 'tls' exclude each other: the load balancer takes the clients, with TLS or without;"
            " remove one (squid/FLEET.md says how the load balancer gets its certificate)",
        ),
        (
            "behind" in data and listen == NO_EXPORTER,
            ("exporter", "listen"),
            "'behind' needs the exporter, which tells the load balancer that the gateway is healthy,"
            " expected a port such as 9129",
        ),
        (
            document.value_at(("exporter", "status_from")) and _is_here(listen),
            ("exporter", "status_from"),
            "'status_from' shows the status page to other machines, and the exporter serves this one alone,"
            " expected 'listen' with an address that they reach, such as 10.0.0.11:9129",
        ),
        (
            data.get("ca") == DIRECT and "intermediate_days" in data,
            ("intermediate_days",),
            "'intermediate_days' is for an intermediate, and the CA signs directly: remove it, or 'ca: direct'",
        ),
    )
    for found, steps, message in conflicts:
        if found:
            yield Fault(document.locate(steps, key=True), FaultCode.KEY_CHOICE, message)


def _is_here(listen: object) -> bool:
    """Whether an exporter serves this machine alone, by where it listens as written."""
    host = str(listen).rpartition(":")[0].strip("[]")
    try:
        return not host or ip_address(host).is_loopback
    except ValueError:
        return False  # another fault


def _fault_of(document: Document, detail: ErrorDetails) -> Fault | None:
    steps, value = [*detail["loc"]], detail["input"]
    unknown = detail["type"] == "extra_forbidden"
    if isinstance(value, Unquoted) and value.null and not unknown:
        return None  # the document has reported it
    return Fault(
        document.locate(steps, key=unknown), *_code_and_message(detail, steps, value)
    )


def _code_and_message(
    detail: ErrorDetails, steps: list[int | str], value: object
) -> tuple[FaultCode, str]:
    context, key = detail.get("ctx", {}), steps[-1] if steps else ""
    match detail["type"]:
        case "fault":
            return context["code"], context["message"]
        case "extra_forbidden":
            known = _keys(steps[:-1])
            expected = (
                suggestion(str(key), known) or f", expected {one_of((*sorted(known),))}"
            )
            return FaultCode.UNKNOWN_KEY, f"unknown key {key!r}{expected}"
        case "missing":
            return (
                FaultCode.MISSING_KEY,
                f"key {key!r} is missing, expected {_REQUIRED[str(key)]}",
            )
    expected = context.get("expected") or _EXPECTED[detail["type"]]
    what = f"an entry of {steps[-2]!r}" if isinstance(key, int) else f"{key!r}"
    hint = quote_it(value) if expected == "text" else ""
    return (
        FaultCode.WRONG_TYPE,
        f"{what} is {describe(value)}, expected {expected}{hint}",
    )


def _keys(steps: list[int | str]) -> frozenset[str]:
    """List the keys that can stand at a place."""
    model = _SECTIONS.get(str(steps[0])) if steps else GatewaySettings
    return frozenset((model or GatewaySettings).model_fields)


_SECTIONS: Final[dict[str, type[_Settings]]] = {
    "tls": TlsSettings,
    "behind": BehindSettings,
    "exporter": ExporterSettings,
    "log": LogSettings,
    "archive": ArchiveSettings,
}
_REQUIRED: Final = {
    "version": "'version: 1'",
    "names": "the names in the certificate, or auto",
    "addresses": "the addresses of the load balancers",
}
_EXPECTED: Final = {
    "tuple_type": "a list, such as [one, two]",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
}
