"""What an export is to do: by options and the environment, or by a file for each export
of a service.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from squidkeeper.base.errors import InvalidExport
from squidkeeper.policy.destination import Destination, Transport, parse_destination
from squidkeeper.policy.extras import extra_problem
from squidkeeper.record.export.formats import FORMATS

OTLP: Final = "otlp"
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_LOGS_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"
_HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
_CERTIFICATE: Final = "OTEL_EXPORTER_OTLP_CERTIFICATE"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_OURS: Final = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection"}
)
_OTHERS: Final = stat.S_IROTH | stat.S_IWOTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTarget:
    """One export.

    `headers` is sent with each request over https, and shown nowhere; `ca` None: the
    system's.
    """

    name: str
    format: str
    destination: Destination
    full_urls: bool = False
    ca: Path | None = None
    headers: ReceiverHeaders


class ReceiverHeaders(dict[str, str]):
    """Headers that may hold a token: their text names them alone."""

    def __repr__(self) -> str:
        return f"<headers {', '.join(self)}>"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    to: str
    urls: Literal["path", "full"] = "path"
    ca: str = ""
    headers: str = ""


def make_target(
    *,
    name: str | None = None,
    format_name: str,
    to: str | None = None,
    full_urls: bool = False,
    ca: Path | None = None,
    headers: Path | None = None,
    environment: Mapping[str, str] = {},
) -> ExportTarget:
    """Make an export of options; raise `InvalidExport`.

    OTLP without `to` uses OpenTelemetry's variables.
    """
    if format_name not in FORMATS:
        raise InvalidExport(f"format {format_name!r}: expected {', '.join(FORMATS)}")
    if format_name == OTLP and (problem := extra_problem(OTLP)):
        raise InvalidExport(f"format {OTLP}: {problem}")
    given = ReceiverHeaders(read_headers(headers) if headers else {})
    if format_name == OTLP and to is None:
        to, ca = _endpoint(environment), ca or _path(environment.get(_CERTIFICATE))
        given = ReceiverHeaders(
            {**_listed_headers(environment.get(_HEADERS, "")), **given}
        )
    if to is None:
        raise InvalidExport(
            f"no destination: name it by --to{f', or by {_ENDPOINT}' if format_name == OTLP else ''}"
        )
    destination = parse_destination(to)
    _check(format_name, destination, given)
    name = name or f"{format_name}-{destination.name}"
    if not _NAME.fullmatch(name):
        raise InvalidExport(
            f"name {name!r}: expected at most 64 letters, digits, dots and dashes; choose it by --name"
        )
    return ExportTarget(
        name=name,
        format=format_name,
        destination=destination,
        full_urls=full_urls,
        ca=ca,
        headers=given,
    )


def read_targets(folder: Path) -> tuple[ExportTarget, ...]:
    """Read NAME.yaml for each export of a service; raise `InvalidExport` for the first
    fault.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".yaml")
    except OSError as error:
        raise InvalidExport(f"{folder}: {error.strerror or error}") from error
    if not files:
        raise InvalidExport(
            f"{folder}: no NAME.yaml is there: write one for each export"
        )
    return tuple(map(_target_of, files))


def read_headers(file: Path) -> dict[str, str]:
    """Read the headers of a file, a `Name: value` in each line; raise `InvalidExport`,
    without a value.
    """
    try:
        if file.stat().st_mode & _OTHERS:
            raise InvalidExport(f"{file}: every account can use it: chmod 0640 {file}")
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            getattr(error, "strerror", None) or "it holds characters that are not ASCII"
        )
        raise InvalidExport(
            f"{file}: {reason}: expected lines such as 'Authorization: Bearer …'"
        ) from None
    found = {}
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not _is_header(name, value.strip()):
            raise InvalidExport(
                f"{file}:{number}: expected a header such as 'Authorization: Bearer …'"
            )
        found[name] = value.strip()
    return found


def _target_of(file: Path) -> ExportTarget:
    try:
        read = msgspec.yaml.decode(file.read_bytes(), type=_File)
        return make_target(
            name=file.stem,
            format_name=read.format,
            to=read.to,
            full_urls=read.urls == "full",
            ca=_path(read.ca),
            headers=_path(read.headers),
        )
    except OSError as error:
        raise InvalidExport(f"{file}: {error.strerror or error}") from error
    except InvalidExport as error:
        raise InvalidExport(f"{file}: {error}") from None
    except msgspec.DecodeError as error:
        text = " ".join(str(error).replace('in "<byte string>", ', "").split())
        raise InvalidExport(
            f"{file}: {text}: expected the keys {', '.join(_File.__struct_fields__)}"
        ) from None


def _check(
    format_name: str, destination: Destination, headers: ReceiverHeaders
) -> None:
    over_http = destination.transport in (Transport.HTTPS, Transport.HTTP)
    if not FORMATS[format_name].is_text and not over_http:
        raise InvalidExport(
            f"format {format_name} travels over https alone, not to {destination}"
        )
    if headers and not over_http:
        raise InvalidExport(f"headers are for https, not for {destination}")


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """Return the URL for logs, as OpenTelemetry's specification of the OTLP exporter
    makes it.
    """
    if url := environment.get(_LOGS_ENDPOINT):
        return url
    base = environment.get(_ENDPOINT)
    return f"{base.rstrip('/')}/v1/logs" if base else None


def _listed_headers(text: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, value = pair.partition("=")
        if not _is_header(name.strip(), unquote(value.strip())):
            raise InvalidExport(
                f"{_HEADERS}: expected name=value, separated by commas and percent-encoded"
            )
        found[name.strip()] = unquote(value.strip())
    return found


def _is_header(name: str, value: str) -> bool:
    return (
        bool(_TOKEN.fullmatch(name) and _VALUE.fullmatch(value))
        and name.lower() not in _OURS
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
