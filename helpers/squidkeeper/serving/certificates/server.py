"""The certificate of the TLS port: issued by the gateway's CA, and when it is due for another one."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from squidkeeper.serving.certificates.authority import CertificateAuthority
from squidkeeper.serving.certificates.leaf import Leaf, LeafKey, load_signer, sign_leaf

_VALID: Final = timedelta(days=90)
_RENEWED_BEFORE_END: Final = timedelta(days=30)
_CLOCK_DIFFERENCE: Final = timedelta(days=30)  # the clock of a VM that was restored from a snapshot is behind
_SUBJECT: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "squidkeeper TLS port")])


def issue_server_certificate(ca: CertificateAuthority, names: Sequence[str], now: datetime) -> bytes:
    """Issue a certificate for names and addresses; give it in PEM form with the chain below the root, and a new key.

    It ends after 90 days, or with the CA. `LeafRefused` if the CA cannot be read or has expired.
    """
    signer, key = load_signer(ca.certificate, ca.key), LeafKey()
    begin = max(now - _CLOCK_DIFFERENCE, signer.certificate.not_valid_before_utc)
    end = min(now + _VALID, signer.certificate.not_valid_after_utc)
    leaf = sign_leaf(Leaf(_SUBJECT, tuple(map(_general, names)), begin, end), key, signer)
    below_root = (one for one in x509.load_pem_x509_certificates(ca.certificate) if one.subject != one.issuer)
    return leaf + b"".join(one.public_bytes(Encoding.PEM) for one in below_root) + key.pem


def is_server_certificate_due(pem: bytes, ca: bytes, names: Sequence[str], now: datetime) -> bool:
    """Tell whether a certificate in PEM form has to be issued again: by this CA, for these names, in good time."""
    issuer, *_ = x509.load_pem_x509_certificates(ca)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(issuer)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return True
    ends_soon = certificate.not_valid_after_utc - now < _RENEWED_BEFORE_END
    outlived = ends_soon and certificate.not_valid_after_utc < issuer.not_valid_after_utc
    return outlived or now < certificate.not_valid_before_utc or {*held} != {_general(name) for name in names}


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
