"""Where several gateways keep their counts together: quota-store.yaml, a file of the
gateway's own set-up.

It is no part of the policy: whoever may edit the policy cannot choose who counts.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from squidkeeper.base.errors import CountsUnavailable, InvalidUrl
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.policy.url import Address, parse_address, parse_authority

FILE: Final = "quota-store.yaml"  # beside the folder of the policy
_GATEWAYS_AT_MOST: Final = 10_000
_OTHERS: Final = 0o007


class OnUnavailable(StrEnum):
    """What holds while the store is away."""

    LOCAL = "local"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class QuotaStoreSettings:
    """A Valkey server, and what holds without it.

    Without a CA there is no TLS, to this machine alone.
    """

    address: Address
    port: int
    user: str
    password: str = field(repr=False)
    tls_ca: Path | None
    on_unavailable: OnUnavailable
    gateways: int


def quota_store_file(directory: Path) -> Path:
    """Name the file for a gateway with its policy in this folder."""
    return directory.absolute().parent / FILE


def read_quota_store(file: Path) -> QuotaStoreSettings | None:
    """Read the file; None where there is none.

    `CountsUnavailable` says what is wrong, and shows no password.
    """
    try:
        told = msgspec.yaml.decode(file.read_bytes(), type=_QuotaStoreFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CountsUnavailable(
            f"{file}: {error.strerror}: Squid's account has to read it"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CountsUnavailable(f"{file}: {error}: {_EXPECTED}") from None
    address, port = _place(file, told.address)
    if told.tls_ca is None and not address.is_loopback:
        raise CountsUnavailable(
            f"{file}: tls_ca is missing: without TLS the store must be on this machine"
        )
    if not 1 <= told.gateways <= _GATEWAYS_AT_MOST:
        raise CountsUnavailable(
            f"{file}: gateways is {told.gateways}, expected the number of gateways that share it"
        )
    ca = None if told.tls_ca is None else Path(told.tls_ca)
    password = _password(file, Path(told.password_file))
    return QuotaStoreSettings(
        address, port, told.user, password, ca, told.on_unavailable, told.gateways
    )


def _place(file: Path, text: str) -> tuple[Address, int]:
    """Read the address.

    It is no name: nothing waits for a name server while a request waits.
    """
    try:
        host, port = parse_authority(text)
        if host.address is not None and port is not None:
            return parse_address(host.text.strip("[]")), port
    except InvalidUrl:
        pass
    raise CountsUnavailable(
        f"{file}: address {text!r} is not ADDRESS:PORT, expected one such as 10.0.0.5:6379"
    )


def _password(file: Path, password_file: Path) -> str:
    try:
        text = read_regular(password_file).decode().strip()
        is_closed = not password_file.stat().st_mode & _OTHERS
    except (OSError, UnicodeDecodeError) as error:
        raise CountsUnavailable(
            f"{file}: password_file {password_file} cannot be read: {error}"
        ) from None
    if not text or not is_closed:
        expected = (
            "expected one line that only its owner and group can read: chmod 0640"
        )
        raise CountsUnavailable(f"{file}: password_file {password_file}: {expected}")
    return text


class _QuotaStoreFile(msgspec.Struct, forbid_unknown_fields=True):
    address: str
    user: str
    password_file: str
    on_unavailable: OnUnavailable
    gateways: int
    tls_ca: str | None = None


_EXPECTED: Final = "expected address, user, password_file, tls_ca, on_unavailable (local or deny) and gateways"
