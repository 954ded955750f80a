"""The report and the status page of a real gateway, in a real browser."""

import re
import subprocess
from html import unescape

import pytest

from tests.waiting import wait_for

from .browser import Visit, visit
from .curl import CurlFailed, curl
from .dns import Names
from .gateway import Gateway, NewGateway
from .observer import Exporter, fetch
from .origin import Origins
from .raw import Raw

NARROW, WIDE = 380, 1400
CLIENTS = 9  # more than the report names
POLICY = """
version: 1
clients:
  one: {networks: [127.0.0.1/32]}
rules:
  - {name: no-wikipedia, action: deny, hosts: [.wikipedia.org], reason: Wikipedia is closed to sandboxes.}
  - {name: api, action: allow, hosts: [api.example]}
  - {name: hotfix-window, action: allow, hosts: [deploy.example.com], expires: 2020-01-01T00:00:00Z, owner: platform}
  - {name: a-rule-with-a-long-name-as-operators-like-them, action: allow, hosts: [example.com]}
  - {name: nas, action: allow, hosts: [nas.example]}
secrets:
  token: {file: secrets/token}
  missing: {file: secrets/missing}
credentials:
  - {name: api-token, hosts: [api.example], paths: [/v1/**], bearer: token}
  - {name: no-token, hosts: [api.example], paths: [/v2/**], bearer: missing}
"""
SCRIPT = "<script>(top.ran=top.ran||[]).push(1)</script>"
CLOSED = """http-equiv="Content-Security-Policy" content="default-src 'none'\""""
HOSTILE = (
    SCRIPT,
    '"><img/src=x/onerror=(top.ran=top.ran||[]).push(2)>',
    "</title></style></svg>" + SCRIPT,
    "%E2%80%AEgnp.exe",
    "x" * 7000,
)


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, all_origins: Origins, names: Names) -> Gateway:
    """A gateway that has had ordinary and hostile requests."""
    gateway = new_gateway(
        POLICY, secrets={"token": "ghp_the-token-of-the-pages"}
    ).start()
    for url in (
        "https://api.example/v1/x?q=QUERY",
        "https://example.com/",
        "https://api.example/v2/x?q=QUERY",
    ):
        curl(gateway, url)
    for _ in range(3):
        curl(gateway, "https://en.wikipedia.org/wiki/Squid?q=QUERY")
    for number in range(CLIENTS):
        curl(gateway, "http://many.example/", client=f"127.0.0.{2 + number}")
    for text in HOSTILE:
        curl(gateway, f"http://evil.example/{text}?q=QUERY", "--globoff")
    with pytest.raises(CurlFailed):
        # does not trust our CA
        curl(
            gateway,
            "https://example.com/",
            "--cacert",
            all_origins.authority.certificate,
        )
    names.set("nas.example", ["10.0.0.5"])
    curl(gateway, "https://nas.example/")
    with Raw(gateway) as raw:
        raw.send(
            f"GET http://x.example/{SCRIPT} HTTP/1.1\r\nHost: x.example\r\nUser-Agent: {SCRIPT}\r\n\r\n".encode()
        )
        raw.answer()
    wait_for(
        lambda: (
            len(gateway.log()) >= 3 + 2 * 3 + 3 + CLIENTS + len(HOSTILE) + 1 + 2 + 1
        ),
        "the record of them",
    )
    return gateway


@pytest.fixture(scope="module")
def report(gateway: Gateway) -> str:
    page = gateway.root / "report.html"
    gateway.command("report", "--html", page, *gateway.places)
    return page.read_text()


@pytest.fixture(scope="module")
def status(exporter: Exporter) -> str:
    return fetch(exporter.port, "/").text


@pytest.fixture(scope="module")
def empty(gateway: Gateway) -> str:
    return gateway.command(
        "report", "--since", "2100-01-01", "--html", "-", *gateway.places
    ).stdout


@pytest.fixture(scope="module")
def light(report: str, status: str, empty: str) -> Visit:
    return visit({"report": report, "status": status, "empty": empty}, (NARROW, WIDE))


def test_the_browser_tells_what_must_not_be() -> None:
    """What the tests below find nothing of is found where it is."""
    open_page = f"<title>x</title>{SCRIPT}<img src='http://elsewhere.example/x'><p style='width: 900px'>wide"
    open_page += f"<p style='width: 50px'>{'narrow ' * 10}"
    seen = visit(
        {"open": open_page, "closed": f"<meta {CLOSED}>{open_page}"}, (NARROW,)
    )
    assert seen.ran == [1]
    assert "http://elsewhere.example/x" in seen.asked_for
    assert seen.views["open", NARROW].overflow > 500
    assert seen.views["open", NARROW].outside
    assert len(seen.views["open", NARROW].squeezed) == 1
    assert any("Content Security Policy" in line for line in seen.console)


