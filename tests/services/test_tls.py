"""The certificate of the TLS port: what is in it, when it is due, which names it is
for.

Live: e2e/test_tls.py.
"""

from __future__ import annotations

import socket
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from squidkeeper.base.errors import InvalidUrl, TlsPortFailed
from squidkeeper.services.maintenance.squid_process import RateLimit
from squidkeeper.services.maintenance.tls import (
    ServerCertificate,
    TlsPort,
    parse_server_names,
    server_names,
)
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    is_server_certificate_due,
    issue_server_certificate,
    make_ca,
)

NOW = datetime.now(UTC)
CA = make_ca(NOW - timedelta(days=400))
NAMES = ("192.168.137.1", "gateway.example")
DAY = timedelta(days=1)


def made(ca: CertificateAuthority = CA, now: datetime = NOW) -> bytes:
    return issue_server_certificate(ca, NAMES, now)


def signed_by(
    signer: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey,
) -> CertificateAuthority:
    """A CA with a key of this kind and without a key identifier."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "slicer")])
    builder = x509.CertificateBuilder(
        name, name, signer.public_key(), 1, NOW - DAY, NOW + 20 * DAY
    )
    builder = builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    certificate = builder.sign(
        signer,
        None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256(),
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = signer.private_bytes(pem, form, serialization.NoEncryption())
    return CertificateAuthority(certificate.public_bytes(pem), key)


def test_strict_clients_accept_it_by_each_of_its_names() -> None:
    certificate = x509.load_pem_x509_certificate(made())
    store = Store(x509.load_pem_x509_certificates(CA.certificate))
    for name in (
        x509.DNSName("gateway.example"),
        x509.IPAddress(IPv4Address("192.168.137.1")),
    ):
        PolicyBuilder().store(store).time(NOW).build_server_verifier(name).verify(
            certificate, []
        )
    assert certificate.not_valid_after_utc - NOW <= 90 * DAY
    assert NOW - certificate.not_valid_before_utc >= DAY


@pytest.mark.system
@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=lambda key: type(key).__name__,
)
def test_any_kind_of_ca_can_issue_it_and_it_ends_with_the_ca(
    key: rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    ca, pem = signed_by(key), tmp_path / "server.pem"
    pem.write_bytes(made(ca))
    (tmp_path / "ca.crt").write_bytes(ca.certificate)
    command = [
        "openssl",
        "verify",
        "-verify_ip",
        "192.168.137.1",
        "-CAfile",
        str(tmp_path / "ca.crt"),
        str(pem),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert not is_server_certificate_due(made(ca), ca.certificate, NAMES, NOW), (
        "no other would last longer"
    )


def test_an_intermediate_is_sent_with_it_and_the_root_is_not() -> None:
    root = signed_by(ec.generate_private_key(ec.SECP256R1()))
    issuer = x509.load_pem_x509_certificate(root.certificate)
    key, signer = (
        ec.generate_private_key(ec.SECP256R1()),
        serialization.load_pem_private_key(root.key, None),
    )
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intermediate")])
    builder = x509.CertificateBuilder(
        issuer.subject, name, key.public_key(), 2, NOW - DAY, NOW + 10 * DAY
    )
    builder = builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    chain = builder.sign(signer, hashes.SHA256()).public_bytes(pem) + root.certificate
    ca = CertificateAuthority(
        chain, key.private_bytes(pem, form, serialization.NoEncryption())
    )
    subjects = [
        certificate.subject.rfc4514_string()
        for certificate in x509.load_pem_x509_certificates(made(ca))
    ]
    assert subjects == ["CN=squidkeeper TLS port", "CN=intermediate"]


@pytest.mark.parametrize(
    ("pem", "names", "due"),
    [
        (made(), NAMES, False),
        (made(), (*reversed(NAMES),), False),
        (made(now=NOW - 59 * DAY), NAMES, False),
        (made(now=NOW - 61 * DAY), NAMES, True),
        (made(now=NOW - 100 * DAY), NAMES, True),
        (made(now=NOW + 40 * DAY), NAMES, True),
        (made(), (*NAMES, "another.example"), True),
        (made(), NAMES[:1], True),
        (made(make_ca(NOW)), NAMES, True),
        (b"", NAMES, True),
        (b"-----BEGIN CERTIFICATE-----\ntorn", NAMES, True),
    ],
    ids=[
        *(
            "new",
            "other order",
            "31 days left",
            "29 days left",
            "ended",
            "clock was ahead",
            "one name more",
        ),
        *("one name less", "another CA", "empty", "torn"),
    ],
)
def test_when_it_is_due(pem: bytes, names: tuple[str, ...], due: bool) -> None:
    assert is_server_certificate_due(pem, CA.certificate, names, NOW) is due


def test_names_are_as_they_stand_in_a_certificate_and_what_is_none_is_refused() -> None:
    names = {
        "gateway.example": ("gateway.example",),
        "Gateway.Example.,192.168.137.1,gateway.example": (
            "gateway.example",
            "192.168.137.1",
        ),
        "2001:db8::1,bücher.example": ("2001:db8::1", "xn--bcher-kva.example"),
    }
    assert {text: parse_server_names(text) for text in names} == names
    for text in ("", ",", "a b", "a,,b", "*.example", "a/b", "1.2.3.4.5"):
        with pytest.raises(InvalidUrl):
            parse_server_names(text)


def test_a_port_alone_means_every_address_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Gateway.example")
    assert {"127.0.0.1", "gateway.example"} <= {*server_names("3129")}
    assert server_names("192.168.137.1:3129") == ("192.168.137.1", "gateway.example")
    assert server_names("[2001:db8::1]:3129") == ("2001:db8::1", "gateway.example")
    monkeypatch.setattr(socket, "gethostname", lambda: "not a name")
    assert server_names("192.168.137.1:3129") == ("192.168.137.1",)


def certificate(folder: Path, *names: str) -> ServerCertificate:
    (folder / "ca.crt").write_bytes(CA.certificate)
    (folder / "ca.key").write_bytes(CA.key)
    found = iter(names)
    return ServerCertificate(
        folder / "tls/server.pem",
        folder / "ca.crt",
        folder / "ca.key",
        lambda: (next(found),),
    )


def test_a_client_that_changes_the_machines_addresses_cannot_have_it_issued_at_will(
    tmp_path: Path,
) -> None:
    task = TlsPort(
        certificate(tmp_path, *(f"{n}.example" for n in range(20))),
        RateLimit((600.0, 2)),
    )
    for _ in range(5):
        with pytest.raises(TlsPortFailed, match="HAProxy does not answer"):
            task.check()
    held = x509.load_pem_x509_certificate((tmp_path / "tls/server.pem").read_bytes())
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["3.example"], (
        "of the second renewal"
    )


def test_a_key_of_another_ca_issues_nothing(tmp_path: Path) -> None:
    made = certificate(tmp_path, "a.example", "a.example")
    made.issue()
    before = made.file.read_bytes()
    (tmp_path / "ca.key").write_bytes(make_ca(NOW).key)
    with pytest.raises(TlsPortFailed, match=r"ca\.key is not the key of .*ca\.crt"):
        made.issue()
    assert made.file.read_bytes() == before


def test_a_ca_that_cannot_be_read_fails_the_task_and_leaves_the_certificate(
    tmp_path: Path,
) -> None:
    made = certificate(tmp_path, "a.example", "a.example")
    made.issue()
    before = made.file.read_bytes()
    (tmp_path / "ca.crt").write_bytes(b"torn")
    with pytest.raises((ValueError, TlsPortFailed)):
        TlsPort(made).check()
    assert made.file.read_bytes() == before
    assert made.file.stat().st_mode & 0o777 == 0o600
