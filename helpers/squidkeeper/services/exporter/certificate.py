"""The certificates that clients depend on: of what signs for all hosts, the TLS port,
the quota store.
"""

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection
from threading import Thread
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.base.untrusted_file import read_regular
from squidkeeper.base.verified_tls import verified_tls
from squidkeeper.serving.quotas.store_settings import quota_store_file, read_quota_store

_FILE_BYTES = 1024 * 1024
_ASKED_EVERY_SECONDS: Final = 3600
_CONNECT_SECONDS: Final = 5  # for the connection, and for the handshake


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate that signs for all hosts, or that of the TLS port.

    Of a chain, the one that expires first.
    """

    file: Path
    subject: str | None = None
    """None if the file cannot be read."""
    not_after: datetime | None = None
    problem: str | None = None
    """Why it cannot be read."""
    root_sha256: str = ""
    """The fingerprint of the last one of a chain, which clients trust."""


def read_certificate(file: Path) -> Certificate:
    """Read a PEM file; never fails.

    Of a chain, the issuer counts where both expire together.
    """
    try:
        found = x509.load_pem_x509_certificates(read_regular(file, _FILE_BYTES))
    except OSError as error:
        return Certificate(file, problem=(error.strerror or str(error)).lower())
    except ValueError as error:
        return Certificate(file, problem=f"it is not a certificate in PEM: {error}")
    first = min(
        reversed(found), key=lambda certificate: certificate.not_valid_after_utc
    )
    root = found[-1].fingerprint(SHA256()).hex()
    return Certificate(
        file,
        first.subject.rfc4514_string(),
        first.not_valid_after_utc,
        root_sha256=root,
    )


class StoreCertificate(Thread):
    """When the certificate of the quota store expires, which a person renews: asked
    every hour.
    """

    not_after: datetime | None = (
        None  # None: there is no such store, or it has not answered yet
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(name="store-certificate", daemon=True)
        self._file = quota_store_file(directory)

    def run(self) -> None:
        """Ask again and again."""
        while True:
            self.ask()
            time.sleep(_ASKED_EVERY_SECONDS)

    def ask(self) -> None:
        """Ask the store; without an answer, what it has shown before stays."""
        try:
            settings = read_quota_store(self._file)
            if settings is None or settings.tls_ca is None:
                self.not_after = None
                return
            context, host = verified_tls(settings.tls_ca), str(settings.address)
            with (
                create_connection((host, settings.port), _CONNECT_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host) as store,
            ):
                shown = store.getpeercert() or {}
        except (OSError, CountsUnavailable):
            return
        self.not_after = datetime.fromtimestamp(
            ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC
        )
