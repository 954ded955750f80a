"""The file of a fleet: its gateways, and the HAProxy in front of them."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final
from zlib import crc32

import msgspec

from squidkeeper.base.errors import FleetFailed
from squidkeeper.operate.setup.configuration import is_gateway_name
from squidkeeper.operate.setup.options import MOST_WORKERS

_PATH: Final = re.compile(r"/[A-Za-z0-9/._+@-]+")  # HAProxy has a quoting of its own
_LISTEN: Final = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<port>[1-9][0-9]{0,4})"
)
_PORT: Final = 3129
_HEALTH_PORT: Final = 9130
_PER_CLIENT: Final = 2048  # as Squid's client_ip_max_connections
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_EXAMPLE: Final = "squid/FLEET.md has an example"
_EXPECTED: Final = {  # by the name of a field; the whole file has none
    "": "version, haproxy and gateways",
    "version": "1",
    "haproxy": "addresses, and if needed listen, certificate and connections_per_client",
    "addresses": "at least one address of HAProxy, as gateways see it, such as [10.0.0.5]",
    "listen": "PORT, ADDRESS:PORT or [ADDRESS]:PORT",
    "certificate": "an absolute path of letters, digits and / . _ + @ -",
    "connections_per_client": f"a number from 1, such as {_PER_CLIENT}",
    "gateways": "at least one, such as {name: gw-1, address: 10.0.0.11}, with port, health_port and workers if needed",
    "name": "letters, digits and . _ -, such as gw-1",
    "address": "one such as 10.0.0.11",
    "port": "a port from 1 to 65535",
    "health_port": "a port from 1 to 65535",
    "workers": f"a number from 1 to {MOST_WORKERS}, as install.sh --workers was given",
}


class FleetGateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One gateway, as HAProxy reaches it."""

    name: str
    address: str
    port: Port = _PORT
    health_port: Port = _HEALTH_PORT
    workers: Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKERS)] = 1

    @property
    def authority(self) -> str:
        """Its address and the port of its proxy."""
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )

    @property
    def id(self) -> int:
        """What places it among the others for a client: made from its name, so that it
        keeps its place.
        """
        return crc32(self.name.encode()) % 0x7FFFFFFF + 1


@dataclass(frozen=True, slots=True)
class Fleet:
    """Gateways, and how HAProxy takes their clients.

    `addresses`: those of HAProxy, as gateways see them.
    """

    gateways: tuple[FleetGateway, ...]
    addresses: tuple[str, ...]
    listen: str
    certificate: str  # empty: no TLS to the proxy
    connections_per_client: int


def read_fleet(file: Path) -> Fleet:
    """Read the file; `FleetFailed` says what is wrong with it."""
    try:
        given = msgspec.yaml.decode(file.read_bytes(), type=_FleetFile)
    except OSError as error:
        expected = "expected a readable file with HAProxy's addresses and the gateways"
        raise FleetFailed(
            f"{file}: {error.strerror}: {expected}: {_EXAMPLE}"
        ) from error
    except msgspec.ValidationError as error:
        raise FleetFailed(f"{file}: {_told(str(error))}: {_EXAMPLE}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = " ".join(str(error).replace('in "<byte string>", ', "at ").split())
        raise FleetFailed(f"{file}: expected YAML: {text}: {_EXAMPLE}") from error
    if faults := _faults(given):
        raise FleetFailed("\n".join(f"{file}: {fault}" for fault in faults))
    gateways = (_gateway(gateway) for gateway in given.gateways)
    haproxy = given.haproxy
    addresses = tuple(str(ip_address(address)) for address in haproxy.addresses)
    return Fleet(
        (*gateways,),
        addresses,
        str(haproxy.listen),
        haproxy.certificate,
        haproxy.connections_per_client,
    )


class _HAProxy(msgspec.Struct, forbid_unknown_fields=True):
    addresses: Annotated[list[str], msgspec.Meta(min_length=1)]
    listen: int | str = _PORT
    certificate: str = ""
    connections_per_client: Annotated[int, msgspec.Meta(ge=1)] = _PER_CLIENT


class _FleetFile(msgspec.Struct, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    haproxy: _HAProxy
    gateways: Annotated[list[FleetGateway], msgspec.Meta(min_length=1)]


def _gateway(given: FleetGateway) -> FleetGateway:
    return msgspec.structs.replace(given, address=str(ip_address(given.address)))


def _told(problem: str) -> str:
    what, _, path = problem.rstrip("`").partition(" - at `$")
    place = path.removeprefix(".")
    field = re.sub(r"\[\d+\]", "", place).rpartition(".")[2]
    found = re.fullmatch(
        r"Object (contains unknown|missing required) field `(.*?)`?", what
    )
    if found and found[1] == "missing required":
        place, field, found = f"{place}.{found[2]}".removeprefix("."), found[2], None
    unknown = f"unknown field {found[2]!r}, " if found else ""
    return f"{place}: {unknown}expected {_EXPECTED[field]}".removeprefix(": ")


def _faults(given: _FleetFile) -> list[str]:
    faults = []
    for number, gateway in enumerate(given.gateways):
        place = f"gateways[{number}]"
        if not is_gateway_name(gateway.name):
            faults.append(
                f"{place}.name: {gateway.name!r}: expected {_EXPECTED['name']}"
            )
        faults += _address_fault(f"{place}.address", gateway.address)
    for number, address in enumerate(given.haproxy.addresses):
        faults += _address_fault(f"haproxy.addresses[{number}]", address)
    found = _LISTEN.fullmatch(str(given.haproxy.listen))
    if found is None or int(found["port"]) > 65535:
        faults.append(
            f"haproxy.listen: {given.haproxy.listen!r}: expected {_EXPECTED['listen']}"
        )
    elif found["address"]:
        faults += _address_fault("haproxy.listen", found["address"].strip("[]"))
    if given.haproxy.certificate and not _PATH.fullmatch(given.haproxy.certificate):
        faults.append(f"haproxy.certificate: expected {_EXPECTED['certificate']}")
    return faults or _repeated(given.gateways)


def _address_fault(place: str, text: str) -> list[str]:
    try:
        ip_address(text)
    except ValueError:
        return [f"{place}: {text!r} is not an address, expected {_EXPECTED['address']}"]
    return (
        [f"{place}: {text!r} has a zone, expected an address without"]
        if "%" in text
        else []
    )


def _repeated(gateways: list[FleetGateway]) -> list[str]:
    made = [_gateway(served) for served in gateways]
    faults = []
    for number, gateway in enumerate(made):
        for other in made[:number]:
            if gateway.name == other.name or gateway.id == other.id:
                faults.append(
                    f"gateways[{number}].name: {gateway.name!r} is taken by {other.name!r}: choose another"
                )
            elif gateway.authority == other.authority:
                faults.append(
                    f"gateways[{number}].address: {gateway.authority} is that of {other.name!r} already"
                )
    return faults
