"""Hosts and logins by the ports 443 and 80 for clients without proxy settings.

All is allowed that is not denied.
"""

from base64 import b64encode
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network

import pytest

from squidkeeper.policy.language.model import Token
from squidkeeper.services.sessions.connections import Cut, Listener, cut
from tests.waiting import wait_for

from .dns import Names
from .network import run
from .origin import Origins
from .raw import Raw
from .reply import Reply
from .test_attacks import PRIVATE, SPELLINGS
from .transparent import Transparent

TOKEN = "e2e-token-that-logs-in"
POLICY = f"""
version: 1
defaults: {{action: allow}}
clients:
  named: {{token_sha256: {Token.of(TOKEN).sha256}}}
rules:
  - {{name: opens, action: allow, clients: [named], hosts: [login.example]}}
  - {{name: locked, action: deny, hosts: [login.example]}}
  - {{name: closed, action: deny, hosts: [.closed.example, bücher.example, 203.0.113.66, "2001:db8::66"]}}
"""
GOOD = "http://good.example/x"
INVALID, PRIVATE_ADDRESS = "invalid-request", "private-address"


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes for port 80; and the status, with the rule that denies, or the URL that is
    asked for.
    """

    send: str
    status: int
    becomes: str = ""


def get(target: str, *headers: str, method: str = "GET", version: str = "1.1") -> str:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *headers, "", ""])


HOST = "Host: good.example"
ROWS = [
    Row(get("/x", HOST), 200, GOOD),
    Row(get("/x", HOST, version="1.0"), 200, GOOD),
    Row(get("/x", "Host: GOOD.Example"), 200, GOOD),
    Row(get("/x", "Host: good.example:80"), 200, GOOD),
    Row(get("/x", "Host: good.example:0"), 400),
    Row(get("/x", "Host: good.example:99999999"), 400),
    Row(get("/x", "Host: good.example:8a"), 403, "default"),
    Row(get("/x", "Host: closed.example"), 403, "closed"),
    Row(get("/x", "Host: closed.example:80"), 403, "closed"),
    Row(get("/x", "Host: closed.example."), 403, "closed"),
    Row(get("/x", "Host: 203.0.113.66"), 403, "closed"),
    Row(get("/x", "Host: 3405803842"), 403, "closed"),
    Row(get("/x", "Host: [2001:db8::66]"), 403, "closed"),
    Row(get("/x", "Host: 127.0.0.1"), 403, PRIVATE_ADDRESS),
    Row(get("/x", "Host: 169.254.169.254"), 403, PRIVATE_ADDRESS),
    Row(get("/x", "Host: [::1]"), 403, PRIVATE_ADDRESS),
    Row(get("/x", "Host: u:p@good.example"), 400),
    Row(get("/x", "Host: good.example@closed.example"), 400),
    Row(get("/x", "Host: closed.example@good.example"), 400),
    Row(get("/x", "Host: good.example/y"), 400),
    Row(get("/x", "Host: closed.example/@good.example"), 400),
    Row(get("/x", "Host: closed.example?good.example"), 400),
    Row(get("/x", "Host: closed.example#good.example"), 400),
    Row(get("/x", "Host: good.example closed.example"), 400),
    Row(get("/x", "Host: good.example,closed.example"), 400),
    Row(get("/x", "Host: http://good.example"), 400),
    Row(get("/x", "Host:"), 400),
    Row(get("/x"), 400),
    Row(get("/x", version="1.0"), 400),
    Row("GET /x\r\n\r\n", 400),
    Row(get(GOOD, HOST), 200, GOOD),
    Row(get(GOOD, "Host: closed.example"), 200, GOOD),
    Row(get(GOOD), 200, GOOD),
    Row(get("http://closed.example/x", HOST), 403, "closed"),
    Row(get("http://10.0.0.5/x", HOST), 403, PRIVATE_ADDRESS),
    Row(get("https://good.example/x", HOST), 403, INVALID),
    Row(get("http://u:p@good.example/x", HOST), 403, INVALID),
    Row(get("ftp://good.example/x", HOST), 403, INVALID),
    Row(get("urn:isbn:1", HOST), 403, INVALID),
    Row(get("good.example/x", HOST), 400),
    Row(get("closed.example:443", HOST, method="CONNECT"), 405),
    Row(get("good.example:443", HOST, method="CONNECT"), 405),
    Row(get("good.example:80", HOST, method="CONNECT"), 405),
    Row(get("*", HOST, method="OPTIONS"), 501),
    Row(get("/x", HOST, method="TRACE"), 403, INVALID),
    Row(get("/x", HOST, method="PURGE"), 403, INVALID),
    Row(get("/squid-internal-mgr/counters", "Host: squidkeeper"), 403, INVALID),
    Row(get("/squid-internal-mgr/menu", HOST), 403, INVALID),
    Row(get("/squid-internal-static/icons/SN.png", "Host: squidkeeper"), 403, INVALID),
    Row(get("http://squidkeeper/squid-internal-mgr/counters", HOST), 403, INVALID),
    Row(get("cache_object://127.0.0.1/info", HOST), 403, INVALID),
    Row("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row.send)[1:60])
def test_what_comes_to_port_80_is_judged_by_the_host_that_it_would_reach(
    transparent: Transparent, origins: Origins, row: Row
) -> None:
    reply = asked(transparent, row.send)
    assert reply.status == row.status, reply
    if row.status == 200:
        assert origins.urls() == [row.becomes]
        return
    assert origins.connections == []
    assert (reply.rule or "") == row.becomes


def asked(transparent: Transparent, sent: str) -> Reply:
    """Send bytes to port 80, from an address for which the counters are closed."""
    with Raw(transparent.http, transparent.vm.gateway) as client:
        return client.send(sent).answer()


@pytest.mark.parametrize(
    "hosts", [("good.example", "closed.example"), ("closed.example", "good.example")]
)
def test_two_hosts_are_one_host_for_the_policy_and_the_origin(
    transparent: Transparent, origins: Origins, hosts: tuple[str, str]
) -> None:
    asked(transparent, get("/x", *(f"Host: {host}" for host in hosts)))
    assert [seen.values("Host") for seen in origins.seen] in ([], [["good.example"]])


@pytest.mark.parametrize(
    ("host", "becomes"), SPELLINGS, ids=[repr(host)[:40] for host, _ in SPELLINGS]
)
def test_a_denied_host_is_denied_however_it_is_spelled(
    transparent: Transparent, origins: Origins, host: str, becomes: str | None
) -> None:
    reply = asked(transparent, get("/x", f"Host: {host}"))
    if becomes is not None:
        assert origins.seen == []
        assert not reply or reply.status >= 400, reply


@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_address_is_denied_in_every_notation(
    transparent: Transparent, origins: Origins, host: str
) -> None:
    reply = asked(transparent, get("/x", f"Host: {host}"))
    assert origins.connections == []
    assert (
        reply.rule == PRIVATE_ADDRESS
        if reply.status == 403
        else not reply or reply.status >= 400
    ), reply


@pytest.mark.parametrize(
    "host",
    [
        "myself.example",
        "192.168.137.1",
        "squidkeeper",
        "localhost",
        "127.53.53.53:13080",
    ],
)
@pytest.mark.parametrize("port", ["https", "http"])
def test_the_gateway_itself_is_no_origin(
    transparent: Transparent, origins: Origins, names: Names, host: str, port: str
) -> None:
    names.set("myself.example", ["192.168.137.1"])
    names.set("squidkeeper", ["192.168.137.1"])
    names.set("localhost", ["127.0.0.1"])
    # no TLS server name is an address
    named = "myself.example" if host[0].isdigit() else host
    with Raw(getattr(transparent, port)) as client:
        reply = (
            client.tls(named).get("/x", named)
            if port == "https"
            else client.get("/x", host)
        )
    assert (reply.status, reply.rule) in ((403, PRIVATE_ADDRESS), (403, "default")), (
        reply
    )
    assert origins.connections == []


# ── The TLS server name and the Host ──────────────────────────────────────────────────

SERVER_NAMES = [
    ("good.example", "good.example", (200, None)),
    ("GOOD.example", "good.example", (200, None)),
    ("good.example", "closed.example", (403, "authority-mismatch")),
    ("good.example", "other.example", (403, "authority-mismatch")),
    ("good.example", "good.example:8443", (403, "authority-mismatch")),
    ("closed.example", "closed.example", (403, "closed")),
    ("closed.example", "good.example", (403, "authority-mismatch")),
    ("a.closed.example", "a.closed.example", (403, "closed")),
]


@pytest.mark.parametrize(("name", "host", "expected"), SERVER_NAMES)
def test_the_host_inside_is_the_one_that_tls_names(
    transparent: Transparent,
    origins: Origins,
    name: str,
    host: str,
    expected: tuple[int, str | None],
) -> None:
    for covered in ("good.example", "closed.example", "other.example"):
        origins.certificates[covered] = (
            "good.example",
            "closed.example",
            "other.example",
        )
    with Raw(transparent.https) as client:
        reply = client.tls(name).get("/x", host)
    assert (reply.status, reply.rule) == expected, reply
    assert origins.urls() == (["https://good.example/x"] if reply.status == 200 else [])


@pytest.mark.parametrize(
    "name",
    [
        None,
        b"good.example\n",
        b"good.example\r\nHost: x",
        b"*.example",
        b"a" * 255,
        b"203.0.113.10",
    ],
)
def test_a_client_without_a_server_name_is_told_so_and_reaches_nothing(
    transparent: Transparent, origins: Origins, name: bytes | None
) -> None:
    with Raw(transparent.https) as client, pytest.raises((OSError, EOFError)):
        client.tls(name)
    assert origins.connections == []


def test_a_kept_alive_connection_is_judged_request_by_request(
    transparent: Transparent, origins: Origins
) -> None:
    hosts = ["good.example", "closed.example", "other.example", "good.example"]
    with Raw(transparent.http) as client:
        answers = [client.get("/x", host) for host in hosts]
    assert [answer.rule for answer in answers] == [None, "closed", None, None]
    assert origins.urls() == [
        f"http://{host}/x" for host in hosts if host != "closed.example"
    ]


# ── Logins ────────────────────────────────────────────────────────────────────────────

RIGHT = b64encode(f"named:{TOKEN}".encode()).decode()
WRONG = "bmFtZWQ6d3Jvbmc="
LOGINS = [
    (),
    (f"Authorization: Basic {RIGHT}",),
    (f"Proxy-Authorization: Basic {RIGHT}",),
    (f"Proxy-Authorization: Basic {RIGHT}", f"Authorization: Basic {RIGHT}"),
    (f"Proxy-Authorization: Basic {WRONG}",),
    (f"Authorization: Basic {WRONG}",),
    ("Proxy-Authorization: Bearer x", "Authorization: Negotiate YQ=="),
]


@pytest.mark.parametrize("headers", LOGINS)
@pytest.mark.parametrize("port", ["https", "http"])
def test_nobody_logs_in_and_an_origin_gets_its_own_header_as_it_was(
    transparent: Transparent, origins: Origins, headers: tuple[str, ...], port: str
) -> None:
    gateway, before = transparent.gateway, len(transparent.gateway.log())
    answers = []
    for host in ("good.example", "login.example"):
        with Raw(getattr(transparent, port)) as client:
            answers.append(
                (client.tls(host) if port == "https" else client).get(
                    "/login", host, *headers
                )
            )
    assert [(answer.status, answer.rule) for answer in answers] == [
        (200, None),
        (403, "locked"),
    ], answers
    [seen] = origins.seen
    sent = [
        line.removeprefix("Authorization: ")
        for line in headers
        if line.startswith("Authorization")
    ]
    assert (seen.values("Authorization"), seen.values("Proxy-Authorization")) == (
        sent,
        [],
    )
    for host in ("good.example", "login.example"):
        assert gateway.logged(f"{port}://{host}/login", before)["user"] == "-"


def test_an_origin_learns_nothing_of_the_reverse_proxy_in_squid(
    transparent: Transparent, origins: Origins
) -> None:
    asked(
        transparent,
        get("/x", HOST, 'Surrogate-Capability: x="y"', "CDN-Loop: squidkeeper"),
    )
    asked(transparent, get(GOOD, HOST, "X-Forwarded-For: 192.0.2.9"))
    names = {name.lower() for seen in origins.seen for name, _ in seen.headers}
    assert names <= {"host", "via", "cache-control", "connection", "cdn-loop"}, names


def test_what_squid_refuses_itself_leaves_no_text_of_it_in_cache_log(
    transparent: Transparent,
) -> None:
    text = "e2e-text-that-no-log-shows"
    refused = [get(f"/{text}", "Host:"), get(f"{text}.example:443", method="CONNECT")]
    for port in (transparent.gateway, transparent.http):
        for sent in (
            *refused,
            get(f"http:///{text}"),
            f"PRI /{text} HTTP/2.0\r\n\r\n",
            get(f"/{text}", method="%"),
        ):
            with Raw(port) as client:
                client.send(sent).answer()
    assert text not in transparent.gateway.cache_log()


def test_squid_lived_through_it(transparent: Transparent) -> None:
    gateway = transparent.gateway
    gateway.log()
    assert "FATAL" not in gateway.cache_log()
    assert "assertion failed" not in gateway.cache_log()


def test_what_a_client_has_open_without_settings_is_cut(
    transparent: Transparent, origins: Origins
) -> None:
    """The relay holds the client's own connection, and ends its own to Squid."""
    ended, other = ip_network("127.0.0.5"), "127.0.0.6"
    at = [transparent.https, transparent.http]
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Raw(port, client))
            for port in at
            for client in (str(ended.network_address), other)
        ]
        for raw in opened[:2]:
            raw.tls("example.com")
        assert [raw.get("/", "example.com").status for raw in opened] == [200] * 4
        assert cut([ended], [Listener(*port.address) for port in at]) == Cut(ended=2)
        for raw in opened[::2]:
            wait_for(partial(is_ended, raw), "the end")
        assert [raw.get("/", "example.com").status for raw in opened[1::2]] == [200] * 2
        layout = transparent.gateway.layout
        to = (layout.transparent_tls, layout.transparent_http)
        ours = " or ".join(f"src {place}" for place in to)
        wait_for(
            lambda: run("ss", "-Htn", "state", "established", ours).count("\n") == 2,
            "Squid's ends to close",
        )


def is_ended(raw: Raw) -> bool:
    return not raw.receive()
