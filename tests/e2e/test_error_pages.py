"""The pages with which the gateway answers for itself: in the client's form, for every
denial and every failure.
"""

import http.client
import json
import re
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest

from squidkeeper.base.gateway_commands import command, with_commands
from squidkeeper.configuration.error_pages import NO_CONTACT, Form
from tests.waiting import wait_for

from .curl import clean, curl
from .dns import PUBLIC, Names
from .gateway import REPOSITORY, URL_SAFE, Gateway
from .network import run
from .origin import Answer, Origins
from .raw import Raw
from .reply import Reply

HOSTILE_RULE = 'a "quoted" <name> & \\'
HOSTILE_REASON = 'Say "please",\n<b>\\ & co. \u2028\u00e9\U0001f600 ' + "</pre>" * 20
QUOTED_REASON = json.dumps(HOSTILE_REASON, ensure_ascii=False).replace(
    "\u2028", "\\u2028"
)
CONTACT = "platform@example.com, #sandboxes"
POLICY = f"""
version: 1
defaults: {{reason: Ask for a host., contact: "{CONTACT}"}}
rules:
  - {{name: closed, action: deny, hosts: [closed.example], reason: It is closed.}}
  - {{name: '{HOSTILE_RULE}', action: deny, hosts: [hostile.example], reason: {QUOTED_REASON}}}
  - {{name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}}
  - {{name: open, action: allow, hosts: [.open.example], ports: [80, 443, 8085]}}
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
CONTENT_TYPES = {
    Form.TEXT: "text/plain; charset=utf-8",
    Form.JSON: "application/problem+json",
    Form.HTML: "text/html; charset=utf-8",
}
LABELS = {
    "rule": "Rule",
    "reason": "Reason",
    "contact": "Contact",
    "request_id": "Request ID",
    "time": "Time",
}


def ask(gateway: Gateway, url: str, form: Form = Form.TEXT, *options: str) -> Reply:
    return curl(
        gateway, url, "--header", f"Accept: {ACCEPT[form]}", "--globoff", *options
    )


def stated(page: Reply, form: Form) -> dict[str, Any]:
    """What a page states: by the members of its JSON, or by its lines of the same
    meaning.
    """
    if form is Form.JSON:
        return dict(page.json)
    method, _, url = (page.line("Request") or "").partition(" ")
    lines = {name: page.line(label) for name, label in LABELS.items()}
    return {
        **lines,
        "method": method,
        "url": url,
        "retryable": page.line("Retry") == "can help",
    }


def check_page(gateway: Gateway, url: str, form: Form) -> dict[str, Any]:
    """Ask for a URL that is denied, and check what all pages have in common; return
    what this one states.
    """
    page = ask(gateway, url, form)
    assert (page.status, page.header("Content-Type")) == (403, CONTENT_TYPES[form]), (
        page.text
    )
    assert (page.header("Proxy-Status") or "").startswith(
        "squidkeeper; error=http_request_denied; details="
    ), page.text
    if form is Form.TEXT:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", page.text)
    found = stated(page, form)
    assert (found["method"], found["url"]) == ("GET", url)
    check_id(gateway, found["request_id"], found["time"], url, 403)
    return found


def check_id(
    gateway: Gateway, request_id: str, time: str, url: str, status: int
) -> None:
    """Check that the access log has one line with this ID, of this request."""
    assert abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(minutes=1)
    lines = wait_for(
        lambda: [line for line in gateway.log() if line["request_id"] == request_id],
        "its line",
    )
    assert [(line["url"], line["status"]) for line in lines] == [
        (quote(url, safe=URL_SAFE), status)
    ]
    assert request_id.startswith(f"{lines[0]['gateway']}.1")


DENIALS = [
    # URL, rule, reason
    ("http://closed.example/a?b=c&lt=d", "closed", "It is closed."),
    ("https://closed.example/a?b=c&lt=d", "closed", "It is closed."),
    ("https://paths.example/closed", "default", "Ask for a host."),
    ("https://keyed.example/x", "credential-unavailable", "The credential for"),
    ("https://paths.example/open/%2e%2e/x", "ambiguous-path", ""),
    ("https://private.open.example/", "private-address", "The host has a private"),
    ("http://private.open.example/", "private-address", "The host has a private"),
]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("url", "rule", "reason"), DENIALS, ids=[denial[0] for denial in DENIALS]
)
def test_a_denial_comes_in_the_form_that_the_client_accepts(
    gateway: Gateway,
    names: Names,
    origins: Origins,
    url: str,
    rule: str,
    reason: str,
    form: Form,
) -> None:
    names.set("private.open.example", ["10.0.0.5"])
    found = check_page(gateway, url, form)
    assert (found["rule"], found["contact"]) == (
        rule,
        NO_CONTACT if rule == "private-address" else CONTACT,
    )
    assert str(found["reason"]).startswith(reason)
    assert not found["retryable"]
    assert origins.seen == []


LACKING = "version: 1\nrules: [{name: lacking, action: allow, hosts: [lacking.example], strip: [X-Lacking]}]\n"


@pytest.mark.parametrize("form", Form)
def test_a_denial_that_ends_within_seconds_says_when_to_repeat_the_request(
    gateway: Gateway, form: Form
) -> None:
    gateway.renders = False
    gateway.write("lacking.yaml", LACKING)
    url = "https://lacking.example/x"
    wait_for(
        lambda: stated(ask(gateway, url), Form.TEXT)["rule"] == "not-rendered",
        "the edit",
    )
    found = check_page(gateway, url, form)
    assert (found["rule"], found["retryable"], found["contact"]) == (
        "not-rendered",
        True,
        CONTACT,
    )
    assert found["reason"].endswith("repeat the request.")
    assert form is not Form.JSON or found["retry_after_seconds"] == 10
    assert form is Form.JSON or ask(gateway, url, form).line("Retry after") == "10 s"


@pytest.mark.parametrize("form", Form)
def test_a_request_in_a_denied_tunnel_has_a_line_of_its_own(
    gateway: Gateway, form: Form
) -> None:
    before, url = len(gateway.log()), "https://closed.example/own?line"
    page = ask(gateway, url, form)
    assert stated(page, form)["url"] == url
    wait_for(
        lambda: url in [line["url"] for line in gateway.log()[before:]], "its line"
    )
    connect, inside = gateway.log()[before:]
    assert [
        (line["method"], line["url"], line["status"]) for line in (connect, inside)
    ] == [
        ("CONNECT", "closed.example:443", 200),
        ("GET", url, 403),
    ]
    for name in ("verdict", "rule", "connection", "tunnel"):
        assert connect[name] == inside[name]
    assert (inside["verdict"], inside["rule"], inside["tunnel"]) == (
        "deny",
        "closed",
        "closed.example:443 first",
    )
    assert (connect["page"], connect["error"]) == ("-", "-")
    assert (inside["page"], inside["error"]) == (
        "denied",
        f"403:ERR_SQUIDKEEPER_{form.name}",
    )


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_hostile_names_reasons_and_urls_stay_text(
    gateway: Gateway, scheme: str, form: Form
) -> None:
    url = (
        f"{scheme}://hostile.example/a'b\"c\\d<e>&lt;f%00%ff%e2%80%a8\u2028\u00e9?"
        + "x" * 2000
    )
    page = ask(gateway, url, form)
    assert page.status == 403
    found = stated(page, form)
    assert found["rule"] == (
        HOSTILE_RULE if form is not Form.HTML else quote(HOSTILE_RULE, safe="&")
    )
    assert found["reason"] == (
        HOSTILE_REASON.replace("</", "< /") if form is Form.JSON else 'Say "please",'
    )
    start = f"{scheme}://hostile.example/a%27b%22c%5cd%3ce%3e&lt;f%00%ff%e2%80%a8%e2%80%a8%c3%a9?"
    assert found["url"].lower().startswith(start)
    assert found["url"].endswith("x" * 2000)
    if form is Form.HTML:
        assert page.text.count("</") == len(
            ("</title>", "</style>", "</head>", "</xmp>", "</body>", "</html>")
        )


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
def test_accept_selects_the_form(
    gateway: Gateway, scheme: str, accept: str | None, form: Form
) -> None:
    header = (
        "Accept:" if accept is None else f"Accept: {accept}" if accept else "Accept;"
    )
    page = curl(gateway, f"{scheme}://closed.example/", "--header", header)
    assert page.header("Content-Type") == CONTENT_TYPES[form]


def test_a_request_that_is_invalid_under_every_policy_gets_its_page(
    gateway: Gateway,
) -> None:
    with Raw(gateway) as raw:
        page = raw.get(
            "http://open.example/",
            "open.example",
            "Accept: application/json",
            method="TRACE",
        )
    assert (page.status, page.header("Content-Type")) == (403, CONTENT_TYPES[Form.JSON])
    found = page.json
    assert (found["rule"], found["status"], found["retryable"]) == (
        "invalid-request",
        403,
        False,
    )
    assert (found["method"], found["cause"]) == ("TRACE", "client")


def test_a_head_request_is_denied_without_a_body(
    gateway: Gateway, origins: Origins
) -> None:
    with Raw(gateway) as raw:
        reply = raw.get("http://closed.example/", "closed.example", method="HEAD")
    assert (reply.status, reply.body, origins.seen) == (403, b"", [])


def test_the_command_on_a_page_explains_the_request_whatever_its_method_holds(
    gateway: Gateway,
) -> None:
    with Raw(gateway) as raw:
        page = raw.get(
            "http://closed.example/a?b=c&d='e", "closed.example", method="A'`id`|$B"
        )
    asked = "'A%27%60id%60%7C$B' 'http://closed.example/a?b=c&d=%27e'"
    words = f"{command('explain', gateway.layout)} --client 127.0.0.1 {asked}"
    assert page.line("For the operator") == f"sudo {words}"
    said = run("sh", "-c", words, check=False)
    assert said.startswith("DENY")
    assert "closed" in said


def test_what_an_origin_answers_is_not_replaced(
    gateway: Gateway, origins: Origins
) -> None:
    for status in (400, 403, 404, 413, 500, 502, 503, 504):
        # this header is the gateway's alone
        forged = "squidkeeper; error=http_request_denied"
        told = {
            "Content-Type": "text/x-own",
            "X-Squid-Error": "ERR_DNS_FAIL 0",
            "Proxy-Status": forged,
        }
        origins.fallback = Answer(status, b"of the origin", told)
        for scheme in ("http", "https"):
            answer = ask(gateway, f"{scheme}://a.open.example/{status}", Form.JSON)
            assert (answer.status, answer.body) == (status, b"of the origin")
            assert (answer.header("Content-Type"), answer.header("Proxy-Status")) == (
                "text/x-own",
                None,
            )


def test_a_denied_upload_leaves_no_connection_that_gets_no_answer(
    gateway: Gateway, origins: Origins
) -> None:
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


def test_the_answer_of_the_second_address_is_not_replaced_after_the_first_has_failed(
    gateway: Gateway, names: Names
) -> None:
    names.set("two.open.example", [PUBLIC, "203.0.113.20"])
    with socket.create_server(("203.0.113.20", 8085)) as server:
        thread = Thread(target=answer_once, args=(server,))
        thread.start()
        answer = ask(gateway, "http://two.open.example:8085/", Form.TEXT)
        thread.join()
    assert (answer.status, answer.text, answer.header("Proxy-Status")) == (
        503,
        "its own",
        None,
    )


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 503 Busy\r\nContent-Length: 7\r\nConnection: close\r\n\r\nits own"
        )


def test_no_page_of_squids_is_left(gateway: Gateway) -> None:
    pages = list((gateway.root / "etc/errors").glob("ERR_*"))
    assert len(pages) > 40
    for page in pages:
        if page.name == "ERR_SQUIDKEEPER_TICKET":  # an answer
            continue
        text = page.read_text()
        assert '"request_id"' in text or "Request ID: " in text, page
        assert "Squid Software Foundation" not in text


# --- git ------------------------------------------------------------------------------


def git(gateway: Gateway, *words: str | Path) -> str:
    """Run git behind a gateway; return what the terminal shows of a failure."""
    settings = {
        "https_proxy": f"http://{gateway.authority}",
        "GIT_SSL_CAINFO": str(gateway.ca),
    }
    quiet = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "LC_ALL": "C",
    }
    env = {**clean(), **settings, **quiet}
    done = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode
    return done.stderr


DENIED_CLONE = (REPOSITORY / "tests/data/denied_clone.txt").read_text()
VARYING = re.compile(
    r"(?<=Request ID: )\S+|\S+\.[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$|(?<=Time: )\S+|(?<=--client )\S+",
    re.MULTILINE,
)


def test_a_denied_clone_and_push_show_the_whole_page(
    gateway: Gateway, tmp_path: Path
) -> None:
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    run("git", "init", "-q", tmp_path)
    run("git", "-C", tmp_path, *author, "commit", "-q", "--allow-empty", "-m", "x")
    shown = git(gateway, "-C", tmp_path, "clone", "https://closed.example/app.git")
    assert tidy(shown) == tidy(with_commands(DENIED_CLONE, gateway.layout))
    shown = git(gateway, "-C", tmp_path, "push", PUSHED_TO, "HEAD:main")
    assert tidy(shown) == tidy(with_commands(of_a_push(DENIED_CLONE), gateway.layout))


PUSHED_TO = "https://git.example/acme/app.git"
OF_A_PUSH = {
    "https://closed.example/app.git": PUSHED_TO,
    "git-upload-pack": "git-receive-pack",
    "Rule: closed": "Rule: no-push",
    "Reason: It is closed.": "Reason: Read-only. Open a pull request instead.",
}


def of_a_push(text: str) -> str:
    """The page of a clone, as a push has it."""
    _, text = text.split("\n", 1)  # "Cloning into …"
    for cloned, pushed in OF_A_PUSH.items():
        assert cloned in text
        text = text.replace(cloned, pushed)
    return text


def tidy(text: str) -> str:
    return VARYING.sub("…", re.sub(r" +$", "", text, flags=re.MULTILINE))
