"""The certificates of hosts: what they hold, who accepts them, and that a bad origin's
never looks good.
"""

from __future__ import annotations

import re
import subprocess
from base64 import encodebytes
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import LeafRefused
from squidkeeper.serving.certificates.authority import make_ca
from squidkeeper.serving.certificates.leaf import (
    Leaf,
    LeafKey,
    Signer,
    leaf_like,
    leaf_of_host,
    leaf_of_nobody,
    load_certificate,
    load_signer,
    sign_leaf,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PEM = serialization.Encoding.PEM
KEY = LeafKey()


@cache
def key_of(kind: str) -> CertificateIssuerPrivateKeyTypes:
    makers: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    return makers[kind]()


@cache
def signer(
    kind: str = "P-256", *, names_its_key: bool = True, ends: timedelta = 3650 * DAY
) -> Signer:
    """A CA with a key of this kind, as Squid hands it over."""
    key, name = (
        key_of(kind),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {kind}")]),
    )
    builder = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, NOW - 100 * DAY, NOW + ends
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False),
            critical=True,
        )
    )
    if names_its_key:
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    certificate = builder.sign(key, None if kind == "Ed25519" else hashes.SHA256())
    private = key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return load_signer(certificate.public_bytes(PEM), private)


def origin(
    *names: x509.GeneralName,
    subject: str | None = "origin",
    starts: datetime = NOW - DAY,
    ends: datetime = NOW + 30 * DAY,
    more: tuple[x509.ExtensionType, ...] = (),
) -> x509.Certificate:
    """A certificate of an origin, with these names and further extensions."""
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    )
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, starts, ends)
    for extension in ([x509.SubjectAlternativeName(names)] if names else []) + list(
        more
    ):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def signed(leaf: Leaf, by: Signer | None = None) -> x509.Certificate:
    return x509.load_pem_x509_certificate(sign_leaf(leaf, KEY, by))


def names_of(leaf: Leaf) -> list[str]:
    return [str(name.value) for name in leaf.names]


def verify(pem: bytes, by: Signer, folder: Path, *options: str) -> str:
    """Let OpenSSL check a leaf by its strict rules; the text ends with `OK` where it
    accepts it.
    """
    (folder / "ca.pem").write_bytes(by.certificate.public_bytes(PEM))
    (folder / "leaf.pem").write_bytes(pem)
    strict = [
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-attime",
        str(int(NOW.timestamp())),
        *options,
    ]
    command: list[str | Path] = [
        "openssl",
        "verify",
        "-CAfile",
        folder / "ca.pem",
        *strict,
        folder / "leaf.pem",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


# ── A host of its own ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "Ed25519"])
@pytest.mark.parametrize("names_its_key", [True, False])
def test_a_leaf_of_any_ca_names_the_cas_key_and_has_a_p_256_key_of_its_own(
    kind: str, names_its_key: bool
) -> None:
    ca = signer(kind, names_its_key=names_its_key)
    leaf = signed(leaf_of_host("a.example", ca.certificate, NOW), ca)
    leaf.verify_directly_issued_by(ca.certificate)
    public = leaf.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    expected = x509.SubjectKeyIdentifier.from_public_key(
        key_of(kind).public_key()
    ).digest
    found = leaf.extensions.get_extension_for_class
    assert found(x509.AuthorityKeyIdentifier).value == x509.AuthorityKeyIdentifier(
        expected, None, None
    )
    assert found(x509.SubjectKeyIdentifier).value == KEY.identifier
    assert list(found(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert found(x509.KeyUsage).value.digital_signature
    assert not found(x509.KeyUsage).value.key_cert_sign
    assert not found(x509.BasicConstraints).value.ca
    assert found(x509.BasicConstraints).critical
    assert len(leaf.extensions) == 6


@pytest.mark.system
@pytest.mark.parametrize("kind", ["P-256", "RSA-2048"])
@pytest.mark.parametrize(
    "host", ["a.example", "192.0.2.1", "[2001:db8::1]", "a." * 60 + "example"]
)
def test_openssl_accepts_it_by_its_strict_rules(
    kind: str, host: str, tmp_path: Path
) -> None:
    ca = signer(kind)
    pem = sign_leaf(leaf_of_host(host, ca.certificate, NOW), KEY, ca)
    address = host.strip("[]")
    check = ["-verify_ip", address] if host[-1] in "1]" else ["-verify_hostname", host]
    assert verify(pem, ca, tmp_path, *check).endswith("OK\n")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.example", x509.DNSName("a.example")),
        ("A.Example", x509.DNSName("A.Example")),
        ("a_b.example", x509.DNSName("a_b.example")),
        ("a.example.", x509.DNSName("a.example")),
        ("xn--caf-dma.example", x509.DNSName("xn--caf-dma.example")),
        ("localhost", x509.DNSName("localhost")),
        ("192.0.2.1", x509.IPAddress(ip_address("192.0.2.1"))),
        ("[2001:db8::1]", x509.IPAddress(ip_address("2001:db8::1"))),
        ("2001:db8::1", x509.IPAddress(ip_address("2001:db8::1"))),
    ],
)
def test_the_host_is_its_name_an_address_as_an_address(
    host: str, name: x509.GeneralName
) -> None:
    leaf = leaf_of_host(host, signer().certificate, NOW)
    assert leaf.names == (name,)
    assert leaf.subject.rfc4514_string() == f"CN={name.value}"


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a..example",
        "a b",
        "*",
        "a/b",
        "a" * 64,
        "a." * 127 + "example",
        "[a]",
        "a\n",
        "é.example",
    ],
)
def test_what_is_no_host_has_a_leaf_that_covers_none(host: str) -> None:
    assert names_of(leaf_of_host(host, signer().certificate, NOW)) == ["host.invalid"]


