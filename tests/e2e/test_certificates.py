"""The certificates that clients get: who accepts them, what a bad origin's looks like,
and what breaks their maker.
"""

import os
import signal
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from cryptography import x509

from tests.waiting import wait_for

from .curl import CurlFailed, answer, clean, curl
from .gateway import Gateway, NewGateway
from .odd_certificates import make_certificates_odd, origin_context
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
# What an agent's program does: the proxy and the CA from the environment, and all
# defaults. It prints the status.
URLLIB = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def trusting(new_gateway: NewGateway) -> Gateway:
    """A gateway whose operator lets it accept every certificate of an origin: the leaf
    has to show what is wrong.
    """
    return new_gateway(POLICY, "sslproxy_cert_error allow all").start()


@pytest.fixture
def odd(origins: Origins) -> Origins:
    """The origins, some with certificates that are wrong."""
    make_certificates_odd(origins, ".example")
    return origins


def python(gateway: Gateway, url: str) -> str:
    """The status that Python's urllib gets, or the last line of its error."""
    environment = {
        **clean(),
        "https_proxy": f"http://{gateway.authority}",
        "SSL_CERT_FILE": str(gateway.ca),
    }
    done = subprocess.run(
        [sys.executable, "-c", URLLIB, url],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def handshake(gateway: Gateway, host: str) -> str:
    """Why a client that checks by the strictest rules refuses the certificate; empty:
    it accepts it.
    """
    context = ssl.create_default_context(cafile=str(gateway.ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with Raw(gateway) as client:
        client.connect(f"{host}:443")
        try:
            client.start_tls(context, host.strip("[]"))
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


# ── Who accepts them ──────────────────────────────────────────────────────────────────


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


def test_a_host_with_more_letters_than_a_common_name_may_have_gets_its_page(
    gateway: Gateway,
) -> None:
    host = f"{'long.' * 20}closed.example"
    assert handshake(gateway, host) == ""
    assert curl(gateway, f"https://{host}/").status == 403


def test_an_origin_with_two_thousand_names_is_served(
    gateway: Gateway, origins: Origins
) -> None:
    names = [
        x509.DNSName(f"{'name.' * 5}{number}.example") for number in range(2000)
    ] + [x509.DNSName("many.example")]
    origins.contexts["many.example"] = origin_context(
        origins.authority, "many.example", names
    )
    assert curl(gateway, "https://many.example/").status == 200


def test_an_origin_that_is_known_by_its_common_name_alone_is_served(
    gateway: Gateway, origins: Origins
) -> None:
    origins.contexts["common.example"] = origin_context(
        origins.authority, "common.example"
    )
    assert curl(gateway, "https://common.example/").status == 200


# ── A bad origin ──────────────────────────────────────────────────────────────────────

BAD = {
    "expired.example": "certificate has expired",
    "early.example": "certificate is not yet valid",
    "self.example": "self-signed certificate",
    "untrusted.example": "unable to get local issuer certificate",
    "wrong.example": "Hostname mismatch, certificate is not valid for 'wrong.example'.",
    "client.example": "unsuitable certificate purpose",
}


@pytest.mark.parametrize("host", BAD)
def test_a_bad_origin_is_asked_nothing_and_the_client_gets_a_page(
    gateway: Gateway, odd: Origins, host: str
) -> None:
    assert curl(gateway, f"https://{host}/").status == 503
    assert odd.seen == []
    if host == "untrusted.example":
        fault = "X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY@depth=0"
        wait_for(
            lambda: any(
                host in line["url"] and fault in line["tls_error"]
                for line in gateway.log()
            ),
            fault,
        )


@pytest.mark.parametrize(("host", "why"), BAD.items())
def test_a_bad_origin_that_squid_is_told_to_accept_looks_bad_to_the_client_for_the_same_reason(
    trusting: Gateway, odd: Origins, host: str, why: str
) -> None:
    assert handshake(trusting, host) == why
    with pytest.raises(CurlFailed) as failed:
        curl(trusting, f"https://{host}/")
    assert failed.value.code == 60
    assert odd.seen == []


def test_an_origin_whose_certificate_cannot_be_read_fails_at_once_and_is_told(
    gateway: Gateway, origins: Origins
) -> None:
    """OpenSSL, and so Squid, does not read this extension."""
    names = [x509.DNSName("unreadable.example")]
    garbage = x509.UnrecognizedExtension(
        x509.AuthorityInformationAccess.oid, b"\x04\x01x"
    )
    origins.contexts["unreadable.example"] = origin_context(
        origins.authority, "unreadable.example", names, garbage
    )
    assert handshake(gateway, "unreadable.example") == "self-signed certificate"
    assert origins.seen == []
    told = "no certificate for 'unreadable.example': \"the origin's certificate cannot be read"
    wait_for(lambda: told in gateway.cache_log(), "the line in cache.log")


# ── What breaks it ────────────────────────────────────────────────────────────────────

HOSTILE = [
    b"a\n-----BEGIN CERTIFICATE-----\n",  # security_file_certgen dies of it
    b"a\nSign=signTrusted\nSignHash=SHA256\n",
    b"a b",
    b"a\x01b",
    b"x" * 255,
    b"*",
]


def test_hostile_server_names_end_no_helper_and_no_client_that_checks_is_answered(
    gateway: Gateway,
) -> None:
    assert curl(gateway, "https://open.example/").status == 200
    helpers, squid = set(gateway.helpers("certificate")), gateway.pid
    for name in HOSTILE * 3:
        with Raw(gateway) as client:
            client.connect("h.closed.example:443")
            with pytest.raises(ssl.SSLError):
                client.start_tls(
                    ssl.create_default_context(cafile=str(gateway.ca)), name
                )
    assert curl(gateway, "https://open.example/").status == 200
    assert helpers <= set(gateway.helpers("certificate"))
    assert gateway.pid == squid
    assert "sslcrtd_program #Hlpr" not in gateway.cache_log()


@pytest.fixture(params=["squidkeeper", "squid"])
def either(
    request: pytest.FixtureRequest, gateway: Gateway, new_gateway: NewGateway
) -> Gateway:
    """A gateway whose certificates one of the two programs makes."""
    if request.param == "squidkeeper":
        return gateway
    another = new_gateway(POLICY)
    another.use_certgen()
    return another.start()


def break_certgen(gateway: Gateway, number: int) -> None:
    """security_file_certgen takes this name for a certificate, and dies of it."""
    with Raw(gateway) as client:
        client.connect(f"h{number}.closed.example:443")
        with suppress(OSError):  # no certificate could be made
            client.tls(b"a%d\n-----BEGIN CERTIFICATE-----\n" % number)


def test_server_names_that_break_a_program_for_certificates_do_not_end_squid(
    either: Gateway,
) -> None:
    squid = either.pid
    with ThreadPoolExecutor(10) as pool:
        for start in range(0, 60, 10):
            list(
                pool.map(
                    lambda number: break_certgen(either, number),
                    range(start, start + 10),
                )
            )
            assert curl(either, "https://open.example/").status == 200
            assert curl(either, "https://closed.example/").status == 403
    assert either.pid == squid
    assert (
        "FATAL: The sslcrtd_program helpers are crashing too rapidly"
        not in either.cache_log()
    )


def visit(gateway: Gateway, host: str) -> int:
    """The status of a request in a new tunnel; 0: there was no tunnel, or it ended."""
    try:
        with tunnel(gateway, f"{host}:443") as client:
            return client.get("/", host).status
    except OSError:
        return 0


@pytest.fixture(scope="module")
def impatient(new_gateway: NewGateway) -> Gateway:
    """A gateway that ends a tunnel without a certificate after two seconds, not after a
    minute.
    """
    return new_gateway(POLICY, "request_timeout 2 seconds").start()


def unread_by(pids: list[int]) -> bool:
    """Whether a process has not read all of its standard input, which Squid holds as a
    socket.
    """
    inodes = {os.readlink(f"/proc/{pid}/fd/0").strip("socket:[]") for pid in pids}
    lines = subprocess.run(
        ["ss", "-Hxn"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return any(int(line.split()[2]) > 0 for line in lines if line.split()[5] in inodes)


@pytest.mark.long
@pytest.mark.parametrize("hosts", [36, 2000])
def test_helpers_that_are_killed_fail_tunnels_and_nothing_is_accepted_that_should_not_be(
    impatient: Gateway, origins: Origins, hosts: int
) -> None:
    """Each host is new, so that helpers are killed with requests in them; every third
    is closed.
    """
    names = [
        f"{number}.{'closed' if number % 3 == 0 else 'open'}.example"
        for number in range(hosts)
    ]
    before, killed = len(impatient.fatal()), 0
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(visit, impatient, name) for name in names]
        for number in range(hosts // 6, hosts - hosts // 6, hosts // 6):
            wait_for(asked[number].done, f"the answer for host {number}")
            killed += len(impatient.kill_helpers("certificate"))
    assert killed >= 4
    for name, request in zip(names, asked, strict=True):
        assert request.result() in (
            {403, 0} if ".closed." in name else {200, 403, 0}
        ), name
    assert not [
        seen.sni for seen in origins.seen if seen.sni and ".closed." in seen.sni
    ]
    wait_for(
        lambda: visit(impatient, "after.example") == 200, "service after the kills"
    )
    assert [
        line for line in impatient.fatal()[before:] if SQUIDS_ASSERTION not in line
    ] == []


def test_a_helper_that_ends_while_it_is_asked_ends_the_tunnel_after_the_request_timeout(
    impatient: Gateway,
) -> None:
    wait_for(
        lambda: visit(impatient, "open.example") == 200,
        "service, also after other tests",
    )
    impatient.kill_helpers("certificate", signal.SIGSTOP)
    with Raw(impatient) as client:
        client.connect("ended.example:443")
        with ThreadPoolExecutor(1) as pool:
            shaken = pool.submit(client.tls, "ended.example")
            wait_for(
                lambda: unread_by(impatient.helpers("certificate")),
                "Squid to ask for a certificate",
            )
            impatient.kill_helpers("certificate")
            assert isinstance(shaken.exception(), OSError)
    wait_for(lambda: visit(impatient, "open.example") == 200, "another helper")


def test_a_program_that_ends_at_once_fails_every_tunnel_and_plain_http_goes_on(
    new_gateway: NewGateway,
) -> None:
    gateway = new_gateway(POLICY, "request_timeout 2 seconds")
    gateway.edit(
        "squid.conf",
        f"\nsslcrtd_program {gateway.root}/bin/squidkeeper",
        "\nsslcrtd_program /bin/false",
    )
    gateway.start()
    assert [visit(gateway, f"{kind}.example") for kind in ("open", "x.closed")] == [
        0,
        0,
    ]
    wait_for(
        lambda: answer(gateway, "http://open.example/").status == 200, "plain http"
    )
    assert [line for line in gateway.fatal() if SQUIDS_ASSERTION not in line] == []
    assert gateway.runs


@pytest.mark.long
def test_two_thousand_hosts_at_once_each_get_their_certificate(
    gateway: Gateway,
) -> None:
    names = [f"{number}.once.example" for number in range(2000)]
    with ThreadPoolExecutor(200) as pool:
        assert (
            list(pool.map(lambda name: handshake(gateway, name), names)) == [""] * 2000
        )
