"""The certificate of the TLS port (floor 1): issued by the gateway's CA, and when it is due for another one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from squidkeeper.certificates.authority import CertificateAuthority

_VALID: Final = timedelta(days=90)
_RENEWED_BEFORE_END: Final = timedelta(days=30)
_CLOCK_DIFFERENCE: Final = timedelta(days=1)  # the clock of a VM that was suspended is behind
_SIGNS: Final = x509.KeyUsage(True, False, False, False, False, False, False, False, False)  # a handshake
_SUBJECT: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "squidkeeper TLS port")])


def issue_server_certificate(ca: CertificateAuthority, names: Sequence[str], now: datetime) -> bytes:
    """Issue a certificate for names and addresses; give it in PEM form with the chain below the root, and a new key.

    It ends after 90 days, or with the CA. ValueError if the CA cannot be read or has expired.
    """
    issuer, *above = x509.load_pem_x509_certificates(ca.certificate)
    signer = serialization.load_pem_private_key(ca.key, None)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder(issuer.subject, _SUBJECT, key.public_key(), x509.random_serial_number())
        .not_valid_before(max(now - _CLOCK_DIFFERENCE, issuer.not_valid_before_utc))
        .not_valid_after(min(now + _VALID, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_SIGNS, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key(issuer), critical=False)
        # An Ed25519 key has its own hash.
        .sign(signer, hashes.SHA256() if isinstance(signer, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) else None)  # type: ignore[arg-type] # any other kind cannot sign, which raises
    )
    chain = (certificate, *(one for one in (issuer, *above) if one.subject != one.issuer))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    return b"".join(one.public_bytes(pem) for one in chain) + private


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


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type] # a CA's key signs
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
