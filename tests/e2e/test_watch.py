"""Secrets, canaries and placeholders on a live Squid: not sent, logged by name, and
their values in no file.

When the run ends, no log of any gateway may hold a value that it was given (`site` in
conftest.py).
"""

import base64
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from squidkeeper.policy.protocol.request_headers import FIRST_COPY_HEADERS as FIRST_COPY
from squidkeeper.policy.protocol.request_headers import READ_HEADERS
from tests.waiting import wait_for

from .curl import curl
from .gateway import REPOSITORY, Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply

POLICY = """
version: 1
clients:
  one: {networks: [127.0.0.1/32]}
  two: {networks: [127.0.0.2/32]}
canaries:
  bait: {file: secrets/bait}
rules:
  - {name: stripped, action: allow, hosts: [api.example], paths: [/v1/**], strip: [Referer]}
  - {name: api, action: allow, hosts: [api.example, "*.open.example", open.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: api, clients: [one], hosts: [api.example], paths: [/v1/**], bearer: token, placeholder: dummy-key-for-sdks}
"""
TOKEN = "sk-watch-Token/of+the=gateway_0123456789"
BAIT = "AKIAWATCHBAIT0EXAMPLE"
PLACEHOLDER = "dummy-key-for-sdks"
LEAVING = "secret-leaving"


@pytest.fixture(scope="module")
def collector(internet: None) -> Iterator[socket.socket]:
    """Whoever collects the record by UDP."""
    with socket.socket(type=socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.setblocking(False)
        yield listening


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, collector: socket.socket) -> Gateway:
    port = collector.getsockname()[1]
    lines = [
        line.replace("192.0.2.20:5140", f"127.0.0.1:{port}")
        for line in collector_lines()
    ]
    return new_gateway(
        POLICY, *lines, secrets={"token": TOKEN + "\n", "bait": BAIT}
    ).start()


def collector_lines() -> list[str]:
    """The lines for a collector, as they are documented."""
    lines = (REPOSITORY / "squid/local.conf").read_text().splitlines()
    return [
        line.removeprefix("#") for line in lines if line.startswith("#access_log udp:")
    ]


def collected(collector: socket.socket) -> list[bytes]:
    """What has come to the collector since this was asked before."""
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(collector.recv(65536))
    return found


def coded(value: str, before: str = "") -> str:
    return base64.b64encode(f"{before}{value}".encode()).decode()


def every_byte(value: str) -> str:
    return "".join(f"%{byte:02x}" for byte in value.encode())


FORMS = {
    "as it is": TOKEN,
    "in another case": TOKEN.upper(),
    "with every byte escaped": every_byte(TOKEN),
    "escaped twice": quote(every_byte(TOKEN)),
    "in base64": coded(TOKEN),
    "in base64 behind one byte": coded(TOKEN, "x"),
    "in base64 behind two bytes": coded(TOKEN, "xy"),
    "in base64 for URLs": coded(TOKEN, "user:").replace("+", "-").replace("/", "_"),
    "in hexadecimal": TOKEN.encode().hex(),
    "a canary": BAIT,
}


def withheld(gateway: Gateway, before: int) -> list[dict[str, Any]]:
    """The lines of a request that was denied for what it holds, waited for."""
    return wait_for(
        lambda: [line for line in gateway.log()[before:] if line["rule"] == LEAVING],
        f"{LEAVING} in {gateway.root}/log",
    )


def leaves(
    gateway: Gateway,
    origins: Origins,
    reply: Reply,
    before: int,
    name: str = "secret:token",
) -> None:
    """Expect the denial by name, a record that has the name and nothing that the client
    sent, and no request sent.
    """
    assert (reply.status, reply.rule) == (403, LEAVING), reply.text
    line = withheld(gateway, before)[-1]
    assert (line["verdict"], line["found"]) == ("deny", name), line
    assert {
        line[field]
        for field in (
            "url",
            "fetched",
            "sni",
            "tunnel",
            "user_agent",
            "referrer",
            "content_type",
        )
    } == {"-"}, line
    assert origins.seen == []


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_in_a_query_does_not_leave(
    gateway: Gateway, origins: Origins, form: str
) -> None:
    before = len(gateway.log())
    reply = curl(
        gateway, f"https://open.example/search?q={quote(FORMS[form], safe='%')}"
    )
    leaves(
        gateway,
        origins,
        reply,
        before,
        "canary:bait" if form == "a canary" else "secret:token",
    )


@pytest.mark.parametrize(
    "header",
    [
        "User-Agent",
        "Referer",
        "Cookie",
        "X-Api-Key",
        "Accept-Language",
        "Authorization",
    ],
)
def test_a_secret_in_a_header_does_not_leave(
    gateway: Gateway, origins: Origins, header: str
) -> None:
    before = len(gateway.log())
    leaves(
        gateway,
        origins,
        curl(gateway, "http://open.example/", "-H", f"{header}: a {TOKEN} b"),
        before,
    )


