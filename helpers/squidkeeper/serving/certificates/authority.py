"""The CA of a gateway: the root that clients trust, the intermediate that signs the
leaves, the TLS port's own leaf.

A leaf has a key of the kind of what signs it, and Squid decodes both for each tunnel:
that kind decides what a tunnel costs (tests/bench/bench.py --load fresh). An
intermediate has a P-256 key, whatever the root's key is, and keeps the root's key off
the gateway.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from squidkeeper.base.errors import SetupFailed
from squidkeeper.serving.certificates.leaf import Leaf, LeafKey, load_signer, sign_leaf

_COMMON_NAME = "squidkeeper egress CA"
_SERVER_NAME = x509.Name(
    [x509.NameAttribute(NameOID.COMMON_NAME, "squidkeeper TLS port")]
)
_INTERMEDIATE = (
    "squidkeeper intermediate CA "  # followed by a part of its key's identifier
)
_VALID = timedelta(days=3650)
_CLOCK_SKEW = timedelta(days=1)  # the clock of a client may be behind
_SERVER_VALID = timedelta(days=90)
# the clock of a VM that was restored from a snapshot is behind
_VM_CLOCK_SKEW = timedelta(days=30)
_RENEW_BEFORE = timedelta(days=30)
_LEAST_RSA_BITS = 2048  # OpenSSL's security level 2, which Python and Debian ask for
# certificates and CRLs
_SIGNS = x509.KeyUsage(False, False, False, False, False, True, True, False, False)

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A certificate and its key, in PEM form.

    The certificates of what issued it may follow its own.
    """

    certificate: bytes
    key: bytes = field(repr=False)


def make_ca(now: datetime) -> CertificateAuthority:
    """Make a root for ten years; it may sign intermediates."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
    builder = _builder(key, name, name, path_length=1)
    certificate = (
        builder.not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    return CertificateAuthority(_pem(certificate), _key_pem(key))


def make_intermediate(
    ca: CertificateAuthority, now: datetime, days: int | None = None
) -> CertificateAuthority:
    """Make an intermediate of a CA, which ends with it, or after that many days; the
    CA's certificate follows its own.

    Its name keeps what the CA's has beside its common name: constraints on names may
    ask for it.
    """
    issuer, signer, key = (
        certificate_of(ca.certificate),
        _private_key(ca.key),
        ec.generate_private_key(ec.SECP256R1()),
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(
        key.public_key()
    ).digest.hex()
    common = x509.NameAttribute(NameOID.COMMON_NAME, f"{_INTERMEDIATE}{identifier[:8]}")
    others = [
        rdn
        for rdn in issuer.subject.rdns
        if not rdn.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    name = x509.Name([*others, x509.RelativeDistinguishedName([common])])
    ends = (
        issuer.not_valid_after_utc
        if days is None
        else min(issuer.not_valid_after_utc, now + timedelta(days=days))
    )
    certificate = (
        _builder(key, name, issuer.subject, path_length=0)
        .not_valid_before(max(issuer.not_valid_before_utc, now - _CLOCK_SKEW))
        .not_valid_after(ends)
        .add_extension(_identifier_of(issuer), critical=False)
        .sign(signer, _hash_for(signer))
    )
    return CertificateAuthority(_pem(certificate) + ca.certificate, _key_pem(key))


def certificate_of(pem: bytes) -> x509.Certificate:
    """Load the first certificate of a file."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SetupFailed("ca.crt is not a certificate in PEM form") from error


def check_ca(ca: CertificateAuthority, now: datetime) -> None:
    """Check that certificates can be issued with a CA; `SetupFailed` says what is
    wrong.
    """
    certificate, key = certificate_of(ca.certificate), _private_key(ca.key)
    if certificate.public_key() != key.public_key():
        raise SetupFailed("ca.key is not the key of ca.crt")
    constraints = _extension(certificate, x509.BasicConstraints)
    if not constraints or not constraints.value.ca:
        raise SetupFailed(
            "ca.crt is not the certificate of a CA (basicConstraints CA:TRUE is missing)"
        )
    usage = _extension(certificate, x509.KeyUsage)
    if usage and not usage.value.key_cert_sign:
        raise SetupFailed(
            "ca.crt may not sign certificates (keyUsage is there, without keyCertSign)"
        )
    if certificate.not_valid_after_utc <= now:
        raise SetupFailed("ca.crt has expired")


def check_direct(ca: CertificateAuthority) -> None:
    """Check that Squid can use a CA itself: it ends where it cannot sign its
    certificate for untrusted sites.
    """
    key = _private_key(ca.key)
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _LEAST_RSA_BITS:
        what = (
            f"the RSA key of the CA has {key.key_size} bits, and Squid does not "
            f"start with fewer than {_LEAST_RSA_BITS}"
        )
        raise SetupFailed(
            what, "use another CA: --ca-dir with an empty folder makes one"
        )
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        raise SetupFailed(
            "Squid does not start with the Ed25519 or Ed448 key of a CA",
            "use the CA by an intermediate (--ca intermediate), or one with an RSA or ECDSA key",
        )


