"""Which CA signs, in which files: with and without a folder, the root's key, an
intermediate.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.ca_files import CaFiles, ca_files
from squidkeeper.operate.setup.entries import Entry, remove, write_entry
from squidkeeper.operate.setup.gateway_settings import GatewaySettings
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    certificate_of,
    is_due,
    is_intermediate,
    make_ca,
    make_intermediate,
    strict_faults,
)

pytestmark = pytest.mark.system  # files of two owners

NOW = datetime.now(UTC).replace(microsecond=0)
SQUID = (13, 13)

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
KINDS: dict[str, Callable[[], Key]] = {
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-3072": lambda: rsa.generate_private_key(65537, 3072),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def given_ca(
    key: Key | None = None,
    *,
    days: int = 3650,
    path_length: int | None = None,
    identifier: bool = True,
    usage: bool = True,
    constraints: x509.NameConstraints | None = None,
) -> CertificateAuthority:
    """A CA as somebody else makes it."""
    key = key or KINDS["P-256"]()
    attributes = (
        (NameOID.ORGANIZATION_NAME, "Example"),
        (NameOID.COMMON_NAME, "Slicer CA"),
    )
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    public = key.public_key()
    begins, ends = NOW - timedelta(days=10), NOW + timedelta(days=days)
    builder = x509.CertificateBuilder(
        name, name, public, x509.random_serial_number(), begins, ends
    )
    builder = builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    )
    if usage:
        signs = x509.KeyUsage(
            False, False, False, False, False, True, True, False, False
        )
        builder = builder.add_extension(signs, critical=True)
    if identifier:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), critical=False
        )
    if constraints:
        builder = builder.add_extension(constraints, critical=True)
    certificate = builder.sign(
        key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    )
    form, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return CertificateAuthority(
        certificate.public_bytes(pem), key.private_bytes(pem, form, bare)
    )


class Place:
    """A gateway's folder, on which runs act as an installation does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout.of(root)
        self._settings: dict[str, object] = {"version": 1}

    def prepare(
        self, now: datetime = NOW, /, ca_dir: Path | None = None, **settings: object
    ) -> CaFiles:
        """Choose, and write nothing; the settings stay, as in gateway.yaml."""
        given = self._settings | settings
        checked = GatewaySettings.model_validate(given)
        found = ca_files(ca_dir, checked, self.layout, SQUID, now)
        self._settings = given
        return found

    def run(
        self, now: datetime = NOW, /, ca_dir: Path | None = None, **settings: object
    ) -> CaFiles:
        """Choose and write."""
        found = self.prepare(now, ca_dir, **settings)
        for path, entry in {**found.first, **found.read_by_squid, **found.last}.items():
            put(path, entry)
        for path in found.gone:
            remove(path)
        return found

    @property
    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def holds(self, key: bytes) -> list[str]:
        """The files that hold a key."""
        body = b"".join(key.splitlines()[1:-1])
        return [
            name
            for name, content in self.files.items()
            if body in content.replace(b"\n", b"")
        ]


def put(path: Path, entry: Entry) -> None:
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_entry(path, entry)


def folder_of(ca: CertificateAuthority, folder: Path) -> Path:
    folder.mkdir()
    (folder / "ca.crt").write_bytes(ca.certificate)
    (folder / "ca.key").write_bytes(ca.key)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "gateway").mkdir()
    return Place(tmp_path / "gateway")


def what(found: CaFiles) -> str:
    return "\n".join(text for _, text in found.said)


def assert_strict_clients_accept(
    signing: CertificateAuthority, root: bytes, folder: Path
) -> None:
    """Issue a leaf, and have OpenSSL verify it with the root alone as its anchor, as
    Python 3.13 does.
    """
    issuer, key = (
        certificate_of(signing.certificate),
        ec.generate_private_key(ec.SECP256R1()),
    )
    signer = serialization.load_pem_private_key(signing.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host.example")])
    number, ends = x509.random_serial_number(), NOW + timedelta(days=1)
    builder = x509.CertificateBuilder(
        issuer.subject, name, key.public_key(), number, NOW - timedelta(hours=1), ends
    )
    identifier = issuer.extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    ).value
    leaf = (
        builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName("host.example")]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    texts = {
        "leaf.pem": leaf.public_bytes(serialization.Encoding.PEM),
        "chain.pem": signing.certificate,
        "root.pem": root,
    }
    for file, content in texts.items():
        (folder / file).write_bytes(content)
    command = "openssl verify -x509_strict -purpose sslserver -CAfile root.pem -untrusted chain.pem leaf.pem"
    done = subprocess.run(
        command.split(), cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "leaf.pem: OK\n"), done.stderr


