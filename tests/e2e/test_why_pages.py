"""Every page of the gateway, each made on a live one: its form and its status, and
`why` has the cause of the page.

A denial that is added needs its row in MADE. All are made with and without a
placeholder in the policy: with one, a helper decides what the access log has.
"""

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from squidkeeper.configuration.error_pages import DENIALS, NO_CONTACT
from squidkeeper.policy.language.model import Token
from squidkeeper.policy.language.sealed_tokens import format_content
from squidkeeper.serving.credentials.sealing import SealingPrivateKey, seal_bytes
from tests.waiting import wait_for

from .curl import clean, curl
from .dns import PUBLIC, Names
from .gateway import Gateway, NewGateway
from .network import run
from .odd_certificates import make_certificates_odd
from .origin import Answer, BrokenOff, Bytes, Origins, silent_port
from .parent import Parent
from .raw import Raw, tunnel
from .reply import Reply

TOKEN = "why-token-of-every-page-0001"
ENDS = "203.0.113.20"  # an origin that ends each handshake
KEY = SealingPrivateKey.new()
POLICY = f"""\
version: 1
defaults: {{reason: Ask for a host.}}
clients:
  vm-7: {{token_sha256: {Token.of(TOKEN).sha256}}}
rules:
  - {{name: closed, action: deny, hosts: [closed.example], reason: It is closed.}}
  - {{name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}}
  - {{name: few, action: allow, hosts: [few.example]}}
  - {{name: open, action: allow, hosts: [.open.example, .corp.example], ports: [80, 443, 8085, 8086, 8087]}}
  - {{name: keyed, action: allow, hosts: [keyed.example]}}
  - {{name: sealed, action: allow, hosts: [sealed.example]}}
  - {{name: of-vm, action: allow, clients: [vm-7], hosts: [vm.example]}}
  - {{name: inside, action: allow, hosts: [.inside.example], private: true}}
  - {{name: paid, action: ask, hosts: [pay.example], reason: Ask Ann.}}
quotas:
  - {{name: once, per: rule, rules: [few], requests: 1, every: day}}
secrets:
  missing: {{file: secrets/missing}}
  password: {{file: secrets/password}}
  key: {{file: secrets/key}}
credentials:
  - {{name: no-token, hosts: [keyed.example], bearer: missing, placeholder: PLACEHOLDER}}
upstreams:
  - {{name: down, hosts: [.down.corp.example], url: "http://127.0.0.1:4997"}}
  - name: wrong
    hosts: [.wrong.corp.example]
    url: http://127.0.0.1:4128
    basic: {{username: agents, password: password}}
sealed_tokens: {{keys: [key]}}
"""
LOCAL = (
    *(
        "connect_timeout 2 seconds",
        "read_timeout 2 seconds",
        "forward_timeout 4 seconds",
    ),
    *("request_body_max_size 10 KB", "reply_body_max_size 100 KB"),
    *("acl banned dstdomain banned.open.example", "http_access deny banned"),
    *("acl nowhere dstdomain nowhere.open.example", "never_direct allow nowhere"),
)


def sealed() -> str:
    """A token for another host than it is sent to."""
    return seal_bytes(
        format_content({"hosts": ["other.example"], "secret": "sealed-in-every-page"}),
        KEY.public,
    )


# --- how pages are made ---------------------------------------------------------------

Trial = Callable[[Gateway], Reply]
JSON = "Accept: application/json"


def get(url: str, *options: str) -> Trial:
    return lambda gateway: curl(gateway, url, "-H", JSON, *options)


def both(place: str, *options: str) -> list[Trial]:
    """The same over http, and in a tunnel."""
    return [get(f"{scheme}://{place}", *options) for scheme in ("http", "https")]


def sent(data: str | bytes) -> Trial:
    def send(gateway: Gateway) -> Reply:
        with Raw(gateway) as client:
            return client.send(data).answer()

    return send


def inside(
    target: str, host: str, method: str = "GET", sni: str = "a.open.example"
) -> Trial:
    """A request in the tunnel to a.open.example."""

    def ask(gateway: Gateway) -> Reply:
        with tunnel(gateway, "a.open.example:443", sni) as client:
            return client.get(target, host, JSON, method=method)

    return ask


