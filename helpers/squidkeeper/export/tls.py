"""TLS to receivers (floor 7): verified, against the system's authorities or those of a file."""

from __future__ import annotations

import ssl
from pathlib import Path

from squidkeeper.errors import InvalidExport


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Make a context that verifies the receiver's certificate and name; raise `InvalidExport` for a faulty file."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it holds no certificate"
        raise InvalidExport(f"{ca}: cannot be used to verify the receiver ({reason}): name a PEM file") from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Squid and curl accept a CA without key usage, and many have none
    return context
