"""Certificates of origins that are wrong, or right and unusual."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from squidkeeper.operate.demo.authority import Authority

from .origin import Origins

PEM = serialization.Encoding.PEM
DAY = timedelta(days=1)


class Intermediate(Authority):
    """An authority below another one; `der` is its certificate, which no
    origin sends.
    """

    def __init__(self, root: Authority, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            root._name,
            self._name,
            self._key.public_key(),
            x509.random_serial_number(),
            now - DAY,
            now + DAY,
        ).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.der = builder.sign(root._key, hashes.SHA256()).public_bytes(
            serialization.Encoding.DER
        )


def make_certificates_odd(origins: Origins, domain: str) -> None:
    """Make certificates of a domain that are wrong: expired, early, self, wrong,
    untrusted, client.
    """
    authority = origins.authority
    for name, starts, ends in (("expired", -9, -1), ("early", 1, 9)):
        host = name + domain
        origins.contexts[host] = origin_context(
            authority, host, [x509.DNSName(host)], starts=starts * DAY, ends=ends * DAY
        )
    own, client = f"self{domain}", f"client{domain}"
    origins.contexts[own] = origin_context(None, own, [x509.DNSName(own)])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    origins.contexts[client] = origin_context(
        authority, client, [x509.DNSName(client)], usage
    )
    origins.certificates[f"wrong{domain}"] = ("other.example",)
    origins.untrusted.add(f"untrusted{domain}")


def origin_context(
    authority: Authority | None,
    subject: str,
    names: Sequence[x509.GeneralName] = (),
    *more: x509.ExtensionType,
    starts: timedelta = -DAY,
    ends: timedelta = DAY,
) -> ssl.SSLContext:
    """A server's TLS context with a certificate that this authority signs; None: that
    signs itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    )
    issuer, signs = (authority._name, authority._key) if authority else (own, key)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer,
        own,
        key.public_key(),
        x509.random_serial_number(),
        now + starts,
        now + ends,
    )
    for extension in ([x509.SubjectAlternativeName(names)] if names else []) + list(
        more
    ):
        builder = builder.add_extension(extension, critical=False)
    pem = builder.sign(signs, hashes.SHA256()).public_bytes(PEM)
    pem += key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pem)
        context.load_cert_chain(file.name)
    return context
