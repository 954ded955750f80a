"""The pages with which the gateway answers for itself: in the client's form, for every denial and every failure."""

import http.client
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

import pytest

from squidkeeper.gateway_commands import command, with_commands
from squidkeeper.setup.error_pages import CONTENT_TYPES, Form
from tests.waiting import wait_for

from .curl import clean, curl
from .dns import PUBLIC, Names
from .gateway import REPOSITORY, URL_SAFE, Gateway, NewGateway
from .network import run
from .origin import Answer, Origins
from .raw import Raw
from .reply import Reply

HOSTILE_RULE = 'a "quoted" <name> & \\'
HOSTILE_REASON = 'Say "please",\n<b>\\ & co. \u2028\u00e9\U0001f600 ' + "</pre>" * 20
QUOTED_REASON = json.dumps(HOSTILE_REASON, ensure_ascii=False).replace("\u2028", "\\u2028")
CONTACT = "platform@example.com, #sandboxes"
POLICY = f"""
version: 1
defaults: {{reason: Ask for a host., contact: "{CONTACT}"}}
rules:
  - {{name: closed, action: deny, hosts: [closed.example], reason: It is closed.}}
  - {{name: '{HOSTILE_RULE}', action: deny, hosts: [hostile.example], reason: {QUOTED_REASON}}}
  - {{name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}}
  - {{name: open, action: allow, hosts: [.open.example]}}
  - {{name: keyed, action: allow, hosts: [keyed.example]}}
  - name: no-push
    action: deny
    hosts: [git.example]
    query: {{service: git-receive-pack}}
    reason: Read-only. Open a pull request instead.
  - {{name: git, action: allow, hosts: [git.example]}}
secrets:
  missing: {{file: secrets/missing}}
credentials:
  - {{name: no-token, hosts: [keyed.example], bearer: missing}}
"""
ACCEPT = {
    Form.TEXT: "*/*",
    Form.JSON: "application/json, text/plain;q=0.9",
    Form.HTML: "text/html,application/xhtml+xml,application/json;q=0.5",
}
LABELS = {
    "rule": "Rule",
    "reason": "Reason",
    "error": "Error",
    "contact": "Contact",
    "request_id": "Request ID",
    "time": "Time",
}


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY, "negative_dns_ttl 1 second").start()


def ask(gateway: Gateway, url: str, form: Form = Form.TEXT, *options: str) -> Reply:
    return curl(gateway, url, "--header", f"Accept: {ACCEPT[form]}", "--globoff", *options)


def stated(page: Reply, form: Form) -> dict[str, Any]:
    """What a page states: by the members of its JSON, or by its lines of the same meaning."""
    if form is Form.JSON:
        return dict(page.json)
    method, _, url = (page.line("Request") or "").partition(" ")
    lines = {name: page.line(label) for name, label in LABELS.items()}
    return {**lines, "method": method, "url": url, "retryable": page.line("Retry") == "can help"}


