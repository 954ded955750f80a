"""The certificates that clients depend on (floor 7): of what signs for all hosts, and of the TLS port."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate that signs for all hosts, or that of the TLS port. Of a chain, the one that expires first."""

    file: Path
    subject: str | None = None
    """None if the file cannot be read."""
    not_after: datetime | None = None
    problem: str | None = None
    """Why it cannot be read."""
    root_sha256: str = ""
    """The fingerprint of the last one of a chain, which clients trust."""


def read_certificate(file: Path) -> Certificate:
    """Read a PEM file; never fails. Of a chain, the issuer counts where both expire together."""
    try:
        with file.open("rb") as source:
            found = x509.load_pem_x509_certificates(source.read(_FILE_BYTES))
    except OSError as error:
        return Certificate(file, problem=(error.strerror or str(error)).lower())
    except ValueError as error:
        return Certificate(file, problem=f"it is not a certificate in PEM: {error}")
    first = min(reversed(found), key=lambda certificate: certificate.not_valid_after_utc)
    root = found[-1].fingerprint(SHA256()).hex()
    return Certificate(file, first.subject.rfc4514_string(), first.not_valid_after_utc, root_sha256=root)