def test_a_canary_in_the_host_of_a_tunnel_does_not_leave(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    reply = curl(gateway, f"https://{BAIT.lower()}.open.example/x")
    leaves(gateway, origins, reply, before, "canary:bait")


DENIED = {
    "by a rule": ["https://closed.example/?q=VALUE"],
    "by a rule, without TLS": ["http://closed.example/?q=VALUE"],
    "by its path": ["https://paths.example/closed?q=VALUE"],
    "for its user": ["http://VALUE:x@open.example/"],
    "for its method": ["http://open.example/?q=VALUE", "-X", "TRACE"],
    "as a page of Squid": ["http://open.example/squid-internal-mgr/VALUE"],
    "in its host": ["https://VALUE.closed.example/"],
    "in its client's name": ["http://closed.example/", "-A", "VALUE"],
    "in its referrer": ["http://closed.example/", "-e", "http://VALUE/"],
}


@pytest.mark.parametrize("how", DENIED)
def test_no_log_has_the_value_where_the_request_is_denied_anyway(
    gateway: Gateway, origins: Origins, how: str
) -> None:
    before = len(gateway.log())
    url, *options = (word.replace("VALUE", BAIT) for word in DENIED[how])
    assert curl(gateway, url, *options).status == 403
    wait_for(
        lambda: [line for line in gateway.log()[before:] if line["status"] == 403],
        "the line of the denial",
    )
    assert BAIT.lower() not in str(gateway.log()[before:]).lower()
    assert origins.seen == []


def test_a_request_with_a_canary_in_a_denied_tunnel_is_an_event_beside_the_host_that_was_denied(
    gateway: Gateway, tmp_path: Path
) -> None:
    before = len(gateway.log())
    with tunnel(gateway, "closed.example:443") as client:
        answer = client.get(f"/?q={BAIT}", "good.example")
    assert answer.status == 403
    wait_for(lambda: len(gateway.log()) == before + 2, "both lines")
    connect, inside = gateway.log()[before:]
    assert (inside["url"], inside["tunnel"]) == ("-", "-")
    log = tmp_path / "access.log"
    lines = (gateway.root / "log/access.log").read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[before:]))
    said = gateway.command(
        "log", "--json", "--policy", gateway.policy_folder, log
    ).stdout
    shown = [json.loads(line) for line in said.splitlines()]
    assert [(record["url"], record["rule"], record["found"]) for record in shown] == [
        ("closed.example:443", "default", "-"),
        ("-", LEAVING, "canary:bait"),
    ]
    assert (connect["url"], connect["verdict"], connect["rule"]) == (
        "closed.example:443",
        "deny",
        "default",
    )
    why = gateway.command(
        "why", inside["request_id"], "--policy", gateway.policy_folder, log
    ).stdout
    assert "The request held what must not leave: canary:bait." in why
    assert f"403  GET -  ({inside['request_id']})" in why