# ── The intermediate ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_an_intermediate_of_any_kind_of_ca_is_accepted_strictly(
    kind: str, tmp_path: Path
) -> None:
    ca = given_ca(KINDS[kind]())
    made = make_intermediate(ca, NOW)
    certificate = certificate_of(made.certificate)
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (
        True,
        x509.BasicConstraints(ca=True, path_length=0),
    )
    assert certificate.subject.rfc4514_string().startswith(
        "CN=squidkeeper intermediate CA "
    )
    assert certificate.subject.rfc4514_string().endswith(",O=Example")
    assert (
        certificate.not_valid_after_utc
        == certificate_of(ca.certificate).not_valid_after_utc
    )
    assert made.certificate.endswith(ca.certificate)
    assert_strict_clients_accept(made, ca.certificate, tmp_path)


def test_constraints_on_names_let_the_intermediate_pass(tmp_path: Path) -> None:
    within = [
        x509.DirectoryName(
            x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")])
        )
    ]
    ca = given_ca(
        constraints=x509.NameConstraints([x509.DNSName("example"), *within], None)
    )
    signing = make_intermediate(ca, NOW)
    (tmp_path / "root.pem").write_bytes(ca.certificate)
    (tmp_path / "signing.pem").write_bytes(signing.certificate)
    command = "openssl verify -x509_strict -CAfile root.pem signing.pem"
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "signing.pem: OK\n"), done.stderr


def test_a_ca_without_key_identifier_gives_its_intermediate_one_of_its_key() -> None:
    ca = given_ca(identifier=False)
    root, intermediate = (
        certificate_of(ca.certificate),
        certificate_of(make_intermediate(ca, NOW).certificate),
    )
    found = intermediate.extensions.get_extension_for_class(
        x509.AuthorityKeyIdentifier
    ).value
    assert (
        found.key_identifier
        == x509.SubjectKeyIdentifier.from_public_key(root.public_key()).digest
    )
    assert list(strict_faults(ca.certificate)) == ["subjectKeyIdentifier is missing"]


@pytest.mark.parametrize("by", ["direct", "intermediate"])
def test_what_strict_clients_miss_in_a_ca_is_told_in_each_run_with_what_to_do(
    place: Place, tmp_path: Path, by: str
) -> None:
    first = place.run(ca_dir=folder_of(given_ca(usage=False), tmp_path / "ca"), ca=by)
    for found in (first, place.run()):
        warning = "clients that check strictly, such as Python 3.13, refuse this CA: keyUsage is missing"
        assert ("WARNING", warning) in found.said
        assert (
            "--ca-dir with an empty folder makes a new CA that they accept; then every VM must"
            in what(found)
        )
    assert list(strict_faults(make_ca(NOW).certificate)) == []


def test_a_short_rsa_key_is_told() -> None:
    short = given_ca(rsa.generate_private_key(65537, 1024))
    assert list(strict_faults(short.certificate)) == [
        "its RSA key has 1024 bits, and 2048 are expected"
    ]
    assert list(strict_faults(given_ca(KINDS["RSA-2048"]()).certificate)) == []


@pytest.mark.parametrize(
    ("days", "after", "due"),
    [
        (None, 3649, False),
        (365, 334, False),
        (365, 336, True),
        (9, 5, False),
        (9, 7, True),
        (5000, 3649, False),
    ],
)
def test_an_intermediate_is_due_ahead_of_its_own_end_only(
    days: int | None, after: int, due: bool
) -> None:
    made = make_intermediate(given_ca(), NOW, days)
    assert is_due(made.certificate, NOW + timedelta(days=after)) is due


# ── A CA that is made ─────────────────────────────────────────────────────────────────


def test_a_new_gateway_has_a_root_whose_key_is_for_root_and_an_intermediate_for_squid(
    place: Place, tmp_path: Path
) -> None:
    found, layout = place.run(), place.layout
    assert sorted(place.files) == [
        f"etc/ca/{name}.{end}" for name in ("ca", "signing") for end in ("crt", "key")
    ]
    assert is_intermediate(layout.signing_cert.read_bytes())
    for path, owner, mode in (
        (layout.ca_cert, 0, 0o644),
        (layout.ca_key, 0, 0o600),
        (layout.signing_cert, 13, 0o644),
        (layout.signing_key, 13, 0o600),
    ):
        about = path.stat()
        assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (owner, mode), path
    assert layout.ca_key not in found.read_by_squid
    assert_strict_clients_accept(found.signing, layout.ca_cert.read_bytes(), tmp_path)
    before = place.files
    place.run()
    assert place.files == before


