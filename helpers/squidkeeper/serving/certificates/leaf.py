"""A leaf: the certificate of one host, signed by a CA. Pure but for the random serial
number.

A leaf for a host that was not asked holds that host. One that mimics the certificate of
an origin holds the origin's names and is as valid as that is, and no more: what makes a
client refuse the names, the dates or the purpose of the origin makes it refuse the
leaf. Nothing else is copied: Squid verifies the chain of the origin, and no client sees
its weak key or signature, or its revocation.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from squidkeeper.base.errors import LeafRefused

_Hash = hashes.SHA224 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512
E = TypeVar("E", bound=x509.ExtensionType)

# A machine that was restored from a snapshot may have an old clock.
_VALID_BEFORE: Final = timedelta(days=30)
_VALID_AFTER: Final = timedelta(days=90)
_LONGEST_COMMON_NAME: Final = 64  # RFC 5280, A.1
_LONGEST_NAME: Final = 253
_RSA_BITS: Final = 2048
_DNS_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_HASHES: Final[dict[str, _Hash]] = {
    "SHA224": hashes.SHA224(),
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
# TLS handshakes
_SIGNS: Final = x509.KeyUsage(
    True, False, False, False, False, False, False, False, False
)
_SERVER: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_NOT_A_SERVER: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_NO_HOST: Final = x509.DNSName("host.invalid")  # RFC 2606
_NO_CA: Final = x509.BasicConstraints(ca=False, path_length=None)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf says: its subject, its names, from when to when it is valid, and
    whether it is a server's.
    """

    subject: x509.Name
    names: tuple[x509.GeneralName, ...]
    not_before: datetime
    not_after: datetime
    usage: x509.ExtendedKeyUsage = _SERVER


@dataclass(frozen=True, slots=True)
class Signer:
    """A CA that signs leaves: its certificate and its private key."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes = field(repr=False)
    identifier: x509.AuthorityKeyIdentifier  # of its key, as leaves name it

    @property
    def is_rsa(self) -> bool:
        """Whether its key is an RSA key."""
        return isinstance(self.key, rsa.RSAPrivateKey)


class LeafKey:
    """The key of leaves: ECDSA P-256, but RSA-2048 under a CA with an RSA key.

    It is never written.

    Squid adds the leaf to a TLS context that has the CA's certificate, and OpenSSL
    serves one certificate for each kind of key. So beside an ECDSA leaf an RSA CA's own
    certificate would be served to clients that prefer RSA (GnuTLS, Go).
    """

    def __init__(self, *, is_rsa: bool = False) -> None:
        self.private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = (
            rsa.generate_private_key(65537, _RSA_BITS)
            if is_rsa
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.public = self.private.public_key()
        self.identifier = x509.SubjectKeyIdentifier.from_public_key(self.public)
        self.pem = self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def load_signer(certificate: bytes, key: bytes) -> Signer:
    """Load a CA from its certificate and its key, both in PEM form; `LeafRefused` where
    that fails.
    """
    try:
        ca = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        return Signer(ca, private, _identifier(ca))  # type: ignore[arg-type] # signing fails with a key that cannot sign
    except _UNREADABLE as error:
        raise LeafRefused(f"the CA cannot be read: {error}") from error


def load_certificate(pem: bytes) -> x509.Certificate:
    """Load the certificate of an origin; `LeafRefused` where it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except _UNREADABLE as error:
        raise LeafRefused(
            f"the origin's certificate cannot be read: {error}"
        ) from error


def leaf_of_host(host: str, ca: x509.Certificate, now: datetime) -> Leaf:
    """Describe the leaf of a host.

    What is neither a DNS name nor an IP address gets a leaf that covers no host: its
    client gets a page all the same.
    """
    name = _name(host) or _NO_HOST
    return Leaf(
        _subject(name),
        (name,),
        max(now - _VALID_BEFORE, ca.not_valid_before_utc),
        _end(ca, now),
    )


def leaf_of_nobody(now: datetime) -> Leaf:
    """Describe a leaf that covers no host; signed by itself, no client accepts it."""
    return Leaf(
        _subject(_NO_HOST), (_NO_HOST,), now - _VALID_BEFORE, now + _VALID_AFTER
    )