def with_lost_helper(gateway: Gateway) -> Reply:
    """Ask while the helper that decides hangs, and end it."""
    curl(gateway, "http://a.open.example/")
    with gateway.stopped_helpers("acl --scope host"), Raw(gateway) as client:
        client.send(
            f"GET http://unasked.open.example/ HTTP/1.1\r\nHost: unasked.open.example\r\n{JSON}\r\n\r\n"
        )
        wait_for(lambda: gateway.unread() == 0, "Squid to read the request")
        gateway.kill_helpers("acl --scope host")
        return client.answer()


TLS_HELLO = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n"
# what is wrong with the certificate of such a host
CERTIFICATES = (
    "expired",
    "early",
    "self",
    "wrong",
    "untrusted",
)
# By page of a denial, or error of Squid's: what makes it, by the cause that `why` has.
MADE: dict[str, dict[str, list[Trial]]] = {
    "denied": {
        "policy": both("closed.example/a?token=TOPSECRET"),
        "no-rule": both("unknown.example/a?token=TOPSECRET")
        + both("paths.example/closed")
        + [get("http://10.0.0.9/")],
        "ambiguous-path": both("paths.example/open/%2e%2e/x"),
        "sealed-token-refused": [
            get("https://sealed.example/", "-H", f"Authorization: Bearer {sealed()}")
        ],
        "machine-address": both("169.254.169.254/latest"),
        "invalid-request": both("a.open.example/%1b"),
    },
    "asked": {"asked": both("pay.example/a")},
    "quota": {"quota": both("few.example/")},
    "no-credential": {"credential-unavailable": [get("https://keyed.example/")]},
    "invalid": {
        "invalid-request": [
            get("http://b.open.example/", "-X", "TRACE"),
            inside("a.open.example:443", "a.open.example:443", "CONNECT"),
        ]
    },
    "private": {"private-address": both("private.open.example/")},
    "passing": {"not-rendered": both("unrendered.example/")},
    "ERR_ACCESS_DENIED": {
        "squid-conf": both("banned.open.example/"),
        "no-helper": [with_lost_helper],
    },
    "ERR_DNS_FAIL": {
        "name-unresolved": both("none.inside.example/") + both("none.open.example/")
    },
    "ERR_CONNECT_FAIL": {
        "origin-refused": both("refused.open.example:8085/"),
        "origin-silent": both("silent.open.example:8086/"),
    },
    "ERR_SECURE_CONNECT_FAIL": {
        "origin-tls": [get("https://ended.open.example:8087/")],
        "origin-certificate": [
            get(f"https://{fault}.open.example/") for fault in CERTIFICATES
        ],
        "authority-mismatch": [
            inside("/", "other.open.example"),
            inside("/", "a.open.example", sni="b.open.example"),
        ],
    },
    "ERR_READ_TIMEOUT": {"origin-slow": both("slow.open.example/x")},
    "ERR_READ_ERROR": {
        "not-forwarded": both("nowhere.open.example/") + both("a.down.corp.example/")
    },
    "ERR_ZERO_SIZE_OBJECT": {"origin-broke-off": [get("http://empty.open.example/x")]},
    "ERR_INVALID_RESP": {"invalid-answer": both("garbled.open.example/x")},
    "ERR_ICAP_FAILURE": {
        "invalid-answer": both("far.open.example/x"),
        "parent-refused": [get("http://a.wrong.corp.example/")],
    },
    "ERR_TOO_BIG": {
        "too-large": [
            *both("big.open.example/", "--data", "x" * 20_000, "-H", "Expect:"),
            *both("head.open.example/x"),
            *both("body.open.example/x"),
            sent(
                "GET http://x.open.example/ HTTP/1.1\r\nX: " + "x" * 70_000 + "\r\n\r\n"
            ),
        ],
    },
    "ERR_ONLY_IF_CACHED_MISS": {
        "not-cached": both(
            "cached.open.example/", "-H", "Cache-Control: only-if-cached"
        )
    },
    "ERR_INVALID_REQ": {"not-http": both("y.open.example/", "-H", "Expect: more")},
    "ERR_UNSUP_HTTPVERSION": {
        "not-http": [sent("GET http://z.open.example/ HTTP/3.7\r\n\r\n")]
    },
    "ERR_PROTOCOL_UNKNOWN": {
        "tls-to-plain-port": [sent("nonsense\r\n\r\n"), sent(TLS_HELLO)]
    },
    "ERR_INVALID_URL": {
        "not-http": [sent("GET /<script>alert(1)</script> HTTP/1.1\r\n\r\n")]
    },
    "ERR_CACHE_ACCESS_DENIED": {
        "login-refused": [
            get("http://vm.example/?wrong", "--proxy-user", "vm-7:wrong")
        ],
        "login-needed": [
            sent("GET http://vm.example/<script> HTTP/1.1\r\nHost: vm.example\r\n\r\n")
        ],
    },
}
# By error of Squid's: the statuses of its pages, and whether they say that another try
# can help.
ERRORS = {
    "ERR_ACCESS_DENIED": ({403}, True),
    "ERR_DNS_FAIL": ({503}, True),
    "ERR_CONNECT_FAIL": ({503}, True),
    "ERR_SECURE_CONNECT_FAIL": ({503}, False),
    "ERR_READ_TIMEOUT": ({504}, True),
    "ERR_READ_ERROR": ({502}, True),
    "ERR_ZERO_SIZE_OBJECT": ({502}, True),
    "ERR_INVALID_RESP": ({502}, False),
    "ERR_ICAP_FAILURE": ({500}, True),
    "ERR_TOO_BIG": ({403, 413, 431, 502}, False),
    "ERR_ONLY_IF_CACHED_MISS": ({504}, False),
    "ERR_INVALID_REQ": ({417}, False),
    "ERR_UNSUP_HTTPVERSION": ({505}, False),
    "ERR_PROTOCOL_UNKNOWN": ({400}, False),
    "ERR_INVALID_URL": ({400}, False),
    "ERR_CACHE_ACCESS_DENIED": ({407}, False),
}


