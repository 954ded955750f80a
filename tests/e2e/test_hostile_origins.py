"""Origins that attack the gateway: by answers that end Squid, by certificates that
Squid fetches.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from tests.waiting import wait_for

from .curl import curl
from .dns import Names
from .gateway import Gateway, NewGateway
from .odd_certificates import Intermediate, origin_context
from .origin import Answer, Bytes, Origins
from .raw import Raw

POLICY = """
version: 1
defaults: {action: allow}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
"""
SOURCES = "acl sk_is_certificate_source dstdomain -n open.example closed.example inside.example crash.example"
BODY = b"0123456789"
CHUNKED = b"a\r\n" + BODY + b"\r\n0\r\n\r\n"
LENGTH = "Content-Length: 10"
FAR = "bytes 9223372036854775806-9223372036854775807/*"
PARTS = {
    "plain": ([f"Content-Range: {FAR}", LENGTH], BODY),
    "chunked": ([f"Content-Range: {FAR}", "Transfer-Encoding: chunked"], CHUNKED),
    "multipart": (
        [
            f"Content-Range: {FAR}",
            "Content-Type: multipart/byteranges; boundary=b",
            LENGTH,
        ],
        BODY,
    ),
    "leading zeros": (
        [f"Content-Range: {FAR.replace(' ', ' 0000000000')}", LENGTH],
        BODY,
    ),
    "plus": ([f"Content-Range: {FAR.replace(' ', ' +')}", LENGTH], BODY),
    "folded": (["Content-Range: " + FAR.replace(" ", "\r\n "), LENGTH], BODY),
    "space ahead of the colon": ([f"Content-Range : {FAR}", LENGTH], BODY),
    "first of two": (
        [f"Content-Range: {FAR}", "Content-Range: bytes 0-9/10", LENGTH],
        BODY,
    ),
}


def part(form: str) -> Bytes:
    lines, body = PARTS[form]
    return Bytes(
        body="\r\n".join(["HTTP/1.1 206 Partial Content", *lines, "", ""]).encode()
        + body
    )


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Iterator[Gateway]:
    gateway = new_gateway(POLICY, SOURCES).start()
    worker = gateway.pid
    yield gateway
    assert gateway.pid == worker, gateway.cache_log()[-1000:]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("form", PARTS)
def test_an_answer_that_would_end_squid_is_refused(
    gateway: Gateway, origins: Origins, form: str, scheme: str
) -> None:
    origins.fallback = part(form)
    for method in (["--head"], []):
        before, url = len(gateway.log()), f"{scheme}://far.example/x"
        reply = curl(gateway, url, *method)
        line = gateway.logged(url, before)
        assert (reply.status, line["status"], line["verdict"]) == (500, 500, "allow"), (
            reply
        )
        assert line["error"] == "ERR_ICAP_FAILURE"
    assert "it does not take the answer" in reply.text


def test_why_tells_of_the_answer(gateway: Gateway, origins: Origins) -> None:
    origins.fallback = part("plain")
    curl(gateway, "http://why.example/x")
    request_id = gateway.logged("http://why.example/x")["request_id"]
    told = gateway.command("why", request_id, gateway.root / "log/access.log")
    assert "invalid-answer: once" in told.stdout


def test_squid_keeps_no_part_of_answers_in_memory(
    gateway: Gateway, origins: Origins
) -> None:
    """With any `http_reply_access` line, Squid keeps 147 KB of each of these
    answers.
    """
    origins.fallback = Answer(
        headers={f"X-{number}": "x" * 1000 for number in range(55)}
    )
    before = 0
    with Raw(gateway) as raw:
        for number in range(1200):
            if number == 200:
                # what Squid's pools and the allocator keep of any request is there by
                # now
                before = resident(gateway.pid)
            reply = raw.get(f"http://large.example/{number}", "large.example")
            assert reply.status == 200
    assert resident(gateway.pid) - before < 30_000_000


def resident(pid: int) -> int:
    """Tell the bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_client_that_leaves_ahead_of_the_answer_writes_nothing_into_cache_log(
    gateway: Gateway, origins: Origins
) -> None:
    gate, url = origins.gate(), "http://slow.example/x"
    origins.fallback = Answer(gate=gate)
    with Raw(gateway) as raw:
        raw.send(f"GET {url} HTTP/1.1\r\nHost: slow.example\r\n\r\n")
        wait_for(lambda: gate.waiting, "the request to reach the origin")
    assert gateway.logged(url)["error"] == "ERR_CLIENT_GONE"
    gate.open()
    assert "without an HTTP response" not in gateway.cache_log()


def test_an_ordinary_part_passes(gateway: Gateway, origins: Origins) -> None:
    origins.fallback = Answer(
        206, BODY, {"Content-Range": "bytes 999999999999990-999999999999999/*"}
    )
    for scheme in ("http", "https"):
        reply = curl(gateway, f"{scheme}://a.example/x", "--range", "999999999999990-")
        assert (reply.status, reply.body) == (206, BODY)


@pytest.mark.parametrize(
    ("source", "answered", "fetched"),
    [
        ("open.example", 200, 1),
        ("closed.example", 503, 0),
        ("inside.example", 503, 0),
        ("other.example", 503, 0),
    ],
)
def test_squid_fetches_a_certificate_only_where_operator_and_policy_allow_it(
    gateway: Gateway,
    origins: Origins,
    names: Names,
    source: str,
    answered: int,
    fetched: int,
) -> None:
    names.set("inside.example", ["10.0.0.5"])
    issuer = incomplete(origins, f"of-{source}", source)
    origins.answers[f"{source}/ca.der"] = Answer(body=issuer.der)
    before = len(gateway.log())
    assert curl(gateway, f"https://of-{source}/x").status == answered
    assert origins.urls().count(f"http://{source}/ca.der") == fetched
    line = gateway.logged(f"http://{source}/ca.der", before)
    assert (line["client"], line["verdict"]) == ("-", "allow" if fetched else "deny"), (
        line
    )


def test_a_certificate_that_squid_fetches_does_not_end_it(
    gateway: Gateway, origins: Origins
) -> None:
    incomplete(origins, "of-crash.example", "crash.example")
    origins.answers["crash.example/ca.der"] = part("plain")
    assert curl(gateway, "https://of-crash.example/x").status == 503
    assert gateway.logged("http://crash.example/ca.der")["error"] == "ERR_ICAP_FAILURE"


def incomplete(origins: Origins, host: str, source: str) -> Intermediate:
    """Let a host send its leaf alone, which names where the certificate of its issuer
    is.
    """
    issuer = Intermediate(origins.authority, f"issuer of {host}")
    where = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS,
        x509.UniformResourceIdentifier(f"http://{source}/ca.der"),
    )
    origins.contexts[host] = origin_context(
        issuer, host, [x509.DNSName(host)], x509.AuthorityInformationAccess([where])
    )
    return issuer
