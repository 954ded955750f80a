"""The certificate helper: what it keeps, and the program on pipes, as Squid runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from squidkeeper.policy.protocol.certificate_request import REQUEST_LIMIT, LeafReply
from squidkeeper.policy.protocol.lines import Result
from squidkeeper.serving.certificates.authority import CertificateAuthority, make_ca
from squidkeeper.serving.counters.reader import read_counter_files
from squidkeeper.serving.helpers.certificate import Certificates

from ..waiting import wait_for
from .conftest import Program

CA = make_ca(datetime.now(UTC) - timedelta(days=40))
OTHER_CA = make_ca(datetime.now(UTC) - timedelta(days=40))


def request(
    host: str,
    signing: str = "signTrusted",
    origin: bytes = b"",
    ca: bytes = CA.certificate,
    key: bytes = CA.key,
) -> bytes:
    body = (
        f"host={host}\nSign={signing}\nSignHash=SHA256\n".encode()
        + ca
        + key
        + (b" " + origin if origin else b"")
    )
    return b"new_certificate %d %b" % (len(body), body)


def leaf_of(reply: bytes) -> x509.Certificate:
    """The leaf in a reply, once it has been found to belong to the key beside it."""
    leaf = x509.load_pem_x509_certificate(reply)
    key = serialization.load_pem_private_key(
        reply[reply.index(b"-----BEGIN PRIVATE") :], None
    )
    assert leaf.public_key() == key.public_key()
    return leaf


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


# ── What it keeps ─────────────────────────────────────────────────────────────────────


def counted(reply: LeafReply) -> str:
    [(name, label, result)] = reply.counts
    assert (name, label) == ("squidkeeper_certificates_total", "result")
    return result


def test_the_same_request_gets_the_same_leaf_and_another_one_another() -> None:
    certificates = Certificates()
    first, again = (
        certificates.answer(request("a.example")),
        certificates.answer(request("a.example")),
    )
    assert (first.result, first.text, counted(first), counted(again)) == (
        Result.OK,
        again.text,
        "made",
        "kept",
    )
    for other in (
        request("b.example"),
        request("a.example", "signSelf"),
        request("a.example", ca=OTHER_CA.certificate),
    ):
        assert certificates.answer(other).text != first.text


def rsa_ca() -> CertificateAuthority:
    key, name = (
        rsa.generate_private_key(65537, 2048),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agents")]),
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, now, now + timedelta(days=40)
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return CertificateAuthority(
        certificate.public_bytes(pem),
        key.private_bytes(pem, form, serialization.NoEncryption()),
    )


def test_a_leaf_has_a_key_of_the_kind_of_the_cas() -> None:
    """Else Squid serves the CA's own certificate to clients that prefer its kind."""
    certificates = Certificates()
    for ca, kind in (
        (CA, ec.EllipticCurvePublicKey),
        (rsa_ca(), rsa.RSAPublicKey),
        (CA, ec.EllipticCurvePublicKey),
    ):
        leaves = [
            leaf_of(
                certificates.answer(request(host, ca=ca.certificate, key=ca.key)).text
            )
            for host in "ab"
        ]
        assert isinstance(leaves[0].public_key(), kind)
        assert leaves[0].public_key() == leaves[1].public_key()


def test_a_leaf_is_kept_for_a_day_and_for_no_longer_when_the_clock_is_set() -> None:
    clock = Clock()
    certificates = Certificates(clock)
    first = certificates.answer(request("a.example"))
    clock.now += timedelta(hours=23)
    assert certificates.answer(request("a.example")).text == first.text
    clock.now += timedelta(hours=2)
    second = certificates.answer(request("a.example"))
    assert second.text != first.text
    clock.now -= timedelta(days=20)
    assert certificates.answer(request("a.example")).text not in (
        first.text,
        second.text,
    )


def test_all_leaves_of_a_process_have_one_key_and_another_process_has_another() -> None:
    certificates = Certificates()
    one, other = (
        leaf_of(certificates.answer(request(host)).text).public_key()
        for host in ("a.example", "b.example")
    )
    assert one == other
    assert leaf_of(Certificates().answer(request("a.example")).text).public_key() != one


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "squidkeeper.serving.helpers.certificate._REPLIES_BYTES", 400_000
    )
    certificates = Certificates()
    most = 0
    for number in range(350):
        certificates.answer(request(f"{number}.example"))
        most = max(most, len(certificates._replies))
    assert 200 < most < 350


