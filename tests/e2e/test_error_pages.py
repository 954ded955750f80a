"""The pages with which the gateway answers for itself: in the client's form, for every denial and every failure."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from squidkeeper.setup.error_pages import CONTENT_TYPES, Form

from .curl import curl
from .dns import Names
from .gateway import Gateway, NewGateway
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
    before = len(gateway.log())
    page = ask(gateway, url, form)
    assert (page.status, page.header("Content-Type")) == (status, CONTENT_TYPES[form]), page.text
    assert page.header("Cache-Control") == "no-store"
    assert (page.header("Proxy-Status") or "").startswith(f"squidkeeper; error={proxy_error}; details="), page.headers
    if form is Form.TEXT:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", page.text)
    found = stated(page, form)
    assert found["method"] == "GET"
    assert abs(datetime.fromisoformat(found["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    line = gateway.logged(found["url"], before)
    assert (line["request_id"], line["status"]) == (found["request_id"], status)
    return found


DENIALS = [
    # URL, status, error of RFC 9209, rule, reason, whether to retry
    ("http://closed.example/a?b=c&lt=d", 403, "http_request_denied", "closed", "It is closed.", False),
    ("https://closed.example/a?b=c&lt=d", 403, "http_request_denied", "closed", "It is closed.", False),
    ("https://paths.example/closed", 403, "http_request_denied", "default", "Ask for a host.", False),
    ("https://keyed.example/x", 403, "http_request_denied", "credential-unavailable", "The credential for", False),
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
    command = page.line("For the operator")
    assert command == "squidkeeper explain --client 127.0.0.1 'A%27%60id%60%7C$B' 'http://closed.example/a?b=c&d=%27e'"
    words = command.replace("squidkeeper", f"{gateway.root}/bin/squidkeeper")
    said = run("sh", "-c", f"{words} --policy {gateway.policy_folder}", check=False)
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
        told = {"Content-Type": "text/x-own", "X-Squid-Error": "ERR_DNS_FAIL 0", "Proxy-Status": "theirs"}
        origins.fallback = Answer(status, b"of the origin", told)
        for scheme in ("http", "https"):
            answer = ask(gateway, f"{scheme}://a.open.example/{status}", Form.JSON)
            assert (answer.status, answer.body) == (status, b"of the origin")
            assert [answer.header(name) for name in ("Content-Type", "Proxy-Status", "Cache-Control")] == [
                *("text/x-own", "theirs", None)
            ]
