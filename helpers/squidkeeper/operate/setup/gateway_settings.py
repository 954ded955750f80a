"""The settings of a gateway: the struct of gateway.yaml, and what is wrong with a file.

Secrets are in files of their own: webhook.yaml, archive-store.yaml, quota-store.yaml.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from squidkeeper.base.errors import PatternError
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
from squidkeeper.policy.language.settings_values import (
    TEXT,
    SettingsModel,
    SettingValue,
    Version,
    model_schema,
    number,
    parsed,
    read_model,
    unexpected,
    word,
    wrong,
)
from squidkeeper.policy.language.upstreams import parse_upstream_url
from squidkeeper.record.log.record import GATEWAY_LENGTH
from squidkeeper.services.maintenance.tls import parse_server_names

AUTO: Final = "auto"
DIRECT, INTERMEDIATE = CA_USES = ("direct", "intermediate")
_MOST_DAYS: Final = 36_500
_PORT_AT_MOST: Final = 65_535
_LISTEN: Final = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<port>[1-9][0-9]{0,4})"
)
_SIZE: Final = re.compile(r"6[4-9]M|[7-9][0-9]M|[1-9][0-9]{2,}M|[1-9][0-9]*G")
_PLACE: Final = {"type": ["integer", "string"]}


def _listen(value: object) -> str:
    found = (
        _LISTEN.fullmatch(str(value))
        if isinstance(value, int | str) and not isinstance(value, bool)
        else None
    )
    if found is None or int(found["port"]) > _PORT_AT_MOST or not _has_address(found):
        raise unexpected("PORT, ADDRESS:PORT or [ADDRESS]:PORT (quote the brackets)")
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
        raise wrong(
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


Place = Annotated[str, SettingValue(_listen, _PLACE)]
ExporterPlace = Annotated[str, SettingValue(_exporter_listen, _PLACE)]
Days = Annotated[int, number(_MOST_DAYS)]
Workers = Annotated[int, number(MOST_WORKERS, "; beyond it, add a gateway")]
Size = Annotated[str, parsed(_size, FaultCode.INVALID_TEXT)]
GatewayName = Annotated[str, parsed(_gateway_name, FaultCode.INVALID_NAME)]
ParentUrl = Annotated[str, parsed(_upstream, FaultCode.INVALID_UPSTREAM)]
Address = Annotated[str, parsed(_address, FaultCode.INVALID_NETWORK)]
OwnAddress = Annotated[str, parsed(_own_address, FaultCode.INVALID_NETWORK)]
Network = Annotated[str, parsed(_network, FaultCode.INVALID_NETWORK)]
ServerName = Annotated[str, parsed(_server_name, FaultCode.INVALID_HOST)]
ServerNames = Annotated[
    tuple[ServerName, ...],
    BeforeValidator(_unless_auto),
    WithJsonSchema({"type": ["array", "string"], "items": TEXT}),
]


class TlsSettings(SettingsModel):
    """HAProxy takes the clients for Squid, with or without TLS."""

    names: ServerNames = Field(
        description="Names and addresses in its certificate; auto: the address of `listen`, or all, and the host name."
    )


class BehindSettings(SettingsModel):
    """HAProxy on other machines takes the clients. Not with `tls`."""

    addresses: tuple[Address, ...] = Field(
        description="The addresses of HAProxy: clients come from these alone."
    )
    health_listen: Place | None = Field(
        default=None,
        description="Where these addresses ask for the gateway's health; else port 9130 of the address of `listen`"
        " (with --root: Squid's port + 7000).",
    )


class ExporterSettings(SettingsModel):
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


class LogSettings(SettingsModel):
    """The access log."""

    bytes: Size | None = Field(
        default=None,
        description="Its limit with its rotated files, such as 20G; else 8G, at most half of the file system.",
    )


class ArchiveSettings(SettingsModel):
    """The archive of rotated logs."""

    days: Days | None = Field(
        default=None, description="How many days it keeps; else 90."
    )
    bytes: Size | None = Field(
        default=None,
        description="Its limit, such as 100G; else a quarter of its file system.",
    )


class GatewaySettings(SettingsModel):
    """The settings of one gateway of squidkeeper. What is left out has its default."""

    version: Version = Field(description="The version of these settings: 1.")
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
    bump: Annotated[str, word(BUMPS)] = Field(
        default=BUMPS[0],
        description="shared: connections to origins come from a pool where a rule says so; documented: each tunnel has"
        " its own.",
    )
    certificates: Annotated[str, word(GENERATORS)] = Field(
        default=GENERATORS[0],
        description="Whose program makes the certificates of hosts.",
    )
    ca: Annotated[str, word(CA_USES)] | None = Field(
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
        settings, found = read_model(GatewaySettings, document, _REQUIRED)
        faults += found
    return CheckedSettings(
        document, None if faults else settings, tuple(sorted(faults))
    )


def settings_schema() -> dict[str, Any]:
    """Make the JSON Schema of the file, for editors."""
    return model_schema(GatewaySettings, "The settings of a gateway of squidkeeper")


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


_REQUIRED: Final = {
    "version": "'version: 1'",
    "names": "the names in the certificate, or auto",
    "addresses": "the addresses of the load balancers",
}