@contextmanager
def failing_origins(origins: Origins, names: Names) -> Iterator[None]:
    """Origins, names and a parent that fail in every way."""
    origins.forget()
    make_certificates_odd(origins, ".open.example")
    origins.answers |= {
        "slow.open.example/x": Answer(gate=(gate := origins.gate())),
        "body.open.example/x": Answer(body=b"x" * 200_000),
        "empty.open.example/x": BrokenOff(),
        "garbled.open.example/x": Bytes(body=b"HTTP/1.1 two hundred\r\n\r\n"),
        "far.open.example/x": Answer(
            206, b"x", {"Content-Range": f"bytes {2**63 - 9}-{2**63 - 9}/{2**63 - 1}"}
        ),
        "head.open.example/x": Bytes(
            body=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"
        ),
    }
    names.set("private.open.example", ["10.0.0.5"])
    names.set("ended.open.example", [ENDS])
    names.set("none.open.example", [])
    names.set("none.inside.example", [])
    parent = Parent(4128)
    parent.password = "Basic another"
    with ExitStack() as stack:
        ending = stack.enter_context(socket.create_server((ENDS, 8087)))
        Thread(target=end_handshakes, args=(ending,), daemon=True).start()
        stack.enter_context(silent_port((PUBLIC, 8086)))
        yield
        gate.open()
        ending.shutdown(socket.SHUT_RDWR)
        parent.stop()