def test_a_host_longer_than_a_common_name_is_a_critical_alternative_name_of_no_subject() -> (
    None
):
    leaf = signed(
        leaf_of_host("a." * 60 + "example", signer().certificate, NOW), signer()
    )
    assert leaf.subject.rfc4514_string() == ""
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


@pytest.mark.parametrize(("ca_ends", "days"), [(3650 * DAY, 90), (5 * DAY, 5)])
def test_it_is_valid_from_thirty_days_ago_for_ninety_days_and_no_longer_than_the_ca(
    ca_ends: timedelta, days: int
) -> None:
    leaf = leaf_of_host("a.example", signer(ends=ca_ends).certificate, NOW)
    assert (leaf.not_before, leaf.not_after) == (NOW - 30 * DAY, NOW + days * DAY)


def test_it_is_not_valid_before_the_ca_is() -> None:
    ca = load_certificate(make_ca(NOW).certificate)
    assert (
        leaf_of_host("a.example", ca, NOW).not_before
        == ca.not_valid_before_utc
        == NOW - DAY
    )


def test_serial_numbers_are_random() -> None:
    leaf = leaf_of_host("a.example", signer().certificate, NOW)
    assert len({signed(leaf, signer()).serial_number for _ in range(20)}) == 20


@pytest.mark.parametrize("name", ["SHA256", "SHA384", "SHA512", "RSA-SHA256"])
def test_it_is_signed_with_the_hash_that_squid_asks_for(name: str) -> None:
    pem = sign_leaf(
        leaf_of_host("a.example", signer().certificate, NOW), KEY, signer(), name
    )
    algorithm = x509.load_pem_x509_certificate(pem).signature_hash_algorithm
    assert algorithm
    assert algorithm.name == name.removeprefix("RSA-").lower()


@pytest.mark.parametrize("name", ["MD5", "SHA1", "none"])
def test_a_hash_that_no_client_accepts_is_refused(name: str) -> None:
    with pytest.raises(LeafRefused, match="is not one of SHA224"):
        sign_leaf(
            leaf_of_host("a.example", signer().certificate, NOW), KEY, signer(), name
        )


# ── Like an origin's ──────────────────────────────────────────────────────────────────