BROKEN = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            request("a.example", origin=BROKEN),
            "the origin's certificate cannot be read",
        ),
        (request("a.example", ca=BROKEN), "the CA cannot be read"),
        (
            request("a.example").replace(b"SHA256", b"SHA111"),
            "the hash SHA111 is not one of",
        ),
    ],
)
def test_a_refusal_is_a_certificate_that_nobody_accepts_kept_and_told_once(
    asked: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates()
    for _ in range(3):
        reply = certificates.answer(asked)
        assert (reply.result, counted(reply)) == (Result.OK, "refused")
        leaf = leaf_of(reply.text)
        leaf.verify_directly_issued_by(leaf)
        assert leaf.subject.rfc4514_string() == "CN=host.invalid"
    [message] = caplog.messages
    assert message.startswith("no certificate for 'a.example'")
    assert why in message


def test_a_line_of_the_log_holds_neither_newlines_nor_much_of_what_a_client_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Certificates().answer(request("x\n" * 30_000, origin=BROKEN))
    [message] = caplog.messages
    assert len(message) < 700
    assert "\n" not in message


@pytest.mark.parametrize("signing", ["signTrusted", "signUntrusted", "signSelf"])
def test_how_squid_wants_a_leaf_signed_is_how_it_is_signed(signing: str) -> None:
    origin = leaf_of(Certificates().answer(request("a.example")).text).public_bytes(
        serialization.Encoding.PEM
    )
    leaf = leaf_of(Certificates().answer(request("a.example", signing, origin)).text)
    ca = x509.load_pem_x509_certificate(CA.certificate)
    if signing == "signSelf":
        leaf.verify_directly_issued_by(leaf)
    else:
        leaf.verify_directly_issued_by(ca)


# ── The program ───────────────────────────────────────────────────────────────────────


def ask(program: Program, *pieces: bytes) -> bytes:
    """Send the pieces, each by itself; return the one reply to them."""
    for piece in pieces:
        program.stdin.write(piece)
        program.stdin.flush()
    reply = b""
    while not reply.endswith(b"\x01"):
        piece = os.read(program.stdout.fileno(), 1)
        assert piece, "the program has ended"
        reply += piece
    found = re.fullmatch(rb"(\d+ )?(OK|ERR) (\d+) (.*)\x01", reply, re.DOTALL)
    assert found
    assert int(found[3]) == len(found[4])
    return (found[1] or b"") + found[2] + b" " + found[4]


Start = Callable[[], Program]


@pytest.fixture
def start(program: Callable[..., Program], tmp_path: Path) -> Start:
    return lambda: program("certificate", "--state", str(tmp_path / "state"))


NOT_ANSWERED = [
    (b"hello", b"not a request for a certificate"),
    (b"new_certificate 3 abc", b"does not end with Sign"),
    (
        b"new_certificate %d " % (REQUEST_LIMIT + 1) + b"x" * (REQUEST_LIMIT + 1),
        b"longer than",
    ),
    (request("a.example").replace(b"signTrusted", b"signTwisted"), b"Sign is none of"),
]


def test_the_program_answers_every_request_and_ends_with_its_input(
    start: Start, tmp_path: Path
) -> None:
    program = start()
    for host in ("a.example", "b.example", "a.example"):
        reply = ask(program, request(host) + b"\n")
        assert reply.startswith(b"OK ")
        assert leaf_of(reply[3:]).subject.rfc4514_string() == f"CN={host}"
    for odd in ("-" * 300, "a.example\n-----BEGIN CERTIFICATE-----\n"):
        assert (
            leaf_of(ask(program, request(odd) + b"\n")[3:]).subject.rfc4514_string()
            == "CN=host.invalid"
        )
    assert ask(program, request("a.example", origin=BROKEN) + b"\n").startswith(b"OK ")
    half = request("c.example") + b"\n"
    assert ask(program, half[:20], half[20:500], half[500:]).startswith(b"OK ")
    assert ask(program, b"7 " + request("a.example") + b"\n").startswith(b"7 OK ")
    out, err = program.end()
    assert out == b""
    assert "no certificate for 'a.example'" in err
    assert "PRIVATE" not in err
    (slot,) = read_counter_files(tmp_path / "state/helpers")
    totals = {
        labels["result"]: value
        for name, labels, value in slot.samples
        if name == "squidkeeper_certificates_total"
    }
    assert totals == {"made": 5, "kept": 2, "refused": 1}


def test_what_is_no_request_is_answered_with_an_error_and_the_next_one_well(
    start: Start,
) -> None:
    program = start()
    for text, lacks in NOT_ANSWERED:
        reply = ask(program, text + b"\n")
        assert reply.startswith(b"ERR "), text[:40]
        assert lacks in reply
        assert ask(program, request("a.example") + b"\n").startswith(b"OK ")


def test_a_torn_request_has_no_answer_and_ends_the_program_in_order(
    start: Start,
) -> None:
    program = start()
    program.stdin.write(request("a.example")[:400])
    assert program.end()[0] == b""


HANGS = """
import signal, sys
from pathlib import Path
from squidkeeper.serving.helpers import certificate

certificate.Certificates.answer = lambda self, request: signal.pause()
certificate.run(Path(sys.argv[1]))
"""


@pytest.mark.system
@pytest.mark.long
def test_a_program_that_is_stuck_ends_after_ten_seconds_and_says_where(
    tmp_path: Path,
) -> None:
    asked = request("a.example") + b"\n"
    command = [sys.executable, "-c", HANGS, str(tmp_path / "state")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(asked)
        process.stdin.flush()
        status = wait_for(process.poll, "the end of the program")
        assert process.stderr
        told = process.stderr.read().decode()
    assert status == 1
    assert "stuck for 10 s; exiting" in told
