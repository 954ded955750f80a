"""The CA of a gateway (floor 1): made, or checked where it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from squidkeeper.errors import SetupFailed

_COMMON_NAME = "squidkeeper egress CA"
_VALID = timedelta(days=3650)
_SIGNS = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # certificates and CRLs


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A certificate and its key, in PEM form."""

    certificate: bytes
    key: bytes = field(repr=False)


def make_ca(now: datetime) -> CertificateAuthority:
    """Make a CA for ten years.

    Its key is a P-256 one: Squid gives every leaf the CA's key, so its kind decides what a tunnel costs
    (tests/bench/bench.py --load fresh).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return CertificateAuthority(
        certificate.public_bytes(pem), key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    )


def check_ca(ca: CertificateAuthority) -> None:
    """Check that Squid can issue certificates with a CA; `SetupFailed` says what is wrong."""
    certificate, key = _certificate(ca.certificate), _public_key(ca.key)
    if certificate.public_key() != key:
        raise SetupFailed("ca.key is not the key of ca.crt")
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        raise SetupFailed("ca.crt is not the certificate of a CA (basicConstraints CA:TRUE is missing)")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise SetupFailed("ca.crt has expired")


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SetupFailed("ca.crt is not a certificate in PEM form") from error


def _public_key(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SetupFailed("ca.key is not a private key in PEM form without a passphrase") from error