def test_names_and_subject_are_the_origins() -> None:
    names = (
        x509.DNSName("a.example"),
        x509.DNSName("*.b.example"),
        x509.IPAddress(ip_address("192.0.2.1")),
    )
    leaf = leaf_like(origin(*names, subject="An Origin"), signer().certificate, NOW)
    assert leaf.names == names
    assert leaf.subject.rfc4514_string() == "CN=An Origin"


def test_nothing_else_is_copied() -> None:
    odd = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.KeyUsage(True, True, True, True, False, True, True, False, False),
        x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]
        ),
        x509.TLSFeature([x509.TLSFeatureType.status_request]),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"odd"),
    )
    others = (
        x509.RFC822Name("a@a.example"),
        x509.UniformResourceIdentifier("https://a.example/"),
    )
    leaf = signed(
        leaf_like(
            origin(x509.DNSName("a.example"), *others, more=odd),
            signer().certificate,
            NOW,
        ),
        signer(),
    )
    plain = signed(leaf_of_host("a.example", signer().certificate, NOW), signer())
    assert [extension.value for extension in leaf.extensions] == [
        extension.value for extension in plain.extensions
    ]


def test_an_origin_without_alternative_names_is_known_by_its_common_name() -> None:
    assert names_of(
        leaf_like(origin(subject="a.example"), signer().certificate, NOW)
    ) == ["a.example"]


@pytest.mark.parametrize("subject", [None, "An Origin", "a b", "a.example\0.evil"])
def test_an_origin_without_any_host_has_no_leaf(subject: str | None) -> None:
    with pytest.raises(LeafRefused, match="holds no host"):
        leaf_like(origin(subject=subject), signer().certificate, NOW)


def test_names_that_no_host_can_have_are_left_out() -> None:
    odd = [
        x509.DNSName(name) for name in ("a.example\0.evil", "a b", "", "*", "b.example")
    ]
    assert names_of(leaf_like(origin(*odd), signer().certificate, NOW)) == ["b.example"]


BAD = {
    "expired": (
        origin(x509.DNSName("a.example"), ends=NOW - DAY / 2),
        "certificate has expired",
    ),
    "long expired": (
        origin(x509.DNSName("a.example"), starts=NOW - 900 * DAY, ends=NOW - 400 * DAY),
        "certificate has expired",
    ),
    "not yet valid": (
        origin(x509.DNSName("a.example"), starts=NOW + DAY, ends=NOW + 2 * DAY),
        "certificate is not yet valid",
    ),
    "valid in ten years": (
        origin(
            x509.DNSName("a.example"), starts=NOW + 3650 * DAY, ends=NOW + 7300 * DAY
        ),
        "certificate is not yet valid",
    ),
    "another host": (origin(x509.DNSName("b.example")), "hostname mismatch"),
    "a client's": (
        origin(
            x509.DNSName("a.example"),
            more=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),),
        ),
        "unsuitable certificate purpose",
    ),
    "for any purpose": (
        origin(
            x509.DNSName("a.example"),
            more=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),),
        ),
        "unsuitable certificate purpose",
    ),
    "no server's": (
        origin(
            x509.DNSName("a.example"),
            more=(
                x509.KeyUsage(
                    False, False, False, False, False, True, True, False, False
                ),
            ),
        ),
        "unsuitable certificate purpose",
    ),
}


@pytest.mark.system
@pytest.mark.parametrize("case", BAD)
def test_a_leaf_like_a_bad_origins_is_refused_for_the_same_reason(
    case: str, tmp_path: Path
) -> None:
    bad, why = BAD[case]
    pem = sign_leaf(leaf_like(bad, signer().certificate, NOW), KEY, signer())
    told = verify(pem, signer(), tmp_path, "-verify_hostname", "a.example")
    assert why in told.lower()
    assert not told.endswith("OK\n")


@pytest.mark.system
def test_a_leaf_that_signs_itself_is_trusted_by_nobody(tmp_path: Path) -> None:
    leaf = leaf_like(
        origin(x509.DNSName("a.example"), subject="CA P-256"), signer().certificate, NOW
    )
    told = verify(sign_leaf(leaf, KEY, None), signer(), tmp_path)
    assert "verification failed" in told
    assert signed(leaf).issuer == leaf.subject