def test_an_empty_folder_gets_the_new_ca_and_the_gateway_none_of_its_key(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "ca").mkdir()
    place.run(ca_dir=tmp_path / "ca")
    key = (tmp_path / "ca/ca.key").read_bytes()
    assert stat.S_IMODE((tmp_path / "ca/ca.key").stat().st_mode) == 0o600
    assert place.holds(key) == []
    assert (tmp_path / "ca/ca.crt").read_bytes() == place.layout.ca_cert.read_bytes()
    before = place.files
    for options in ({}, {"ca_dir": tmp_path / "ca"}):
        place.run(**options)
        assert place.files == before


def test_the_key_of_the_root_may_be_kept_elsewhere_and_renews_from_there(
    place: Place, tmp_path: Path
) -> None:
    place.run(intermediate_days=90)
    (tmp_path / "ca").mkdir()
    place.layout.ca_key.rename(tmp_path / "ca/ca.key")
    (tmp_path / "ca/ca.crt").write_bytes(place.layout.ca_cert.read_bytes())
    before, later = place.files, NOW + timedelta(days=61)
    found = place.run(later)
    assert place.files == before
    assert "to be renewed: run this with --ca-dir DIR" in what(found)
    expired = NOW + timedelta(days=91)
    with pytest.raises(
        SetupFailed, match=r"^the intermediate has expired, at "
    ) as refused:
        place.run(expired)
    assert (
        refused.value.advice
        == "run this with --ca-dir DIR, the folder of the CA's ca.crt and ca.key"
    )
    with pytest.raises(SetupFailed, match=r"^the CA in place has expired$") as refused:
        place.run(NOW + timedelta(days=3651))
    assert "makes a new CA" in refused.value.advice
    place.run(later, ca_dir=tmp_path / "ca")
    assert place.files != before
    assert place.layout.ca_cert.read_bytes() == before["etc/ca/ca.crt"]
    ends = certificate_of(place.layout.signing_cert.read_bytes()).not_valid_after_utc
    assert ends == later + timedelta(days=90), "the days are remembered"


def test_the_key_beside_the_root_renews_ahead_of_the_end(place: Place) -> None:
    found = place.run(intermediate_days=90)
    begins = f"{NOW + timedelta(days=60):%Y-%m-%d %H:%M}"
    assert f"to renew it, run install.sh after {begins} UTC: nothing else does" in what(
        found
    )
    assert "WARNING" not in dict(found.said)
    before = place.files
    place.run(NOW + timedelta(days=59))
    assert place.files == before
    place.run(NOW + timedelta(days=61))
    renewed = {name for name in before if place.files[name] != before[name]}
    assert renewed == {"etc/ca/signing.crt", "etc/ca/signing.key"}


def test_other_days_make_another_intermediate_at_once(place: Place) -> None:
    place.run(intermediate_days=90)
    place.run(intermediate_days=120)
    signing = place.layout.signing_cert
    assert certificate_of(signing.read_bytes()).not_valid_after_utc == NOW + timedelta(
        days=120
    )
    place.run(intermediate_days=None)
    root = certificate_of(place.layout.ca_cert.read_bytes())
    assert (
        certificate_of(signing.read_bytes()).not_valid_after_utc
        == root.not_valid_after_utc
    )


@pytest.mark.parametrize(
    ("days", "alerted"), [(3, True), (30, True), (31, False), (None, False)]
)
def test_days_that_the_alerts_fire_for_at_once_are_warned_of(
    place: Place, tmp_path: Path, days: int | None, alerted: bool
) -> None:
    given = folder_of(given_ca(), tmp_path / "ca")
    for found in (place.run(ca_dir=given, intermediate_days=days), place.run()):
        assert (
            f"--intermediate-days {days} is little: choose 60 or more" in what(found)
        ) is alerted
        assert ("to renew it, run install.sh with --ca-dir" in what(found)) is (
            days is not None
        )


# ── A CA that is given ────────────────────────────────────────────────────────────────