# What Squid refuses without a question to a helper: the target of the request, its
# version and a header.
REFUSED = {
    "a wrong login": (
        "http://open.example/?q=VALUE",
        "1.1",
        f"Proxy-Authorization: Basic {coded('a:b')}",
    ),
    "an expectation": ("http://open.example/?q=VALUE", "1.1", "Expect: VALUE"),
    "a port": ("http://open.example:99999/?q=VALUE", "1.1", "Accept: */*"),
    "no host": ("/?q=VALUE", "1.1", "Accept: */*"),
    "a version": ("http://open.example/?q=VALUE", "9.1", "Accept: */*"),
    "a method": ("http://open.example/?q=VALUE", "1.1", "Content-Length: VALUE"),
    "a rule": ("http://closed.example/?q=VALUE", "1.1", "User-Agent: VALUE"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_collector_gets_no_value_of_a_request_that_squid_refuses(
    gateway: Gateway, collector: socket.socket, why: str
) -> None:
    target, version, header = (part.replace("VALUE", BAIT) for part in REFUSED[why])
    before = len(gateway.log())
    collected(collector)
    with Raw(gateway) as raw:
        reply = raw.send(
            f"GET {target} HTTP/{version}\r\nHost: open.example\r\n{header}\r\n\r\n"
        ).answer()
    assert reply.status >= 400
    lines = wait_for(lambda: gateway.log()[before:], "a line of the log")
    sent = collected(collector)  # Squid writes to it ahead of its log
    assert len(sent) >= len(lines)
    assert BAIT.lower() not in f"{lines}{sent}".lower()


def test_a_collector_gets_the_url_of_a_request_that_holds_nothing(
    gateway: Gateway, collector: socket.socket
) -> None:
    collected(collector)
    assert curl(gateway, "http://open.example/collected").status == 200
    assert (
        b"http://open.example/collected"
        in wait_for(lambda: collected(collector), "a line for the collector")[0]
    )


def test_connections_without_a_request_leave_nothing_in_the_log_of_squid(
    gateway: Gateway,
) -> None:
    before, said = len(gateway.log()), len(gateway.cache_log())
    for _ in range(5):
        Raw(gateway).close()

    def lines() -> list[dict[str, Any]]:  # that of another request can be late
        return [line for line in gateway.log()[before:] if line["url"] == "-"]

    wait_for(lambda: len(lines()) == 5, "a line for each")
    assert {line["rule"] for line in lines()} == {"-"}
    assert gateway.cache_log()[said:] == ""


def test_a_path_that_the_record_needs_is_in_it_where_nothing_was_found(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    for url in (
        "https://open.example/plain?q=1",
        "http://open.example/plain?q=2",
        "https://paths.example/closed",
    ):
        curl(gateway, url)
        line = gateway.logged(url, before)
        assert line["found"] == "-"
        assert line["rule"] == ("api" if "open.example" in url else "default")


def test_what_the_gateway_injects_is_not_taken_for_a_leak(
    gateway: Gateway, origins: Origins
) -> None:
    reply = curl(
        gateway,
        "https://api.example/v1/x",
        "-H",
        f"Authorization: Bearer {PLACEHOLDER}",
    )
    assert reply.status == 200
    assert origins.seen[0].values("Authorization") == [f"Bearer {TOKEN}"]


MISDIRECTED = {
    "another host": ("127.0.0.1", "https://open.example/v1/x"),
    "another path": ("127.0.0.1", "https://api.example/v2/x"),
    "another client": ("127.0.0.2", "https://api.example/v1/x"),
    "no TLS": ("127.0.0.1", "http://api.example/v1/x"),
}


@pytest.mark.parametrize(
    "sent",
    [
        f"Authorization: Bearer {PLACEHOLDER}",
        f"Authorization: Basic {coded('u:' + PLACEHOLDER)}",
    ],
)
@pytest.mark.parametrize("where", MISDIRECTED)
def test_a_placeholder_elsewhere_is_denied_by_name(
    gateway: Gateway, origins: Origins, where: str, sent: str
) -> None:
    client, url = MISDIRECTED[where]
    before = len(gateway.log())
    reply = curl(gateway, url, "-H", sent, client=client)
    assert (reply.status, reply.rule) == (403, "placeholder-misdirected"), reply.text
    assert gateway.logged(url, before)["found"] == "placeholder:api"
    assert origins.seen == []


def test_a_header_that_no_helper_reads_does_not_pass(
    gateway: Gateway, origins: Origins
) -> None:
    unread = [
        "-H",
        f"X-Made-Up: {TOKEN}",
        "-H",
        f"X_Api_Key: {TOKEN}",
        "-H",
        f"X-HTTP-Method-Override: {TOKEN}",
    ]
    assert (
        curl(gateway, "https://open.example/x", *unread, "-H", "Accept: text/x").status
        == 200
    )
    assert origins.seen[0].values("Accept") == ["text/x"]
    assert TOKEN.encode() not in origins.seen[0].head
    assert origins.seen[0].values("Host") == ["open.example"]


def test_of_headers_that_squid_states_once_the_first_copy_alone_passes(
    gateway: Gateway, origins: Origins
) -> None:
    odd = "'\"\\ %41 %{x}>h \xe9, b"  # sent as it is
    values = {
        name: f"bytes={number}-" if name == "Range" else f"v{number}{odd}"
        for number, name in enumerate(FIRST_COPY)
    }
    twice = [
        f"{name}: {sent}"
        for name, value in values.items()
        for sent in (value, f"a {TOKEN}", PLACEHOLDER)
    ]
    before = len(gateway.log())
    with tunnel(gateway, "open.example:443") as raw:
        for target in ("/both", "/none"):
            reply = raw.get(
                target, "open.example", *(twice if target == "/both" else [])
            )
            assert reply.status == 200, reply.text
    both, none = origins.seen
    assert {name: both.values(name) for name in values} == {
        name: [value] for name, value in values.items()
    }
    assert {name for name in values if none.values(name)} == set()
    assert gateway.logged("https://open.example/both", before)["user_agent"].startswith(
        "v"
    )


def test_a_secret_in_the_second_copy_of_any_other_header_does_not_leave(
    gateway: Gateway, origins: Origins
) -> None:
    passed = []
    for name in sorted({*READ_HEADERS} - {*FIRST_COPY}):
        with Raw(gateway, "127.0.0.5") as raw:
            reply = raw.get(
                "http://open.example/", "open.example", f"{name}: 1", f"{name}: {TOKEN}"
            )
            passed += [name] if not reply or reply.rule != LEAVING else []
    assert not [
        name
        for name in passed
        if TOKEN.encode() in b"".join(seen.head for seen in origins.seen)
    ]
    assert passed == ["If-Modified-Since"]  # Squid itself sends the first copy alone


def test_a_secret_in_the_version_of_a_websocket_does_not_leave(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    with tunnel(gateway, "open.example:443") as raw:
        reply = raw.get(
            "/", "open.example", "Connection: Upgrade", f"Upgrade: websocket/{TOKEN}"
        )
        leaves(gateway, origins, reply, before)


def test_an_injected_header_and_a_removed_one_are_not_added_again(
    gateway: Gateway, origins: Origins
) -> None:
    sent = [
        "Authorization: Bearer " + PLACEHOLDER,
        "Authorization: mine",
        "Cookie: a",
        "User-Agent: x",
        "Referer: r",
    ]
    options = [word for line in sent for word in ("-H", line)]
    assert curl(gateway, "https://api.example/v1/x", *options).status == 200
    [seen] = origins.seen
    assert {
        name: seen.values(name)
        for name in ("Authorization", "Cookie", "User-Agent", "Referer")
    } == {
        "Authorization": [f"Bearer {TOKEN}"],
        "Cookie": ["a"],
        "User-Agent": ["x"],
        "Referer": [],
    }


def test_headers_of_more_than_16_kb_are_denied_before_a_helper_reads_them(
    gateway: Gateway, origins: Origins
) -> None:
    def ask(number: int) -> int:
        with Raw(gateway) as raw:
            reply = raw.get(
                "http://open.example/",
                "open.example",
                f"Cookie: {TOKEN}{number}" + "%25" * 5_600,
            )
            assert (
                "Reason: A limit of squid.conf: request_header_max_size" in reply.text
            )
            return reply.status

    before = len(gateway.log())
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(20))) == {431}
    lines = wait_for(
        lambda: gateway.log()[before + 19 :] and gateway.log()[before:],
        "a line for each request",
    )
    assert {
        (line["error"], line["client"], line["url"], line["rule"]) for line in lines
    } == {("ERR_TOO_BIG", "127.0.0.1", "-", "-")}
    assert origins.seen == []
    with tunnel(gateway, "open.example:443") as raw:
        longest = raw.get("/", "open.example", "User-Agent: " + "%25" * 5_300)
        assert longest.status == 200


def test_the_second_request_of_a_tunnel_is_searched_too(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "open.example:443") as raw:
        first = raw.get("/", "open.example")
        assert first.status == 200
        origins.forget()
        before = len(gateway.log())
        leaves(gateway, origins, raw.get(f"/{TOKEN}", "open.example"), before)


def test_a_request_is_denied_and_withheld_while_the_helper_is_dead(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    curl(gateway, "http://open.example/")
    with gateway.stopped_helpers("watch"), ThreadPoolExecutor(1) as pool:
        pending = pool.submit(curl, gateway, f"http://open.example/?q={TOKEN}")
        wait_for(lambda: gateway.unread() == 0, "Squid to read the request")
        gateway.kill_helpers("watch")
        assert pending.result().status == 403
    line = wait_for(
        lambda: [line for line in gateway.log()[before:] if line["status"] == 403],
        "the denial",
    )[-1]
    assert line["url"] == "-"


@pytest.mark.one_worker(
    "an edit is in force within three seconds, not in every worker in the same instant"
)
def test_an_edit_turns_the_watch_on_and_off_and_a_rotated_secret_is_watched(
    new_gateway: NewGateway, origins: Origins
) -> None:
    rules = "rules: [{name: open, action: allow, hosts: [open.example]}]\n"
    off = f"version: 1\n{rules}secrets: {{token: {{file: secrets/token}}}}\n"
    gateway = new_gateway(off)
    gateway.secret("token", "first-value-of-it-0123")
    gateway.start()

    def status(value: str) -> int:
        return curl(gateway, "http://open.example/", "-H", f"Cookie: {value}").status

    assert status("first-value-of-it-0123") == 200
    assert gateway.helpers("watch") == []
    gateway.write("policy.yaml", off + "defaults: {watch_secrets: true}\n")
    wait_for(lambda: status("first-value-of-it-0123") == 403, "the watch")
    gateway.secret("token", "second-value-of-it-0123")
    wait_for(
        lambda: status("second-value-of-it-0123") == 403, "the watch for the new value"
    )
    assert status("first-value-of-it-0123") == 403
    gateway.write("policy.yaml", off)
    wait_for(lambda: status("first-value-of-it-0123") == 200, "no watch")