def test_the_report_shows_who_went_where_and_what_was_denied(light: Visit) -> None:
    rows = light.views["report", WIDE].rows
    assert any(re.fullmatch(r"en\.wikipedia\.org 3 .*⊘ 3", row) for row in rows)
    assert any(
        row.startswith("no-wikipedia Wikipedia is closed to sandboxes. 3 2 ")
        for row in rows
    )
    assert any(
        row.startswith("3 127.0.0.1 no-wikipedia") and row.endswith("/wiki/Squid")
        for row in rows
    )
    assert any(re.match(r"api-token api\.example 1", row) for row in rows)
    assert light.views["report", WIDE].pictures >= 3


def test_the_status_page_says_what_is_wrong_and_shows_rules_denials_and_secrets(
    light: Visit,
) -> None:
    view = light.views["status", WIDE]
    assert "critical A secret is unavailable: secret missing: the file " in view.text
    assert any(re.match(r"1 no-wikipedia deny 3 \d+ \w+ ago", row) for row in view.rows)
    assert any(
        row.startswith("3 hotfix-window allow") and "expired" in row
        for row in view.rows
    )
    (wikipedia,) = [row for row in view.rows if "× 3 127.0.0.1 no-wikipedia" in row]
    assert re.search(
        r"/wiki/Squid The rule no-wikipedia \(/\S+/policy\.yaml:\d+\) denies it: Wikipedia is closed to sandboxes\.$",
        wikipedia,
    )
    assert any(row.startswith("token yes file ") for row in view.rows)
    assert any(row.startswith("host well ") for row in view.rows)


def test_a_client_that_does_not_trust_the_ca_is_no_failing_host_of_the_report(
    light: Visit,
) -> None:
    rows = light.views["report", WIDE].rows
    (mistrust,) = [row for row in rows if "ERR_SECURE_ACCEPT_FAIL" in row]
    assert mistrust.startswith(
        "127.0.0.1 1 TLS with the client failed: it does not trust the gateway's CA"
    )
    assert mistrust.endswith("example.com")


def test_a_tunnel_that_was_denied_for_its_address_is_one_denial_of_the_status_page(
    light: Visit,
) -> None:
    rows = light.views["status", WIDE].rows
    assert [
        re.sub(".* 127.0.0.1 ", "", row) for row in rows if "nas.example" in row
    ] == [
        "private-address GET https://nas.example/ nas.example has a private address, which the rule that allows it "
        "does not open."
    ]


def test_the_ready_command_explains_the_denial(gateway: Gateway, status: str) -> None:
    commands = [
        unescape(code)
        for code in re.findall(
            r"<code>(\S*/bin/squidkeeper explain [^<]*)</code>", status
        )
    ]
    command = next(
        command
        for command in commands
        if command.endswith("https://en.wikipedia.org/wiki/Squid")
    )
    assert command.startswith(f"{gateway.root}/bin/")
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(
        "DENY         GET https://en.wikipedia.org/wiki/Squid\nrule         no-wikipedia"
    )


def test_no_script_of_a_client_runs_and_nothing_is_asked_for_or_complained_of(
    light: Visit,
) -> None:
    assert light.ran == []
    assert light.asked_for == {
        f"http://pages.example/{name}"
        for name in ("probe", "report", "status", "empty")
    }
    assert [view.loaded for view in light.views.values()] == [[]] * len(light.views)
    assert light.console == []


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("page", ["report", "status", "empty"])
def test_nothing_is_wider_than_the_window_or_squeezed(
    light: Visit, page: str, width: int
) -> None:
    view = light.views[page, width]
    assert view.squeezed == []
    assert view.outside == []
    assert view.overflow == 0


def test_a_phone_shows_who_went_where_without_scrolling_sideways(light: Visit) -> None:
    view = light.views["report", NARROW]
    assert "traffic" not in view.scrolled
    row = next(row for row in view.rows if row.startswith("many.example"))
    assert row.count("⊘") == 8, row
    assert "traffic" not in light.views["report", WIDE].scrolled


def test_an_empty_span_is_a_page_that_says_so(light: Visit) -> None:
    assert "No request in this period." in light.views["empty", WIDE].text


def test_dark_is_dark(light: Visit, report: str, status: str) -> None:
    dark = visit({"report": report, "status": status}, (WIDE,), dark=True)
    for page in ("report", "status"):
        assert light.views[page, WIDE].background == "rgb(255, 255, 255)"
        assert dark.views[page, WIDE].background == "rgb(20, 23, 27)"


def test_no_query_and_no_secret_is_on_a_page(report: str, status: str) -> None:
    for page in (report, status):
        assert "evil.example" in page
        assert "QUERY" not in page
        assert "ghp_the-token-of-the-pages" not in page