def test_the_key_of_a_given_ca_is_copied_nowhere(place: Place, tmp_path: Path) -> None:
    ca = given_ca()
    given = folder_of(ca, tmp_path / "ca")
    place.run(ca_dir=given)
    assert place.holds(ca.key) == []
    assert place.layout.ca_cert.read_bytes() == ca.certificate
    before = place.files
    place.run(ca_dir=given)
    place.run()
    assert place.files == before


def test_a_given_ca_is_used_directly_where_that_is_asked_for_now_or_before(
    place: Place, tmp_path: Path
) -> None:
    ca = given_ca(KINDS["RSA-2048"]())
    given = folder_of(ca, tmp_path / "ca")
    place.run(ca_dir=given, ca="direct")
    layout = place.layout
    assert (layout.signing_cert.read_bytes(), layout.signing_key.read_bytes()) == (
        ca.certificate,
        ca.key,
    )
    assert place.holds(ca.key) == ["etc/ca/signing.key"]
    before = place.files
    found = place.run()
    assert (
        f"no intermediate: Squid signs with the CA's own key, in {layout.signing_key}"
        in what(found)
    )
    place.run(ca_dir=given)
    assert place.files == before
    with pytest.raises(
        SetupFailed,
        match="--intermediate-days is for an intermediate, and the CA signs directly",
    ):
        place.run(ca_dir=given, intermediate_days=90)
    place.run(ca_dir=given, ca="intermediate")
    assert place.holds(ca.key) == []
    place.run(ca_dir=given)
    assert is_intermediate(layout.signing_cert.read_bytes())


def test_a_path_length_that_allows_no_intermediate_is_told(
    place: Place, tmp_path: Path
) -> None:
    ca = given_ca(path_length=0)
    found = place.run(ca_dir=folder_of(ca, tmp_path / "ca"))
    assert "its path length, 0, allows no intermediate" in what(found)
    assert place.layout.signing_key.read_bytes() == ca.key
    with pytest.raises(
        SetupFailed, match="the path length of the CA, 0, allows no intermediate"
    ):
        place.run(ca_dir=tmp_path / "ca", ca="intermediate")
    better = folder_of(given_ca(path_length=1), tmp_path / "better")
    place.run(ca_dir=better)
    assert is_intermediate(place.layout.signing_cert.read_bytes()), "it was no choice"