@pytest.mark.system
def test_the_leaf_of_nobody_is_trusted_by_nobody(tmp_path: Path) -> None:
    told = verify(sign_leaf(leaf_of_nobody(NOW), KEY, None), signer(), tmp_path)
    assert "self-signed certificate" in told


@pytest.mark.system
def test_a_leaf_of_squids_untrusted_ca_is_trusted_by_nobody(tmp_path: Path) -> None:
    pem = sign_leaf(
        leaf_of_host("a.example", signer("P-384").certificate, NOW),
        KEY,
        signer("P-384"),
    )
    assert "unable to get local issuer certificate" in verify(pem, signer(), tmp_path)


times = st.datetimes(datetime(1960, 1, 1), datetime(2200, 1, 1)).map(
    lambda at: at.replace(microsecond=0, tzinfo=UTC)
)


@given(times, times)
def test_a_leaf_is_valid_at_no_time_at_which_the_origin_is_not(
    one: datetime, other: datetime
) -> None:
    starts, ends = sorted((one, other))
    leaf = leaf_like(
        origin(x509.DNSName("a.example"), starts=starts, ends=ends),
        signer().certificate,
        NOW,
    )
    assert (
        leaf.not_before
        <= leaf.not_after
        <= min(ends, signer().certificate.not_valid_after_utc)
    )
    if leaf.not_before < leaf.not_after:
        assert leaf.not_before >= max(starts, signer().certificate.not_valid_before_utc)
    if not starts <= NOW <= ends:
        assert not leaf.not_before <= NOW <= leaf.not_after
    sign_leaf(leaf, KEY, signer())


def test_what_sslproxy_cert_adapt_leaves_out_is_left_out() -> None:
    old = origin(x509.DNSName("b.example"), starts=NOW + 9 * DAY, ends=NOW + 10 * DAY)
    leaf = leaf_like(
        old,
        signer().certificate,
        NOW,
        "a.example",
        ignores_start=True,
        ignores_end=True,
    )
    assert leaf == leaf_of_host("a.example", signer().certificate, NOW)


# ── Certificates that a hostile origin makes ──────────────────────────────────────────


def in_pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n%b-----END CERTIFICATE-----\n" % encodebytes(
        der
    )


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_damaged_certificates_are_refused_and_raise_nothing_else() -> None:
    names = (x509.DNSName("a.example"), x509.IPAddress(ip_address("192.0.2.1")))
    more = (
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.KeyUsage(True, False, False, False, False, False, False, False, False),
    )
    der = origin(*names, more=more).public_bytes(serialization.Encoding.DER)
    refused = 0
    for at in range(len(der)):
        for change in (der[at] ^ 1, 0, 0x80, 0xFF):
            damaged = der[:at] + bytes([change]) + der[at + 1 :]
            try:
                sign_leaf(
                    leaf_like(
                        load_certificate(in_pem(damaged)), signer().certificate, NOW
                    ),
                    KEY,
                    signer(),
                )
            except LeafRefused:
                refused += 1
    assert refused > len(der)


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"0",
        b"0\x80",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x03\x02\x01\x01",
        b"0\x80" * 2000,
    ],
)
def test_what_is_no_certificate_is_refused(der: bytes) -> None:
    with pytest.raises(LeafRefused, match=r"the origin's certificate cannot be read"):
        load_certificate(in_pem(der))


def test_ten_thousand_names_are_all_copied() -> None:
    names = [x509.DNSName(f"{number}.example") for number in range(10_000)]
    assert len(leaf_like(origin(*names), signer().certificate, NOW).names) == 10_000


def test_a_ca_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(LeafRefused, match="the CA cannot be read"):
        load_signer(
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", KEY.pem
        )


def test_a_key_never_shows() -> None:
    assert not re.search("PRIVATE|PrivateKey object", repr(signer()))