def check_page(gateway: Gateway, url: str, form: Form, status: int, proxy_error: str) -> dict[str, Any]:
    """Ask for a URL and check what all pages have in common; return what this one states."""
    page = ask(gateway, url, form)
    if "ERR_READ_ERROR" in page.text:  # on a loaded machine Squid can miss why a connection has ended: "Try again."
        page = ask(gateway, url, form)
    assert (page.status, page.header("Content-Type")) == (status, CONTENT_TYPES[form]), page.text
    assert page.header("Cache-Control") == "no-store"
    assert (page.header("Proxy-Status") or "").startswith(f"squidkeeper; error={proxy_error}; details="), page.text
    if form is Form.TEXT:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", page.text)
    found = stated(page, form)
    assert found["method"] == "GET"
    assert abs(datetime.fromisoformat(found["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    lines = wait_for(lambda: [one for one in gateway.log() if one["request_id"] == found["request_id"]], "its line")
    assert [(line["url"], line["status"]) for line in lines] == [(quote(found["url"], safe=URL_SAFE), status)]
    assert found["request_id"].startswith(f"{lines[0]['gateway']}.1")
    return found


DENIALS = [
    # URL, status, error of RFC 9209, rule, reason, whether to retry
    ("http://closed.example/a?b=c&lt=d", 403, "http_request_denied", "closed", "It is closed.", False),
    ("https://closed.example/a?b=c&lt=d", 403, "http_request_denied", "closed", "It is closed.", False),
    ("https://paths.example/closed", 403, "http_request_denied", "default", "Ask for a host.", False),
    (
        "https://keyed.example/x",
        403,
        "proxy_configuration_error",
        "credential-unavailable",
        "The credential for",
        False,
    ),
    ("https://paths.example/open/%2e%2e/x", 403, "http_request_denied", "ambiguous-path", "", False),
    ("https://private.open.example/", 403, "destination_ip_prohibited", "private-address", "The host has a p", False),
    ("http://private.open.example/", 403, "destination_ip_prohibited", "private-address", "The host has a pri", False),
    ("https://none.open.example/", 503, "dns_error", None, "The name does not exist", True),
    ("http://none.open.example/", 503, "dns_error", None, "The name does not exist", True),
]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("url", "status", "error", "rule", "reason", "retryable"), DENIALS, ids=[d[0] for d in DENIALS]
)
def test_a_denial_comes_in_the_form_that_the_client_accepts(
    gateway: Gateway,
    names: Names,
    origins: Origins,
    url: str,
    status: int,
    error: str,
    rule: str | None,
    reason: str,
    retryable: bool,
    form: Form,
) -> None:
    names.set("private.open.example", ["10.0.0.5"])
    names.set("none.open.example", [])
    found = check_page(gateway, url, form, status, error)
    assert rule in (None, found["rule"])
    assert str(found["reason"]).startswith(reason)
    assert (found["url"], found["contact"], found["retryable"]) == (url, CONTACT, retryable)
    assert origins.seen == []


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_hostile_names_reasons_and_urls_stay_text(gateway: Gateway, scheme: str, form: Form) -> None:
    url = f"{scheme}://hostile.example/a'b\"c\\d<e>&lt;f%00%ff%e2%80%a8\u2028\u00e9?" + "x" * 2000
    page = ask(gateway, url, form)
    assert page.status == 403
    found = stated(page, form)
    assert found["rule"] == HOSTILE_RULE
    assert found["reason"] == (HOSTILE_REASON if form is Form.JSON else 'Say "please",')
    start = f"{scheme}://hostile.example/a%27b%22c%5cd%3ce%3e&lt;f%00%ff%e2%80%a8%e2%80%a8%c3%a9?"
    assert found["url"].lower().startswith(start)
    assert found["url"].endswith("x" * 2000)
    if form is Form.HTML:
        assert "<b>" not in page.text
        assert page.text.count("</pre>") == 1


ACCEPTED = {
    None: Form.TEXT,
    "": Form.TEXT,
    "*/*": Form.TEXT,
    "text/plain": Form.TEXT,
    "application/vnd.docker.distribution.manifest.v2+json": Form.TEXT,
    "application/x-git-upload-pack-result": Form.TEXT,
    "application/json": Form.JSON,
    "application/problem+json": Form.JSON,
    "APPLICATION/JSON;q=0.1, */*": Form.JSON,
    "application/json, text/html": Form.HTML,
    "text/html": Form.HTML,
    "text/html; charset=utf-8": Form.HTML,
    "application/jsonx": Form.TEXT,
    "x-application/json": Form.TEXT,
    "application/json+x, */*": Form.TEXT,
    "application/json;q=0, */*": Form.TEXT,
    "text/html;q=0.000,application/json ;q=0.050": Form.JSON,
}


@pytest.mark.parametrize(("accept", "form"), ACCEPTED.items(), ids=map(str, ACCEPTED))
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_accept_selects_the_form(gateway: Gateway, scheme: str, accept: str | None, form: Form) -> None:
    header = "Accept:" if accept is None else f"Accept: {accept}" if accept else "Accept;"
    page = curl(gateway, f"{scheme}://closed.example/", "--header", header)
    assert page.header("Content-Type") == CONTENT_TYPES[form]


def test_a_request_that_is_invalid_under_every_policy_gets_its_page(gateway: Gateway) -> None:
    with Raw(gateway) as raw:
        page = raw.get("http://open.example/", "open.example", "Accept: application/json", method="TRACE")
    assert page is not None
    assert (page.status, page.header("Content-Type")) == (403, CONTENT_TYPES[Form.JSON])
    found = page.json
    assert (found["rule"], found["status"], found["retryable"]) == ("invalid-request", 403, False)
    assert (found["method"], found["cause"]) == ("TRACE", "client")


def test_the_command_on_a_page_explains_the_request_whatever_its_method_holds(gateway: Gateway) -> None:
    with Raw(gateway) as raw:
        page = raw.get("http://closed.example/a?b=c&d='e", "closed.example", method="A'`id`|$B")
    assert page is not None
    asked = "'A%27%60id%60%7C$B' 'http://closed.example/a?b=c&d=%27e'"
    words = f"{command('explain', gateway.layout)} --client 127.0.0.1 {asked}"
    assert page.line("For the operator") == f"sudo {words}"
    said = run("sh", "-c", words, check=False)
    assert said.startswith("DENY")
    assert "closed" in said


def test_a_tunnel_that_no_helper_decided_gets_a_page_that_says_to_try_again(new_gateway: NewGateway) -> None:
    gateway = new_gateway(POLICY)
    gateway.edit("squidkeeper.conf", "bin/squidkeeper acl --scope host", "bin/squidkeeper exporter --scope host")
    gateway.start()
    for url in ("https://open.example/", "http://open.example/"):
        for form in Form if url.startswith("https") else (Form.TEXT,):
            found = check_page(gateway, url, form, 403, "proxy_internal_error")
            assert (found["rule"], found["retryable"], found["url"]) == ("policy-unavailable", True, url)


def test_what_an_origin_answers_is_not_replaced(gateway: Gateway, origins: Origins) -> None:
    for status in (400, 403, 404, 413, 500, 502, 503, 504):
        forged = "squidkeeper; error=http_request_denied"  # this header is the gateway's alone
        told = {"Content-Type": "text/x-own", "X-Squid-Error": "ERR_DNS_FAIL 0", "Proxy-Status": forged}
        origins.fallback = Answer(status, b"of the origin", told)
        for scheme in ("http", "https"):
            answer = ask(gateway, f"{scheme}://a.open.example/{status}", Form.JSON)
            assert (answer.status, answer.body) == (status, b"of the origin")
            assert [answer.header(name) for name in ("Content-Type", "Proxy-Status", "Cache-Control")] == [
                *("text/x-own", None, None)
            ]


def test_a_denied_upload_leaves_no_connection_that_gets_no_answer(gateway: Gateway, origins: Origins) -> None:
    client = http.client.HTTPConnection(*gateway.address, timeout=10)
    body = b"x" * 100_000
    for sent, options in ((body, {}), ([body], {"encode_chunked": True})):
        headers = {"Transfer-Encoding": "chunked"} if options else {}
        client.request("POST", "http://closed.example/", sent, headers, **options)
        page = client.getresponse()
        assert (page.status, page.headers.get_all("Connection")) == (403, ["close"])
        assert b"Rule: closed" in page.read()
        client.request("GET", "http://a.open.example/")  # as a pool of connections does
        answer = client.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    client.close()


# --- failures -----------------------------------------------------------------------------------------------------


class BrokenOff(Answer):
    """An answer that does not come: the connection ends instead."""

    def encode(self) -> bytes:
        raise ConnectionAbortedError("as the test wants it")


class Bytes(Answer):
    """An answer that is written as it is."""

    def encode(self) -> bytes:
        return self.body


@pytest.fixture(scope="module")
def failing(new_gateway: NewGateway, folder: Path) -> Gateway:
    """A gateway with short deadlines, limits, a parent proxy that is down, and lines of the operator's own."""
    password_check = folder / "no-password-is-right"
    password_check.write_text("#!/bin/sh\nwhile read -r line; do echo ERR; done\n")
    password_check.chmod(0o755)
    gateway = new_gateway(
        FAILING_POLICY,
        *(
            "negative_dns_ttl 1 second",
            "connect_timeout 1 second",
            "read_timeout 1 second",
            "forward_timeout 2 seconds",
        ),
        *("request_body_max_size 10 KB", "reply_body_max_size 100 KB"),
        *("acl parented dstdomain parent.open.example", "cache_peer 203.0.113.10 parent 3999 0 no-query"),
        *("cache_peer_access 203.0.113.10 allow parented", "never_direct allow parented"),
        *("acl banned dstdomain banned.open.example", "http_access deny banned"),
        f"auth_param basic program {password_check}",
        *("acl user proxy_auth REQUIRED", "acl needs_user dstdomain user.open.example"),
        "http_access deny needs_user !user",
    )
    return gateway.start()


OPEN = 'an "open" rule \\'
FAILING_POLICY = f"""
version: 1
defaults: {{contact: "{CONTACT}"}}
rules:
  - {{name: '{OPEN}', action: allow, hosts: [.open.example], ports: [80, 443, 8443, 8080, 8085, 8086]}}
  - {{name: inside, action: allow, hosts: [.inside.example], private: true}}
"""
FAILURES = [
    # host and path, ports, status, error of RFC 9209, Squid's error, whether to retry
    ("refused.open.example/x", (8085, 8085), 502, "destination_unavailable", "ERR_CONNECT_FAIL", True),
    ("silent.open.example/x", (8086, 8086), 502, "destination_unavailable", "ERR_CONNECT_FAIL", True),
    ("none.inside.example/x", (80, 443), 503, "dns_error", "ERR_DNS_FAIL", True),
    ("bad.open.example/x", (None, 443), 502, "tls_certificate_error", "ERR_SECURE_CONNECT_FAIL", False),
    ("slow.open.example/x", (80, None), 504, "http_response_timeout", "ERR_READ_TIMEOUT", True),
    ("empty.open.example/x", (80, None), 502, "connection_terminated", "ERR_ZERO_SIZE_OBJECT", True),
    ("garbled.open.example/x", (80, 443), 502, "http_protocol_error", "", False),  # its reason tells all
    ("parent.open.example/x", (80, 443), 502, "destination_unavailable", "ERR_READ_ERROR", True),
]
WAITING = ("silent", "slow")  # these take seconds, so they are asked for in one form
CASES = [
    (f"{scheme}://{place.replace('/', f':{port}/') if port > 443 else place}", *expected)
    for place, ports, *expected in FAILURES
    for scheme, port in zip(("http", "https"), ports, strict=True)
    if port
]


@pytest.fixture
def silent_port(internet: None) -> Iterator[None]:
    """A port of the public origin that answers no connection: its queue is full."""
    with socket.create_server((PUBLIC, 8086), backlog=0), ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((PUBLIC, 8086))
        yield


@pytest.mark.parametrize(("url", "status", "proxy_error", "error", "retryable"), CASES, ids=str)
def test_a_failure_comes_in_the_form_that_the_client_accepts(
    failing: Gateway,
    names: Names,
    origins: Origins,
    silent_port: None,
    url: str,
    status: int,
    proxy_error: str,
    error: str,
    retryable: bool,
) -> None:
    names.set("none.inside.example", [])
    origins.untrusted.add("bad.open.example")
    gate = origins.gate()
    origins.answers |= {
        "slow.open.example/x": Answer(gate=gate),
        "empty.open.example/x": BrokenOff(),
        "garbled.open.example/x": Bytes(body=b"HTTP/1.1 two hundred\r\n\r\n"),
    }
    for form in (Form.JSON,) if url.split(".")[0].endswith(WAITING) else Form:
        found = check_page(failing, url, form, status, proxy_error)
        assert (found["url"], found["retryable"], found["contact"]) == (url, retryable, CONTACT)
        assert found["rule"] == {Form.JSON: OPEN if ".open." in url else "inside"}.get(form), found
        told = f"{found.get('error') or ''} {found.get('error_detail', '')}".split(" ")[0]
        assert told == error, found
    gate.open()


def test_the_answer_of_the_second_address_is_not_replaced_after_the_first_has_failed(
    failing: Gateway, names: Names
) -> None:
    names.set("two.open.example", [PUBLIC, "203.0.113.20"])
    with socket.create_server(("203.0.113.20", 8085)) as server:
        thread = Thread(target=answer_once, args=(server,))
        thread.start()
        answer = ask(failing, "http://two.open.example:8085/", Form.TEXT)
        thread.join()
    assert (answer.status, answer.text, answer.header("Proxy-Status")) == (503, "its own", None)


@pytest.mark.parametrize("silent", [pytest.param(True, marks=pytest.mark.long, id="silent"), False])
def test_a_tls_handshake_that_ends_early_can_be_tried_again(failing: Gateway, names: Names, silent: bool) -> None:
    name = f"{'silent' if silent else 'ended'}.open.example"
    names.set(name, ["203.0.113.20"])
    done = Event()
    with socket.create_server(("203.0.113.20", 8085)) as server:
        thread = Thread(target=end_handshakes, args=(server, done if silent else None), daemon=True)
        thread.start()
        found = check_page(failing, f"https://{name}:8085/", Form.JSON, 502, "connection_terminated")
        done.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert (found["type"], found["retryable"]) == ("urn:squidkeeper:tls-ended", True), found
    assert found["error"] == "ERR_SECURE_CONNECT_FAIL"


def end_handshakes(server: socket.socket, done: Event | None) -> None:
    """Take connections and end each, at once or when `done` is set."""
    with ExitStack() as stack, suppress(OSError):
        while True:
            connection = stack.enter_context(server.accept()[0])
            connection.recv(65536)
            if not done:
                connection.close()


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 7\r\nConnection: close\r\n\r\nits own")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_that_is_too_large_or_for_the_cache_alone_gets_its_page(
    failing: Gateway, tmp_path: Path, scheme: str
) -> None:
    body = tmp_path / "body"
    body.write_text("x" * 20_000)
    url = f"{scheme}://a.open.example/x"
    large = ask(failing, url, Form.JSON, "--data", f"@{body}", "--header", "Expect:")
    assert (large.status, large.json["type"], large.json["retryable"]) == (413, "urn:squidkeeper:too-large", False)
    cached = ask(failing, url, Form.JSON, "--header", "Cache-Control: only-if-cached")
    assert (cached.status, cached.json["type"]) == (504, "urn:squidkeeper:not-cached")
    unexpected = ask(failing, url, Form.JSON, "--header", "Expect: more")
    assert (unexpected.status, unexpected.json["type"]) == (400, "urn:squidkeeper:not-http")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_head_of_an_answer_that_is_too_large_is_the_origins_fault(
    failing: Gateway, origins: Origins, scheme: str
) -> None:
    origins.fallback = Bytes(body=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
    found = check_page(failing, f"{scheme}://a.open.example/head", Form.JSON, 502, "http_protocol_error")
    assert (found["type"], found["cause"]) == ("urn:squidkeeper:invalid-answer", "origin")
    assert len(origins.seen) == 1


@pytest.mark.parametrize("form", Form)
def test_a_deny_line_of_the_operators_own_has_a_page(failing: Gateway, form: Form) -> None:
    found = check_page(failing, "https://banned.open.example/", form, 403, "http_request_denied")
    assert found["rule"] == "policy-unavailable, or a line of squid.conf outside the policy"
    plain = ask(failing, "http://banned.open.example/", form)
    assert (plain.status, plain.header("Content-Type")) == (403, CONTENT_TYPES[Form.TEXT])
    assert plain.line("Request") == "GET http://banned.open.example/"
    assert (plain.header("Proxy-Status") or "").startswith("squidkeeper; error=proxy_internal_error")


UNREADABLE = {
    b"GET http://a.open.example/ HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n": (431, "Too large"),
    b"nonsense\r\n\r\n": (400, "The request is not valid"),
    b"GET /<script>alert(1)</script> HTTP/1.1\r\n\r\n": (400, "The request is not valid"),
    b"GET http://a.open.example/ HTTP/3.7\r\n\r\n": (505, "The request is not valid"),
    b"GET http://user.open.example/<script> HTTP/1.1\r\nHost: user.open.example\r\n\r\n": (407, "Proxy authentication"),
}


@pytest.mark.parametrize(("request_bytes", "page"), UNREADABLE.items(), ids=range(len(UNREADABLE)))
def test_what_squid_answers_on_its_own_is_a_page_of_ours_in_html(
    failing: Gateway, request_bytes: bytes, page: tuple[int, str]
) -> None:
    with Raw(failing) as raw:
        answer = raw.send(request_bytes).answer()
    assert answer is not None
    assert (answer.status, answer.header("Content-Type")) == (page[0], "text/html;charset=utf-8")
    assert f"<title>{page[1]}" in answer.text
    assert (answer.line("Contact"), answer.line("Error")) == ("the operator of this gateway", None)
    request_id = answer.line("Request ID")
    assert f"<xmp>sudo {command('why', failing.layout)} {request_id}</xmp>" in answer.text
    wait_for(lambda: [line for line in failing.log() if line["request_id"] == request_id], "its line in the access log")
    assert "<script" not in answer.text


def test_an_answer_that_is_too_large_gets_its_page(failing: Gateway, origins: Origins) -> None:
    origins.fallback = Answer(body=b"x" * 200_000)
    for scheme in ("http", "https"):
        answer = ask(failing, f"{scheme}://a.open.example/", Form.JSON)
        assert (answer.status, answer.json["type"]) == (413, "urn:squidkeeper:too-large")


def test_no_page_of_squids_is_left(failing: Gateway) -> None:
    pages = list((failing.root / "etc/errors").glob("ERR_*"))
    assert len(pages) > 90
    for page in pages:
        if page.name == "ERR_SQUIDKEEPER_TICKET":  # an answer
            continue
        text = page.read_text()
        assert '"request_id"' in text or "Request ID: " in text, page
        assert "Squid Software Foundation" not in text


# --- git ----------------------------------------------------------------------------------------------------------


def git(gateway: Gateway, *words: str | Path) -> str:
    """Run git behind a gateway; return what the terminal shows of a failure."""
    settings = {"https_proxy": f"http://{gateway.authority}", "GIT_SSL_CAINFO": str(gateway.ca)}
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C"}
    env = {**clean(), **settings, **quiet}
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, env=env)
    assert done.returncode
    return done.stderr


TERMINAL = re.compile(r"^```\n\$ git (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARYING = re.compile(r"(?<=Request ID: )\S+|(?<=Time: )\S+|(?<=--client )\S+")


def test_a_denied_clone_and_push_show_the_page_as_the_documentation_has_it(gateway: Gateway, tmp_path: Path) -> None:
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    run("git", "init", "-q", tmp_path)
    run("git", "-C", tmp_path, *author, "commit", "-q", "--allow-empty", "-m", "x")
    documented = TERMINAL.findall((REPOSITORY / "squid/TROUBLESHOOTING.md").read_text())
    assert [words.split()[0] for words, _ in documented] == ["clone", "push"]
    for words, text in documented:
        shown = git(gateway, "-C", tmp_path, *words.split())
        assert tidy(shown) == tidy(with_commands(text, gateway.layout))


def tidy(text: str) -> str:
    return VARYING.sub("…", re.sub(r" +$", "", text, flags=re.MULTILINE))