def strict_faults(pem: bytes) -> Iterator[str]:
    """List why clients that check strictly, as Python does from 3.13 on, refuse a CA's
    certificate.
    """
    certificate = certificate_of(pem)
    key = certificate.public_key()
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints and not constraints.critical:
        yield "basicConstraints is not critical"
    if not _extension(certificate, x509.KeyUsage):
        yield "keyUsage is missing"
    if not _extension(certificate, x509.SubjectKeyIdentifier):
        yield "subjectKeyIdentifier is missing"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        yield f"its RSA key has {key.key_size} bits, and {_LEAST_RSA_BITS} are expected"


def may_sign_intermediates(ca: CertificateAuthority) -> bool:
    """Whether the path length of a CA, if it has one, leaves room for an
    intermediate.
    """
    constraints = _extension(certificate_of(ca.certificate), x509.BasicConstraints)
    return not constraints or constraints.value.path_length != 0


def is_intermediate(pem: bytes) -> bool:
    """Whether a certificate is an intermediate of ours."""
    names = certificate_of(pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return any(str(name.value).startswith(_INTERMEDIATE) for name in names)


def is_key_of(key: bytes, pem: bytes) -> bool:
    """Whether a key is that of a certificate."""
    try:
        return _private_key(key).public_key() == certificate_of(pem).public_key()
    except SetupFailed:
        return False


def issuer_of(pem: bytes) -> bytes:
    """Return the certificates that follow the first one of a file: of what
    issued it.
    """
    return b"".join(map(_pem, x509.load_pem_x509_certificates(pem)[1:]))


def is_issued_by(pem: bytes, ca: CertificateAuthority) -> bool:
    """Whether a certificate was issued with the key, and by the name, of a CA."""
    try:
        certificate_of(pem).verify_directly_issued_by(certificate_of(ca.certificate))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_due(pem: bytes, now: datetime) -> bool:
    """Whether an intermediate is to be renewed: its end is near, before that of what
    issued it.
    """
    begins = renewed_from(pem)
    return begins is not None and now > begins


def renewed_from(pem: bytes) -> datetime | None:
    """Tell when the renewal of an intermediate begins; None where it ends with what
    issued it.
    """
    certificate = certificate_of(pem)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    rest = x509.load_pem_x509_certificates(pem)[1:]
    renewable = not rest or ends < rest[0].not_valid_after_utc
    return ends - min(_RENEW_BEFORE, (ends - begins) / 3) if renewable else None


def _builder(
    key: ec.EllipticCurvePrivateKey,
    name: x509.Name,
    issuer: x509.Name,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder(issuer, name, public, x509.random_serial_number())
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=path_length), critical=True
        )
        .add_extension(_SIGNS, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), critical=False
        )
    )


def _identifier_of(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = _extension(issuer, x509.SubjectKeyIdentifier)
    identifier = (
        found.value
        if found
        else x509.SubjectKeyIdentifier.from_public_key(issuer.public_key())
    )
    return x509.AuthorityKeyIdentifier(identifier.digest, None, None)


def _hash_for(key: _PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None  # they have a hash of their own
    bits = key.key_size if isinstance(key, ec.EllipticCurvePrivateKey) else 256
    return (
        hashes.SHA256()
        if bits <= 256
        else hashes.SHA384()
        if bits <= 384
        else hashes.SHA512()
    )


def _extension(
    certificate: x509.Certificate, kind: type[_Kind]
) -> x509.Extension[_Kind] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except (x509.ExtensionNotFound, ValueError):
        return None


def _private_key(pem: bytes) -> _PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SetupFailed(
            "ca.key is not a private key in PEM form without a passphrase"
        ) from error
    if not isinstance(key, _PrivateKey):
        raise SetupFailed(
            "ca.key is of a kind that signs no certificates: use an RSA, ECDSA, Ed25519 or Ed448 key"
        )
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    )


def issue_server_certificate(
    ca: CertificateAuthority, names: Sequence[str], now: datetime
) -> bytes:
    """Issue a certificate for names and addresses; give it in PEM form with the chain
    below the root, and a new key.

    It ends after 90 days, or with the CA. `LeafRefused` if the CA cannot be read or has
    expired.
    """
    signer, key = load_signer(ca.certificate, ca.key), LeafKey()
    begin = max(now - _VM_CLOCK_SKEW, signer.certificate.not_valid_before_utc)
    end = min(now + _SERVER_VALID, signer.certificate.not_valid_after_utc)
    leaf = sign_leaf(
        Leaf(_SERVER_NAME, tuple(map(_general, names)), begin, end), key, signer
    )
    below_root = (
        one
        for one in x509.load_pem_x509_certificates(ca.certificate)
        if one.subject != one.issuer
    )
    return (
        leaf
        + b"".join(certificate.public_bytes(Encoding.PEM) for certificate in below_root)
        + key.pem
    )


def is_server_certificate_due(
    pem: bytes, ca: bytes, names: Sequence[str], now: datetime
) -> bool:
    """Whether a certificate in PEM form has to be issued again: by this CA, for these
    names, in good time.
    """
    issuer, *_ = x509.load_pem_x509_certificates(ca)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(issuer)
        held = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return True
    ends_soon = certificate.not_valid_after_utc - now < _RENEW_BEFORE
    outlived = (
        ends_soon and certificate.not_valid_after_utc < issuer.not_valid_after_utc
    )
    return (
        outlived
        or now < certificate.not_valid_before_utc
        or {*held} != {_general(name) for name in names}
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
