"""Where people are told that questions wait: webhook.yaml, a file of the gateway's own set-up.

It is no part of the policy: whoever may edit the policy cannot choose where questions are sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import InvalidExport, WebhookFailed
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.policy.destination import Destination, Transport, parse_destination

_OTHERS: Final = 0o007
_KEY_BYTES_AT_LEAST: Final = 16
_EXPECTED: Final = "expected url, and where needed format, key_file, ca_file"


class WebhookFormat(StrEnum):
    """What is sent."""

    JSON = "json"
    SLACK = "slack"


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """One receiver. `key` signs what is sent; Slack checks no signature, and needs none."""

    destination: Destination = field(repr=False)  # Slack's own URL is a secret
    format: WebhookFormat
    key: bytes = field(repr=False)
    ca_file: Path | None


def read_webhook_settings(file: Path) -> WebhookSettings | None:
    """Read the file; None where there is none. `WebhookFailed` says what is wrong, and shows neither URL nor key."""
    try:
        mode = file.stat().st_mode
        settings = msgspec.yaml.decode(file.read_bytes(), type=_WebhookFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WebhookFailed(f"{file}: {error.strerror}: Squid's account has to read it") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WebhookFailed(f"{file}: {error}: {_EXPECTED}") from None
    if mode & _OTHERS:
        raise WebhookFailed(f"{file}: everybody can read it, and its URL is a secret: chmod 0640")
    return WebhookSettings(
        _destination(file, settings.url),
        settings.format,
        _key(file, settings),
        Path(settings.ca_file) if settings.ca_file else None,
    )


def _destination(file: Path, url: str) -> Destination:
    try:
        destination = parse_destination(url)
    except InvalidExport:
        destination = None
    if destination is None or destination.transport is not Transport.HTTPS:
        raise WebhookFailed(f"{file}: url is not one of https://HOST/PATH")
    return destination


def _key(file: Path, settings: _WebhookFile) -> bytes:
    if not settings.key_file:
        if settings.format is WebhookFormat.JSON:
            raise WebhookFailed(f"{file}: key_file is missing: it signs what is sent, and the receiver checks that")
        return b""
    key_file = Path(settings.key_file)
    try:
        key = read_regular(key_file).strip()
        is_closed = not key_file.stat().st_mode & _OTHERS
    except OSError as error:
        raise WebhookFailed(f"{file}: key_file {key_file}: {error.strerror}: Squid's account has to read it") from None
    if len(key) < _KEY_BYTES_AT_LEAST or not is_closed:
        raise WebhookFailed(
            f"{file}: key_file {key_file}: expected {_KEY_BYTES_AT_LEAST} bytes at least that only its owner and group"
            f" can read: openssl rand -hex 32 >{key_file}; chmod 0640"
        )
    return key


class _WebhookFile(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    format: WebhookFormat = WebhookFormat.JSON
    key_file: str = ""
    ca_file: str = ""
