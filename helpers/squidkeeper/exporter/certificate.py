"""The certificates that clients depend on (floor 7): of the CA that signs for all hosts, and of the TLS port."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """The CA that signs for all hosts, or the certificate of the TLS port."""

    file: Path
    subject: str | None = None
    """None if the file cannot be read."""
    not_after: datetime | None = None
    problem: str | None = None
    """Why it cannot be read."""


def read_certificate(file: Path) -> Certificate:
    """Read the first certificate of a PEM file; never fails."""
    try:
        with file.open("rb") as source:
            found = x509.load_pem_x509_certificates(source.read(_FILE_BYTES))
    except OSError as error:
        return Certificate(file, problem=(error.strerror or str(error)).lower())
    except ValueError as error:
        return Certificate(file, problem=f"it is not a certificate in PEM: {error}")
    return Certificate(file, found[0].subject.rfc4514_string(), found[0].not_valid_after_utc)
