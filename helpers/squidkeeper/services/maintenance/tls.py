"""The TLS port: the certificate that HAProxy shows to clients, and whether HAProxy
answers.

HAProxy takes clients in front of Squid where install.sh was given --tls. Its own
service runs it; this task keeps its certificate, and hands it a new one at its runtime
API, which drops no connection.
"""

import logging
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import InvalidUrl, TlsPortFailed
from squidkeeper.policy.url import parse_host
from squidkeeper.services.maintenance.own_addresses import interface_addresses
from squidkeeper.services.maintenance.squid_process import RateLimit
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    is_server_certificate_due,
    issue_server_certificate,
)

CERTIFICATE: Final = "server.pem"  # with its chain and key; squid/haproxy.cfg names it
_SOCKET: Final = "haproxy.sock"
_ANSWER_SECONDS: Final = 1.0
_MOST_NAMES: Final = 64
# A client can make the machine take IPv6 addresses, if the gateway accepts router
# advertisements.
_RENEW_AT_MOST = ((10.0, 2), (600.0, 10))
_log = logging.getLogger(__name__)


class ServerCertificate:
    """The certificate of the TLS port: a file that Squid's account alone can read."""

    def __init__(
        self, file: Path, ca: Path, ca_key: Path, names: Callable[[], tuple[str, ...]]
    ) -> None:
        self.file = file
        self._ca = ca
        self._ca_key = ca_key
        self._names = names

    def is_due(self) -> bool:
        """Whether it has to be issued; an OSError or ValueError if the CA cannot be
        read.
        """
        return self.replaces(self.file.read_bytes() if self.file.exists() else b"")

    def replaces(self, pem: bytes) -> bool:
        """Whether another one is due for this one, in PEM form; an OSError or
        ValueError as above.
        """
        return is_server_certificate_due(
            pem, self._ca.read_bytes(), self._names(), _now()
        )

    def issue(self) -> None:
        """Issue it and replace the file; OSError, `LeafRefused` or `TlsPortFailed` if
        that fails.
        """
        ca, names, now = (
            CertificateAuthority(self._ca.read_bytes(), self._ca_key.read_bytes()),
            self._names(),
            _now(),
        )
        pem = issue_server_certificate(ca, names, now)
        if is_server_certificate_due(pem, ca.certificate, names, now):
            raise TlsPortFailed(
                f"{self._ca_key} is not the key of {self._ca}: the TLS port keeps its certificate"
            )
        _put(self.file, pem)
        _log.info("the TLS port has a new certificate, for %s", ", ".join(names))


def _now() -> datetime:
    return datetime.now(UTC)


def put_server_certificate(folder: Path, prepared: Path) -> None:
    """Put a certificate that was issued elsewhere in place, before HAProxy starts; an
    OSError if that fails.
    """
    _put(folder / CERTIFICATE, prepared.read_bytes())


def _put(file: Path, pem: bytes) -> None:
    file.parent.mkdir(mode=0o700, exist_ok=True)
    replace(file, pem, 0o600)


class TlsPort:
    """Renews the certificate when it is due, and gives it to HAProxy, which has to
    answer.
    """

    name = "tls"

    def __init__(
        self, certificate: ServerCertificate, pace: RateLimit | None = None
    ) -> None:
        self._certificate = certificate
        self._pace = pace or RateLimit(*_RENEW_AT_MOST)
        self._given = b""  # the certificate that HAProxy was given last

    def check(self) -> None:
        """Renew the certificate if it is due; an error if that fails, or if HAProxy
        does not answer.
        """
        try:
            self._renew()
        finally:
            self._give()

    def _renew(self) -> None:
        if not self._certificate.is_due():
            return
        if not self._pace.allows():
            raise TlsPortFailed(
                "the certificate of the TLS port lacks an address of this machine: its addresses change too often."
                " Name those that clients use with install.sh --tls-name"
            )
        self._certificate.issue()
        self._pace.count()

    def _give(self) -> None:
        """Send HAProxy a certificate that is new to it; without one, only ask it for a
        sign of life.
        """
        file = self._certificate.file
        pem = file.read_bytes()
        if pem == self._given:
            _ask(file.with_name(_SOCKET), "show version\n")
            return
        # One that was started meanwhile has read the file already; to be given it again
        # changes nothing.
        _ask(
            file.with_name(_SOCKET),
            f"set ssl cert {file} <<\n{pem.decode()}\n",
            "Transaction ",
        )
        _ask(file.with_name(_SOCKET), f"commit ssl cert {file}\n", "Success!")
        self._given = pem


def _ask(path: Path, command: str, expected: str = "") -> None:
    """Send a command to HAProxy's runtime API; `TlsPortFailed` without an answer, or
    with an unexpected one.
    """
    try:
        with socket.socket(socket.AF_UNIX) as api:
            api.settimeout(_ANSWER_SECONDS)
            api.connect(str(path))
            api.sendall(command.encode())
            answer = (
                b"".join(iter(lambda: api.recv(4096), b""))
                .decode(errors="replace")
                .strip()
            )
    except OSError as error:
        raise TlsPortFailed(
            f"HAProxy does not answer at {path} ({error}): no client gets through"
        ) from error
    if not answer or expected not in answer:
        raise TlsPortFailed(
            f"HAProxy did not take {path.with_name(CERTIFICATE)}, and uses the one before: {answer}"
        )


def parse_server_names(text: str) -> tuple[str, ...]:
    """Parse names and addresses, separated by commas; `InvalidUrl` says which one is
    neither.
    """
    hosts = [
        parse_host(f"[{name}]" if ":" in name else name)
        for name in text.strip().split(",")
    ]
    return tuple(dict.fromkeys(host.text for host in hosts))


def server_names(listen: str) -> tuple[str, ...]:
    """Name what clients can call a proxy that listens on PORT, ADDRESS:PORT or
    [ADDRESS]:PORT.

    The address, or every address of this machine, and its host name.
    """
    address = listen.rpartition(":")[0].strip("[]")
    found = [address] if address not in ("", "0.0.0.0", "::") else _addresses()  # noqa: S104 - compared, not bound
    return (*found[:_MOST_NAMES], *_host_name())


def _addresses() -> list[str]:
    addresses = sorted(
        interface_addresses(), key=lambda address: (address.version, int(address))
    )
    # those need a zone
    return [str(address) for address in addresses if not address.is_link_local]


def _host_name() -> tuple[str, ...]:
    try:
        return (parse_host(socket.gethostname()).text,)
    except InvalidUrl:
        return ()
