"""TLS to receivers: verified, against the system's authorities or those of a file."""

import ssl
from pathlib import Path

from squidkeeper.base.errors import InvalidExport
from squidkeeper.base.verified_tls import verified_tls


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Make a context that verifies the receiver's certificate and name; raise `InvalidExport` for a faulty file."""
    try:
        return verified_tls(ca)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidExport(f"{ca}: cannot be used to verify the receiver ({reason}): name a PEM file") from error
