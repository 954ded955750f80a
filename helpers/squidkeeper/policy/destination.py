"""Where what is sent leads: the value of `export --to`, the URL of the webhook."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import InvalidExport, InvalidUrl
from squidkeeper.policy.url import Host, bracketed, parse_authority

_PORTS: Final = {"syslog+tls": 6514, "syslog+tcp": 601, "https": 443, "http": 80}
_EXPECTED: Final = (
    "syslog+tls://HOST:PORT, syslog+tcp://HOST:PORT, https://HOST/PATH or file:/PATH"
)


class Transport(StrEnum):
    """How records travel; the scheme of the destination."""

    SYSLOG_TLS = "syslog+tls"
    SYSLOG_TCP = "syslog+tcp"
    HTTPS = "https"
    HTTP = "http"  # to this machine alone
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Destination:
    """A receiver.

    `target` is what a request over http(s) asks for, or the path of a file.
    """

    transport: Transport
    host: str = ""
    port: int = 0
    target: str = ""

    def __str__(self) -> str:
        """Name it without the query, which could hold a token."""
        if self.transport is Transport.FILE:
            return f"file:{self.target}"
        return f"{self.transport}://{self.authority}{self.target.partition('?')[0]}"

    @property
    def authority(self) -> str:
        """`host:port`; a port that is usual is left out, as in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.transport] else f"{host}:{self.port}"

    @property
    def name(self) -> str:
        """A name for what leads there, of letters, digits, dots and dashes."""
        return (self.host or Path(self.target).stem).replace(":", "-").replace("_", "-")


def parse_destination(text: str) -> Destination:
    """Parse a destination; raise `InvalidExport`."""
    scheme, _, rest = text.partition(":")
    if scheme == Transport.FILE:
        return _file(rest)
    if scheme not in [*Transport] or not rest.startswith("//"):
        raise InvalidExport(f"destination {_shown(text)!r}: expected {_EXPECTED}")
    return _remote(Transport(scheme), rest[2:])


def _file(rest: str) -> Destination:
    path = rest.removeprefix("//")
    if not path.startswith("/") or path.endswith("/"):
        raise InvalidExport(
            f"destination 'file:{rest}': expected the whole path of a file, such as file:/srv/a.ndjson"
        )
    return Destination(Transport.FILE, target=path)


def _remote(transport: Transport, rest: str) -> Destination:
    authority, slash, path = rest.partition("/")
    target = f"{slash}{path}".partition("#")[0]
    if "@" in authority:
        raise InvalidExport(
            f"destination {transport}://…@…: a password does not belong there, every process can read it: use --headers"
        )
    host, port = _parsed(authority)
    if transport is Transport.HTTP and not (
        host.text == "localhost" or (host.address and host.address.is_loopback)
    ):
        raise InvalidExport(
            f"destination http://{authority}: unencrypted only to this machine: use https"
        )
    if transport in (Transport.SYSLOG_TLS, Transport.SYSLOG_TCP):
        if target.strip("/"):
            raise InvalidExport(
                f"destination {transport}://{authority}: syslog has no path: expected {_EXPECTED}"
            )
        target = ""
    elif not target.isascii() or not target.isprintable() or " " in target:
        raise InvalidExport(
            f"destination {transport}://{authority}: its path holds characters that must be encoded"
        )
    else:
        target = target or "/"
    return Destination(
        transport, bracketed(host).strip("[]"), port or _PORTS[transport], target
    )


def _parsed(authority: str) -> tuple[Host, int | None]:
    try:
        return parse_authority(authority)
    except InvalidUrl as error:
        raise InvalidExport(f"destination: {error}: expected {_EXPECTED}") from error


def _shown(text: str) -> str:
    """Show a text that may be a whole URL: what follows `?` or precedes `@` may be a
    secret.
    """
    return text.partition("?")[0].rpartition("@")[2]