def end_handshakes(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection = server.accept()[0]
            connection.recv(65536)
            connection.close()


@dataclass(frozen=True, slots=True)
class Shown:
    """A page as a client got it: its kind, its line of the access log, and what `why`
    tells by its request ID.
    """

    reply: Reply
    kind: str
    line: dict[str, Any]
    told: dict[str, Any]


Row = tuple[str, str]  # the name of a page, and a cause


UNRENDERED = """
version: 1
rules:
  - {name: unrendered, action: allow, hosts: [unrendered.example], strip: [X-Never]}
"""
POLICIES = [
    pytest.param(", placeholder: dummy-key-of-every-page", id="watching"),
    pytest.param("", id="plain", marks=pytest.mark.long),
]


@pytest.fixture(scope="module", params=POLICIES)
def gateway(request: pytest.FixtureRequest, new_gateway: NewGateway) -> Gateway:
    policy = POLICY.replace(", placeholder: PLACEHOLDER", request.param)
    gateway = new_gateway(
        policy,
        *LOCAL,
        secrets={"password": "password-of-every-page", "key": KEY.reveal()},
    )
    gateway.remember(TOKEN)
    gateway.start()
    gateway.renders = False
    return gateway


@pytest.fixture(scope="module")
def shown(
    gateway: Gateway, all_origins: Origins, names: Names
) -> dict[Row, list[Shown]]:
    """Every page."""
    gateway.write("unrendered.yaml", UNRENDERED)
    curl(gateway, "http://few.example/")  # all that the quota gives
    wait_for(
        lambda: curl(gateway, "http://unrendered.example/").rule == "not-rendered",
        "the edit",
    )
    rows = [
        (page, cause, trials)
        for page, causes in MADE.items()
        for cause, trials in causes.items()
    ]
    rows.sort(key=lambda row: row[1] == "no-helper")  # which no other request must meet
    with failing_origins(all_origins, names), ThreadPoolExecutor(4) as pool:
        replies = [
            *pool.map(lambda row: made(gateway, row[2]), rows[:-1]),
            made(gateway, rows[-1][2]),
        ]
    told = told_by_why(gateway, [request_id(reply) for row in replies for reply in row])
    return {
        (page, cause): [
            Shown(reply, kind_of(reply), *told[request_id(reply)]) for reply in row
        ]
        for (page, cause, _), row in zip(rows, replies, strict=True)
    }


def made(gateway: Gateway, trials: list[Trial]) -> list[Reply]:
    replies = [trial(gateway) for trial in trials]
    # on a loaded machine Squid can miss why a connection has ended
    replies = [
        trial(gateway) if "Error: ERR_READ_ERROR" in reply.text else reply
        for trial, reply in zip(trials, replies, strict=True)
    ]
    assert all(replies)
    return replies


def is_json(reply: Reply) -> bool:
    return (reply.header("Content-Type") or "").endswith("json")


def request_id(reply: Reply) -> str:
    return str(reply.json["request_id"] if is_json(reply) else reply.line("Request ID"))


def kind_of(reply: Reply) -> str:
    """Name the page of a denial, or the error of Squid's."""
    if is_json(reply):
        return str(reply.json["type"]).removeprefix("urn:squidkeeper:")
    told = reply.line("Error") or next(
        page.name for page in DENIALS if f"<title>{page.title}<" in reply.text
    )
    return told.partition(" ")[0]


def told_by_why(
    gateway: Gateway, ids: list[str]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Ask `why` once about all; give the line and the cause of each."""
    wait_for(
        lambda: {*ids} <= {line["request_id"] for line in gateway.log()}, "their lines"
    )
    found = json.loads(why(gateway, "--json", "-n", "1000", *ids))
    causes = {
        request["request_id"]: cause
        for cause in found["causes"]
        for request in cause["newest"]
    }
    return {
        line["request_id"]: (line, causes.get(line["request_id"], {}))
        for line in gateway.log()
    }


def why(gateway: Gateway, *words: str) -> str:
    said = gateway.command(
        "why", *words, "--run", gateway.root / "run", *gateway.places
    ).stdout
    assert "TOPSECRET" not in said
    return said


def test_each_page_of_a_denial_is_made() -> None:
    assert {page.name.replace("_", "-") for page in DENIALS} <= MADE.keys()


@pytest.mark.parametrize("page", MADE)
def test_why_has_the_cause_of_the_page(
    shown: dict[Row, list[Shown]], page: str
) -> None:
    for cause in MADE[page]:
        for seen in shown[page, cause]:
            assert (seen.kind, seen.told.get("cause")) == (page, cause), seen
            assert seen.line["page"] in ("-", seen.kind, "no-address")
            # else it was not searched
            is_judged = seen.line["verdict"] != "-" and cause != "authority-mismatch"
            assert (seen.line["url"] != "-") or not is_judged, seen.line


@pytest.mark.parametrize("page", MADE)
def test_a_page_has_its_form_and_says_whether_to_try_again(
    shown: dict[Row, list[Shown]], page: str
) -> None:
    """The page of a denial has the form that the client accepts, a failure is told in
    text.
    """
    statuses, retryable = ERRORS.get(
        page, ({403}, page in ("asked", "passing", "quota"))
    )
    for one in (seen for cause in MADE[page] for seen in shown[page, cause]):
        reply = one.reply
        assert reply.status in statuses, reply
        assert "<script" not in reply.text
        # Of a tunnel that fails, Squid makes the page for the CONNECT; 0: its client
        # left before Squid wrote the line.
        assert one.line["status"] in (reply.status, 200, 0)
        if is_json(reply):
            assert (reply.json["status"], reply.json["retryable"]) == (403, retryable)
        elif page.startswith("ERR_"):
            # of what cannot be parsed, no ACL is asked
            asks_acls = reply.status not in (
                400,
                431,
                505,
            )
            expected = (
                "text/plain; charset=utf-8" if asks_acls else "text/html;charset=utf-8"
            )
            assert reply.header("Content-Type") == expected
            assert (reply.line("Retry") == "can help", reply.line("Contact")) == (
                retryable,
                NO_CONTACT,
            ), reply.text


def test_what_a_client_gets_no_page_for_has_its_cause(
    gateway: Gateway, shown: object
) -> None:
    for host in (
        "distrust.open.example",
        "unseen.closed.example",
    ):  # by clients that do not trust the CA
        command = [
            "curl",
            "-q",
            "-sS",
            "--proxy",
            f"http://{gateway.authority}",
            f"https://{host}/",
        ]
        assert (
            subprocess.run(
                command, env=clean(), capture_output=True, check=False
            ).returncode
            == 60
        )
    with Raw(gateway) as client:
        client.connect("ssh.open.example:443")
        client.send(b"SSH-2.0-OpenSSH_9.6\r\n").answer()
    expected = {
        "distrust.open": "ca-not-trusted",
        "unseen.closed": "no-rule",
        "ssh.open": "no-tls-in-tunnel",
    }
    for host, cause in expected.items():
        gateway.logged(f"{host}.example:443")
        [found] = json.loads(why(gateway, "--json", "--host", f"{host}.example"))[
            "causes"
        ]
        assert found["cause"] == cause
        assert ("does not trust the gateway's CA" in found["sentence"]) is (
            cause != "no-tls-in-tunnel"
        )


def test_a_name_that_was_private_and_a_request_that_did_not_fail(
    gateway: Gateway, shown: object, names: Names
) -> None:
    names.set("turned.open.example", ["10.0.0.5"])
    page = curl(gateway, "https://turned.open.example/")
    assert (
        "had a private address" in why(gateway, "--host", "turned.open.example")
        or page.rule == "private-address"
    )
    curl(gateway, "http://fine.open.example/")
    gateway.logged("http://fine.open.example/")
    assert "fine.open.example" not in why(gateway, "-n", "1000")


def test_the_command_on_the_page_of_a_failure_tells_its_cause(
    gateway: Gateway, shown: object
) -> None:
    page = curl(gateway, "https://keyed.example/by-id")
    *_, command = re.findall("^For the operator: sudo (.*)$", page.text, re.MULTILINE)
    assert command.endswith(f" {page.line('Request ID')}")
    assert run("sh", "-c", command, check=False).startswith(
        "credential-unavailable: once, last "
    )


def test_why_proposes_a_rule_and_says_what_the_page_says(
    shown: dict[Row, list[Shown]],
) -> None:
    for seen in shown["denied", "no-rule"]:
        # the policy has clients, and 127.0.0.1 is none of them
        assert "make the client known: 127.0.0.1 is no client" in seen.told["remedy"]
    [sealed_token] = shown["denied", "sealed-token-refused"]
    assert (
        sealed_token.told["sentence"]
        == "The sealed token is refused: it is for another host."
    )
