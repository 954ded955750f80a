"""TLS to a server that is verified, against the system's authorities or those of a
file.
"""

import ssl
from pathlib import Path
from typing import Final

from squidkeeper.base.untrusted_file import read_regular

_LONGEST: Final = 4 << 20


def verified_tls(ca: Path | None) -> ssl.SSLContext:
    """Make a context that verifies certificate and name; OSError (ssl.SSLError too) for
    a file that is no use.

    Reading the file waits for nobody: it may be a FIFO.
    """
    context = ssl.create_default_context(cadata=_certificates(ca) if ca else None)
    # Squid and curl accept a CA without key usage, and many have none
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def why_unusable(error: OSError) -> str:
    """Say why `verified_tls` cannot use a file."""
    if isinstance(error, ssl.SSLError):
        return "it holds no certificate"
    return str(error.strerror)


def _certificates(ca: Path) -> str:
    # an empty text would be the system's
    return read_regular(ca, _LONGEST).decode("ascii", "replace") or "none"