def leaf_like(
    origin: x509.Certificate,
    ca: x509.Certificate,
    now: datetime,
    host: str | None = None,
    *,
    ignores_start: bool = False,
    ignores_end: bool = False,
) -> Leaf:
    """Describe the leaf that mimics the certificate of an origin.

    `host` replaces its names; the others leave out a limit of its validity. These are
    Squid's `sslproxy_cert_adapt`.
    """
    usual = leaf_of_host(host, ca, now) if host else None
    try:
        subject, names = (
            (usual.subject, usual.names) if usual else (origin.subject, _names(origin))
        )
        end = (
            _end(ca, now)
            if ignores_end
            else min(_end(ca, now), origin.not_valid_after_utc)
        )
        start = max(now - _VALID_BEFORE, ca.not_valid_before_utc)
        if not ignores_start:
            start = max(start, origin.not_valid_before_utc)
        usage = _SERVER if _is_for_servers(origin) else _NOT_A_SERVER
    except _UNREADABLE as error:
        raise LeafRefused(
            f"the origin's certificate cannot be read: {error}"
        ) from error
    if not names:
        raise LeafRefused("the origin's certificate holds no host")
    return Leaf(subject, names, min(start, end), end, usage)


def sign_leaf(
    leaf: Leaf, key: LeafKey, signer: Signer | None, hash_name: str = "SHA256"
) -> bytes:
    """Sign a leaf, in PEM form; without a signer it is signed by its own key.

    `LeafRefused` where that fails.
    """
    issuer = signer.certificate.subject if signer else leaf.subject
    identifier = signer.identifier if signer else _named_by(key.identifier)
    private = signer.key if signer else key.private
    try:
        return (
            x509.CertificateBuilder(
                issuer, leaf.subject, key.public, x509.random_serial_number()
            )
            .not_valid_before(leaf.not_before)
            .not_valid_after(leaf.not_after)
            .add_extension(
                x509.SubjectAlternativeName(leaf.names), critical=not leaf.subject.rdns
            )
            .add_extension(_NO_CA, critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(leaf.usage, critical=False)
            .add_extension(key.identifier, critical=False)
            .add_extension(identifier, critical=False)
            .sign(private, _hash(hash_name, private))
            .public_bytes(serialization.Encoding.PEM)
        )
    except _UNREADABLE as error:
        raise LeafRefused(f"the leaf cannot be signed: {error}") from error


def _name(host: str) -> x509.GeneralName | None:
    """Return a host as a name in a certificate; None where it is neither an IP address
    nor a DNS name.
    """
    try:
        return x509.IPAddress(ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        name = host.removesuffix(".")
        return (
            x509.DNSName(name)
            if _DNS_NAME.fullmatch(name) and len(name) <= _LONGEST_NAME
            else None
        )


def _subject(name: x509.GeneralName) -> x509.Name:
    """Return the subject for a name: empty where the name is longer than a common name
    may be.
    """
    text = str(name.value)
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, text)]
        if len(text) <= _LONGEST_COMMON_NAME
        else []
    )


def _names(origin: x509.Certificate) -> tuple[x509.GeneralName, ...]:
    alternatives = _extension(origin, x509.SubjectAlternativeName)
    if alternatives is None:
        common = origin.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(
            name for attribute in common[-1:] if (name := _name(str(attribute.value)))
        )
    return (
        *(
            x509.DNSName(name)
            for name in alternatives.get_values_for_type(x509.DNSName)
            if _DNS_NAME.fullmatch(name)
        ),
        *map(x509.IPAddress, alternatives.get_values_for_type(x509.IPAddress)),
    )


def _is_for_servers(origin: x509.Certificate) -> bool:
    """Whether OpenSSL, as a client, takes a certificate for a server's
    (X509_check_purpose).
    """
    usage, extended = (
        _extension(origin, x509.KeyUsage),
        _extension(origin, x509.ExtendedKeyUsage),
    )
    of_tls = (
        usage is None
        or usage.digital_signature
        or usage.key_encipherment
        or usage.key_agreement
    )
    return of_tls and (extended is None or ExtendedKeyUsageOID.SERVER_AUTH in extended)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _end(ca: x509.Certificate, now: datetime) -> datetime:
    return min(now + _VALID_AFTER, ca.not_valid_after_utc)


def _identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = _extension(ca, x509.SubjectKeyIdentifier)
    return _named_by(own or x509.SubjectKeyIdentifier.from_public_key(ca.public_key()))


def _named_by(identifier: x509.SubjectKeyIdentifier) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier(identifier.digest, None, None)


def _hash(name: str, key: CertificateIssuerPrivateKeyTypes) -> _Hash | None:
    if isinstance(
        key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
    ):  # their signatures have a hash of their own
        return None
    found = _HASHES.get(name.removeprefix("RSA-"))
    if found is None:
        raise LeafRefused(f"the hash {name} is not one of {', '.join(_HASHES)}")
    return found