@pytest.mark.parametrize(
    ("ca", "options", "message"),
    [
        (given_ca(days=-1), {}, "ca.crt has expired"),
        (
            given_ca(ed25519.Ed25519PrivateKey.generate()),
            {"ca": "direct"},
            "Squid does not start with the Ed25519",
        ),
        (
            given_ca(rsa.generate_private_key(65537, 1024)),
            {"ca": "direct"},
            "does not start with fewer than 2048",
        ),
        (
            given_ca(),
            {"ca": "direct", "intermediate_days": 9},
            "--intermediate-days is for an intermediate",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    place: Place,
    tmp_path: Path,
    ca: CertificateAuthority,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(SetupFailed, match=message):
        place.run(ca_dir=folder_of(ca, tmp_path / "ca"), **options)
    assert place.files == {}


def test_without_the_key_nothing_else_can_be_asked_for(
    place: Place, tmp_path: Path
) -> None:
    place.run(ca_dir=folder_of(given_ca(), tmp_path / "ca"))
    for options in ({"ca": "direct"}, {"intermediate_days": 30}):
        with pytest.raises(SetupFailed, match="the CA's key is not here") as refused:
            place.run(**options)
        assert "--ca-dir DIR" in refused.value.advice


def test_another_ca_keeps_the_former_one_beside_it_readable_by_root_alone(
    place: Place, tmp_path: Path
) -> None:
    place.run()
    root = place.files
    found = place.run(ca_dir=folder_of(given_ca(), tmp_path / "one"))
    layout = place.layout
    assert (
        "WARNING",
        f"it replaces another CA: every client must trust the new {layout.ca_cert}",
    ) in found.said
    assert (
        f"the former one is kept: {layout.ca_cert}.previous {layout.ca_key}.previous"
        in what(found)
    )
    former = {
        f"etc/ca/ca.{end}.previous": root[f"etc/ca/ca.{end}"] for end in ("crt", "key")
    }
    assert {name: place.files[name] for name in former} == former
    about = (place.root / "etc/ca/ca.key.previous").stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (0, 0o600)
    assert place.holds(root["etc/ca/ca.key"]) == ["etc/ca/ca.key.previous"], (
        "or a plain run finds another CA's key"
    )
    before = place.files
    for options in ({}, {"ca_dir": tmp_path / "one"}):
        found = place.run(**options)
        assert (place.files, dict(found.said).get("WARNING")) == (before, None)


def test_a_new_ca_in_an_empty_folder_replaces_one_in_place(
    place: Place, tmp_path: Path
) -> None:
    place.run()
    (tmp_path / "ca").mkdir()
    found = place.run(ca_dir=tmp_path / "ca")
    assert "it replaces another CA" in what(found)
    assert f"the CA's key is in {tmp_path}/ca/ca.key: keep this folder" in what(found)
    assert not place.layout.ca_key.exists()
    before = place.files
    place.run()
    assert place.files == before


def test_a_ca_that_was_issued_again_for_its_key_is_sent_with_the_leaves(
    place: Place, tmp_path: Path
) -> None:
    key = KINDS["P-256"]()
    place.run(ca_dir=folder_of(given_ca(key, days=100), tmp_path / "one"))
    longer = given_ca(key, days=200)
    found = place.run(ca_dir=folder_of(longer, tmp_path / "two"))
    assert "WARNING" not in dict(found.said)
    assert (
        f"clients need the new {place.layout.ca_cert} by {NOW + timedelta(days=100):%Y-%m-%d}"
        in what(found)
    )
    assert place.layout.signing_cert.read_bytes().endswith(longer.certificate)
    assert certificate_of(
        place.layout.signing_cert.read_bytes()
    ).not_valid_after_utc == NOW + timedelta(days=200)


def test_the_former_key_of_squid_is_kept_for_root_alone_and_goes_where_its_ca_comes_back(
    place: Place, tmp_path: Path
) -> None:
    ca = given_ca()
    given = folder_of(ca, tmp_path / "ca")
    place.run(ca_dir=given, ca="direct")
    place.run(ca_dir=folder_of(given_ca(), tmp_path / "other"), ca="direct")
    assert place.holds(ca.key) == ["etc/ca/signing.key.previous"]
    about = (place.root / "etc/ca/signing.key.previous").stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (0, 0o600)
    place.run(ca_dir=given, ca="intermediate")
    assert place.holds(ca.key) == []


@pytest.mark.parametrize(
    "missing",
    [
        "ca.key ca.crt signing.key",
        "ca.key ca.crt signing.crt",
        "ca.key signing.crt signing.key",
    ],
)
def test_a_half_is_never_replaced_by_a_new_ca(place: Place, missing: str) -> None:
    place.run()
    for name in missing.split():
        (place.root / "etc/ca" / name).unlink()
    before = place.files
    with pytest.raises(SetupFailed, match="is there, but its other half is missing"):
        place.run()
    assert place.files == before


def test_a_root_that_was_replaced_by_hand_gets_an_intermediate_of_its_own(
    place: Place,
) -> None:
    place.run()
    another = given_ca()
    place.layout.ca_cert.write_bytes(another.certificate)
    place.layout.ca_key.write_bytes(another.key)
    place.run()
    assert place.layout.signing_cert.read_bytes().endswith(another.certificate)


# ── Copies of the root's key ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("by", ["direct", "intermediate"])
def test_a_copy_of_the_key_in_place_is_removed_where_its_folder_is_given(
    place: Place, tmp_path: Path, by: str
) -> None:
    place.run()
    layout = place.layout
    ca = CertificateAuthority(layout.ca_cert.read_bytes(), layout.ca_key.read_bytes())
    given, signing = folder_of(ca, tmp_path / "ca"), layout.signing_cert.read_bytes()
    found = place.run(ca_dir=given, ca=by)
    assert f"{layout.ca_key} is removed: the CA's key is in {given}" in what(found)
    assert place.holds(ca.key) == (["etc/ca/signing.key"] if by == "direct" else [])
    assert (layout.signing_cert.read_bytes() == signing) is (by == "intermediate")
    assert (given / "ca.key").read_bytes() == ca.key
    before = place.files
    place.run()
    assert place.files == before


@pytest.mark.parametrize("link", [False, True])
def test_the_key_in_place_stays_where_the_folder_given_is_its_own(
    place: Place, tmp_path: Path, link: bool
) -> None:
    place.run()
    given = place.layout.ca_cert.parent
    if link:
        given = tmp_path / "links"
        given.mkdir()
        for name in ("ca.crt", "ca.key"):
            (given / name).symlink_to(place.layout.ca_cert.parent / name)
    before = place.files
    place.run(ca_dir=given)
    assert place.files == before
