"""The walkthrough's two requests, and the promises it makes about them."""

import socket
from collections.abc import Iterator

import pytest

from tests.waiting import wait_for

from .curl import curl
from .dns import Names
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw

POLICY = """
version: 1
defaults: {action: allow}
rules:
  - name: no-wikipedia
    action: deny
    hosts: [.wikipedia.org]
    reason: Wikipedia is closed to sandboxes.
"""


COLLECTOR = ("127.0.0.1", 5140)


@pytest.fixture(scope="module")
def collector(internet: None) -> Iterator[socket.socket]:
    """Whoever collects the record by UDP."""
    with socket.socket(type=socket.SOCK_DGRAM) as listening:
        listening.bind(COLLECTOR)
        listening.settimeout(60)
        yield listening


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, collector: socket.socket) -> Gateway:
    address, port = COLLECTOR
    return new_gateway(
        POLICY, f"access_log udp://{address}:{port} logformat=squidkeeper buffer-size=0bytes !sk_scrape"
    ).start()


def test_an_allowed_site_answers_200_and_its_certificate_verifies_against_the_ca(
    gateway: Gateway, origins: Origins
) -> None:
    seen = allowed(gateway, origins, "https://example.com/", "default")
    assert (seen.url, seen.sni) == ("https://example.com/", "example.com")


def test_a_banned_site_answers_403_with_a_page_and_no_tls_complaint(gateway: Gateway, origins: Origins) -> None:
    reply = denied(
        gateway,
        origins,
        "https://en.wikipedia.org/wiki/Squid",
        "no-wikipedia",
        reason="Wikipedia is closed to sandboxes.",
    )
    assert reply.header("Content-Type") == "text/plain; charset=utf-8"
    assert "en.wikipedia.org" in reply.text
    assert "retry" in reply.text.lower()


def test_nothing_is_resolved_for_a_banned_name(gateway: Gateway, origins: Origins, names: Names) -> None:
    denied(gateway, origins, "https://de.wikipedia.org/", "no-wikipedia")
    denied(gateway, origins, "http://fr.wikipedia.org/", "no-wikipedia")
    assert names.asked("de.wikipedia.org") + names.asked("fr.wikipedia.org") == []


def test_the_log_holds_the_whole_url_with_its_status(gateway: Gateway, origins: Origins) -> None:
    url = "https://example.com/a/path?with=query&and=more"
    allowed(gateway, origins, url, "default")
    line = gateway.logged(url)
    assert line["upstream_ms"].isdecimal()
    assert (line["client"], line["method"], line["sni"], line["tunnel"]) == (
        "127.0.0.1",
        "GET",
        "example.com",
        "example.com:443",
    )
    assert line["bytes"] > 0
    assert line["duration_ms"] >= 0
    assert line["time"].endswith("Z")


def test_a_line_in_local_conf_sends_the_record_to_a_collector_too(
    gateway: Gateway, origins: Origins, collector: socket.socket
) -> None:
    url = "https://example.com/collected"
    allowed(gateway, origins, url, "default")
    sent = b""
    while url.encode() not in sent:
        sent = collector.recv(65535)
    file = (gateway.root / "log/access.log").read_bytes().splitlines()
    assert sent.strip() in [line for line in file if url.encode() in line]


def test_plain_http_is_judged_and_logged_alike(gateway: Gateway, origins: Origins) -> None:
    assert allowed(gateway, origins, "http://example.com/plain", "default").url == "http://example.com/plain"
    denied(gateway, origins, "http://wikipedia.org/plain", "no-wikipedia")


def test_the_page_is_plain_text_lines_whatever_the_url_holds(gateway: Gateway, origins: Origins) -> None:
    reply = denied(gateway, origins, "http://wikipedia.org/<script>alert(1)</script>", "no-wikipedia")
    assert b"<script>" not in reply.body


def test_a_head_request_is_denied_without_a_body(gateway: Gateway, origins: Origins) -> None:
    with Raw(gateway) as raw:
        reply = raw.get("http://wikipedia.org/", "wikipedia.org", method="HEAD")
    assert reply is not None
    assert (reply.status, reply.body) == (403, b"")
    assert origins.seen == []


def test_neither_the_client_nor_squid_is_told_to_the_origin(gateway: Gateway, origins: Origins) -> None:
    seen = allowed(gateway, origins, "https://example.com/who", "default")
    assert b"127.0.0.1" not in seen.head
    assert b"6.13" not in seen.head


def test_an_upstream_certificate_of_no_known_ca_is_refused(gateway: Gateway, origins: Origins) -> None:
    origins.untrusted.add("untrusted.example")
    reply = curl(gateway, "https://untrusted.example/", "--insecure")  # the leaf repeats the origin's fault
    assert reply.status == 503
    assert origins.seen == []
    fault = "X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY@depth=0"
    wait_for(lambda: fault in tls_errors(gateway, "untrusted.example"), "the certificate's fault to be logged")


def tls_errors(gateway: Gateway, host: str) -> list[str]:
    return [line["tls_error"] for line in gateway.log() if host in line["url"]]


def test_an_upstream_certificate_for_another_name_is_refused(gateway: Gateway, origins: Origins) -> None:
    origins.certificates["mismatch.example"] = ("other.example",)
    reply = curl(gateway, "https://mismatch.example/", "--insecure")
    assert reply.status == 503
    assert origins.seen == []
