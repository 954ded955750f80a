"""The certificates that clients get: who accepts them, what a bad origin's looks like, and what breaks their maker."""

import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from .curl import CurlFailed, clean, curl
from .gateway import Gateway, NewGateway
from .odd_certificates import DAY, origin_context
from .origin import Origins
from .raw import Raw, tunnel

SQUIDS_ASSERTION = "assertion failed: Write.cc"  # squid/FAULTS.md
POLICY = """
version: 1
defaults: {action: allow}
rules:
  - {name: closed, action: deny, hosts: [.closed.example, 192.0.2.7, "2001:db8::7"]}
rewrites:
  - {name: moved, hosts: [moved.example], to: "https://target.example{path}"}
"""
# What an agent's program does: the proxy and the CA from the environment, and all defaults. It prints the status.
URLLIB = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY).start()


@pytest.fixture(scope="module")
def trusting(new_gateway: NewGateway) -> Gateway:
    """A gateway whose operator lets it accept every certificate of an origin: the leaf has to show what is wrong."""
    return new_gateway(POLICY, "sslproxy_cert_error allow all").start()


@pytest.fixture
def odd(origins: Origins, tmp_path: Path) -> Origins:
    """The origins, some with certificates that are wrong."""
    authority, contexts = origins.authority, origins.contexts
    for name, starts, ends in (("expired.example", -9, -1), ("early.example", 1, 9)):
        contexts[name] = origin_context(
            authority, tmp_path, name, [x509.DNSName(name)], starts=starts * DAY, ends=ends * DAY
        )
    contexts["self.example"] = origin_context(None, tmp_path, "self.example", [x509.DNSName("self.example")])
    contexts["client.example"] = origin_context(
        authority,
        tmp_path,
        "client.example",
        [x509.DNSName("client.example")],
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    )
    origins.certificates["wrong.example"] = ("other.example",)
    origins.untrusted.add("untrusted.example")
    return origins


def python(gateway: Gateway, url: str) -> str:
    """The status that Python's urllib gets, or the last line of its error."""
    environment = {**clean(), "https_proxy": f"http://{gateway.authority}", "SSL_CERT_FILE": str(gateway.ca)}
    done = subprocess.run(
        [sys.executable, "-c", URLLIB, url], capture_output=True, text=True, check=False, env=environment
    )
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def handshake(gateway: Gateway, host: str) -> str:
    """Why a client that checks by the strictest rules refuses the certificate; empty: it accepts it."""
    context = ssl.create_default_context(cafile=str(gateway.ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with Raw(gateway) as client:
        client.connect(f"{host}:443")
        try:
            client.start_tls(context, host.strip("[]"))
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


# ── Who accepts them ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://x.closed.example/", "403"),
        ("https://moved.example/", "200"),
        ("https://open.example/", "200"),
        ("https://192.0.2.7/", "403"),
        ("https://[2001:db8::7]/", "403"),
    ],
)
def test_python_with_its_strict_defaults_and_curl_get_an_answer(
    gateway: Gateway, origins: Origins, url: str, status: str
) -> None:
    assert ssl.create_default_context().verify_flags & ssl.VERIFY_X509_STRICT
    assert python(gateway, url) == status
    assert str(curl(gateway, url).status) == status


def test_openssl_verifies_what_squid_presents_by_its_strict_rules(gateway: Gateway) -> None:
    command = ["openssl", "s_client", "-proxy", gateway.authority, "-connect", "x.closed.example:443"]
    options = [
        "-CAfile",
        str(gateway.ca),
        "-x509_strict",
        "-verify_return_error",
        "-verify_hostname",
        "x.closed.example",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, input="")
    assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
    assert "Verified peername: x.closed.example" in done.stdout


def test_a_host_with_more_letters_than_a_common_name_may_have_gets_its_page(gateway: Gateway) -> None:
    host = f"{'long.' * 20}closed.example"
    assert handshake(gateway, host) == ""
    assert curl(gateway, f"https://{host}/").status == 403


def test_an_origin_with_two_thousand_names_is_served(gateway: Gateway, origins: Origins, tmp_path: Path) -> None:
    names = [x509.DNSName(f"{'name.' * 5}{number}.example") for number in range(2000)] + [x509.DNSName("many.example")]
    origins.contexts["many.example"] = origin_context(origins.authority, tmp_path, "many.example", names)
    assert curl(gateway, "https://many.example/").status == 200


def test_an_origin_that_is_known_by_its_common_name_alone_is_served(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    origins.contexts["common.example"] = origin_context(origins.authority, tmp_path, "common.example")
    assert curl(gateway, "https://common.example/").status == 200


# ── A bad origin ────────────────────────────────────────────────────────────────────────────────────────────────────

BAD = {
    "expired.example": "certificate has expired",
    "early.example": "certificate is not yet valid",
    "self.example": "self-signed certificate",
    "untrusted.example": "unable to get local issuer certificate",
    "wrong.example": "Hostname mismatch, certificate is not valid for 'wrong.example'.",
    "client.example": "unsuitable certificate purpose",
}


@pytest.mark.parametrize("host", BAD)
def test_a_bad_origin_is_asked_nothing_and_the_client_gets_a_page(gateway: Gateway, odd: Origins, host: str) -> None:
    assert curl(gateway, f"https://{host}/").status == 503
    assert odd.seen == []


@pytest.mark.parametrize(("host", "why"), BAD.items())
def test_a_bad_origin_that_squid_is_told_to_accept_looks_bad_to_the_client_for_the_same_reason(
    trusting: Gateway, odd: Origins, host: str, why: str
) -> None:
    assert handshake(trusting, host) == why
    with pytest.raises(CurlFailed) as failed:
        curl(trusting, f"https://{host}/")
    assert failed.value.code == 60
    assert odd.seen == []


# ── What breaks it ──────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = [
    b"a\n-----BEGIN CERTIFICATE-----\n",  # security_file_certgen dies of it
    b"a\nSign=signTrusted\nSignHash=SHA256\n",
    b"a b",
    b"a\x01b",
    b"x" * 255,
    b"*",
]


def test_hostile_server_names_end_no_helper_and_no_client_that_checks_is_answered(gateway: Gateway) -> None:
    assert curl(gateway, "https://open.example/").status == 200
    helpers, squid = set(gateway.helpers("certificate")), gateway.pid
    for name in HOSTILE * 3:
        with Raw(gateway) as client:
            client.connect("h.closed.example:443")
            with pytest.raises(ssl.SSLError):
                client.start_tls(ssl.create_default_context(cafile=str(gateway.ca)), name)
    assert curl(gateway, "https://open.example/").status == 200
    assert helpers <= set(gateway.helpers("certificate"))
    assert gateway.pid == squid
    assert "sslcrtd_program #Hlpr" not in gateway.cache_log()


def visit(gateway: Gateway, host: str) -> int | None:
    """The status of a request in a new tunnel; None: there was no tunnel, or it ended."""
    try:
        with tunnel(gateway, f"{host}:443") as client:
            reply = client.get("/", host)
            return reply.status if reply else None
    except OSError:
        return None


@pytest.mark.long
def test_two_thousand_hosts_at_once_each_get_their_certificate(gateway: Gateway) -> None:
    names = [f"{number}.once.example" for number in range(2000)]
    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(lambda name: handshake(gateway, name), names)) == [""] * 2000
