"""The record under requests that are made to break it: every line strict JSON, one for
each request, its fields intact.

1,000 requests by default; SQUIDKEEPER_HOSTILE_REQUESTS=100000 sends as many as that,
which takes some minutes.
"""

import json
import os
import random
import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import pytest

from squidkeeper.base.rotated_logs import rotated
from squidkeeper.base.squid_counters import read_counters
from squidkeeper.policy.url import recorded_url
from squidkeeper.record.archive.archiver import Archiver
from squidkeeper.record.archive.retention import days_of
from squidkeeper.record.chain.chain import read_chain
from squidkeeper.record.export.facts import ExportOptions
from squidkeeper.record.export.formats import FORMATS, MessageEncoder
from squidkeeper.record.log.follower import Follower
from squidkeeper.record.log.log_files import read_log_lines
from squidkeeper.record.log.record import (
    LENGTHS,
    LINE_LENGTH,
    NONE,
    Record,
    parse_record,
    redacted_url,
)
from squidkeeper.services.maintenance.rotation import Rotation
from squidkeeper.services.maintenance.squid_process import SquidProcess
from tests.archived import archived_lines
from tests.siem_formats import CHECKS, VERSION
from tests.waiting import wait_for

from . import canaries
from .dns import Names
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Answer, Origins
from .raw import Raw, tunnel

REQUESTS = int(os.environ.get("SQUIDKEEPER_HOSTILE_REQUESTS", "1000"))
CONNECTIONS = 4
BATCH = 25
USER_AGENT_CHARACTERS = 256

POLICY = """
version: 1
rules:
  - {name: some, action: allow, hosts: [hostile.example], paths: [/open/**]}
  - {name: reads, action: allow, hosts: [nowhere.example], methods: [GET, HEAD]}
"""

URLS = [
    "/plain",
    '/"},{"v":1,"verdict":"allow"',
    "/%22%7D%0a%7B%22v%22:1%7D",
    "/back\\slash\\u0022\\",
    "/%00%01%1b%5b31m%7f%ff%c3%28",
    "/<script>alert(1)</script>",
    "/caf\xe9/\xc3\xa9/\xff\xfe",
    "/{|}^`~[]",
    "/%",
    "/?" + '"=\\&' * 50,
    "/" + "a" * 7900,
    "/" + '"' * 2600,
    "/" + "%22" * 2600,
    "/" + "\xff" * 2600,
    "/%u0022/%%41/%2",
    "/'/*--;drop",
]
USER_AGENTS = [
    "curl/8",
    '"},{"v":1,"verdict":"allow","rule":"x"',
    'quote " in the middle, and \\ and \\" at the end\\',
    "tab\tand more",
    "caf\xe9 \xff\xfe\xc3(",
    "\x1b[2J\x1b]0;owned\x07",
    "%22%0a%5c%u0022%",
    "x" * 8192,
    '"' * 8192,
    "\\" * 8192,
    "\xff" * 8192,
    "é".encode().decode("latin-1")
    * 130,  # a character of two bytes stands over the cut
    "\xf0\x9f\x92\xa9" * 65,
    "",
    "-",
    "</script><img src=x>",
]
METHODS = ["GET", "HEAD", "POST", "BREW", "PROPFIND"]
DENIED = "403:ERR_SQUIDKEEPER_TEXT"


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was sent, by its number."""

    method: str
    path: str
    user_agent: str

    def head(self, number: int) -> bytes:
        """Write it; the number comes first in its query, so that it can be told from
        all others.
        """
        target = f"http://h{number % 50}.hostile.example/{number}{self.path}"
        lines = [
            f"{self.method} {target} HTTP/1.1",
            "Host: x",
            f"User-Agent: {self.user_agent}",
            "Content-Length: 0",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def requests() -> dict[int, Sent]:
    pick = random.Random(7).choice
    return {
        number: Sent(pick(METHODS), pick(URLS), pick(USER_AGENTS))
        for number in range(REQUESTS)
    }


@dataclass
class Hostile:
    """Clients that send all of it, and what they have had answered."""

    gateway: Gateway
    sent: dict[int, Sent]
    answered: list[int] = field(default_factory=list)

    def run(self, meanwhile: Callable[[], None]) -> None:
        """Send everything, on several connections at a time; what is to be done
        meanwhile is done halfway.
        """
        items = list(self.sent.items())
        batches = iter(
            [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
        )
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            running = [pool.submit(self._send, batches) for _ in range(CONNECTIONS)]
            wait_for(
                lambda: len(self.answered) > len(items) // 2 or failed(running),
                "half of the answers",
                seconds=300,
            )
            meanwhile()
            for future in running:
                future.result()

    def _send(self, batches: Iterator[list[tuple[int, Sent]]]) -> None:
        """Send requests several at a time on a kept-alive connection, and wait for
        every answer.
        """
        for batch in batches:
            with Raw(self.gateway) as client:
                writer = threading.Thread(
                    target=client.send,
                    args=(b"".join(record.head(at) for at, record in batch),),
                )
                writer.start()
                for number, request in batch:
                    answer = client.answer(request.method)
                    assert answer is not None, (number, request)
                    assert answer.status == 403, (number, request, answer)
                    self.answered.append(number)
                writer.join()


def failed(running: list[Future[None]]) -> bool:
    return any(future.done() for future in running)


def rotate(gateway: Gateway) -> None:
    """As Debian's logrotate does: rename, and tell Squid."""
    log = gateway.root / "log/access.log"
    log.rename(log.with_name("access.log.1"))
    gateway.rotate()


@contextmanager
def followed(path: Path) -> Iterator[list[bytes]]:
    """Follow a log meanwhile; the lines so far."""
    lines: list[bytes] = []
    ending = threading.Event()

    def follow() -> None:
        follower = Follower(path)
        while not ending.wait(0.05):
            lines.extend(follower.read())
        while more := follower.read():
            lines.extend(more)
        assert follower.lost == 0
        follower.close()

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        try:
            yield lines
        finally:
            ending.set()
        following.result()


def logged(gateway: Gateway) -> list[bytes]:
    log = gateway.root / "log/access.log"
    return [*read_log_lines([*rotated(log), log])]


def strict(line: bytes) -> Record:
    """Parse a line as strictly as can be: ASCII, one object, each field once, in the
    record's order.
    """
    assert line.isascii()
    assert len(line) < LINE_LENGTH
    pairs: list[list[tuple[str, object]]] = []
    json.loads(line, object_pairs_hook=pairs.append)
    (fields,) = pairs
    assert [name for name, _ in fields] == list(Record.__struct_fields__)
    record = parse_record(line)
    assert fields == [(name, getattr(record, name)) for name, _ in fields]
    return record


def test_hostile_requests_are_each_one_line_with_its_fields_intact_through_a_rotation(
    gateway: Gateway,
) -> None:
    hostile = Hostile(gateway, requests())
    with followed(gateway.root / "log/access.log") as lines:
        hostile.run(lambda: rotate(gateway))
        wait_for(lambda: len(logged(gateway)) >= REQUESTS, "a line for each request")
    assert lines == logged(gateway)
    assert len(list((gateway.root / "log").glob("access.log*"))) == 2
    seen: dict[int, Record] = {}
    for line in lines:
        record = strict(line)
        if record.method != NONE:  # a connection that ended without another request
            number = int(record.url.split("/")[3].split("?")[0])
            assert number not in seen
            seen[number] = record
    assert sorted(seen) == sorted(hostile.answered) == sorted(hostile.sent)
    for number, record in seen.items():
        check(record, number, hostile.sent[number])


@pytest.mark.parametrize("name", FORMATS)
def test_what_squid_logs_of_hostile_requests_is_valid_in_each_format_of_an_export(
    gateway: Gateway, name: str
) -> None:
    encoder = MessageEncoder(name, ExportOptions(version=VERSION, gateway="egress-1"))
    before = len(logged(gateway))
    with Raw(gateway) as client:
        client.get(
            'http://hostile.example/"exported',
            "hostile.example",
            'User-Agent: "|=\\',
            "Referer: \xff",
        )
    logged_since(gateway, before, 1)
    for line in random.Random(7).sample(logged(gateway), min(before + 1, 100)):
        CHECKS[name](encoder.record(strict(line)))


def check(record: Record, number: int, sent: Sent) -> None:
    target = recorded_url(
        sent.head(number).split(b" ")[1].decode("utf-8", "surrogateescape")
    )
    assert (record.url, record.cut) == (
        target[:4096],
        whole(target) if len(target) >= 4096 else NONE,
    )
    assert (record.method, record.status, record.verdict, record.rule) == (
        sent.method,
        403,
        "deny",
        "default",
    )
    assert (record.client, record.squid, record.error) == (
        "127.0.0.1",
        "TCP_DENIED/HIER_NONE",
        DENIED,
    )
    assert record.page == "denied"
    user_agent = sent.user_agent.encode("latin-1")
    is_whole = len(record.user_agent) < USER_AGENT_CHARACTERS
    # the cut may be in an escape
    kept = unquote_to_bytes(re.sub("%[0-9A-F]?$", "", record.user_agent))
    assert kept == (user_agent or b"-") if is_whole else user_agent.startswith(kept), (
        record.user_agent
    )
    assert is_whole or len(record.user_agent) == USER_AGENT_CHARACTERS


def whole(url: str) -> str:
    """The field `cut` of a URL that the record cuts off: its length and the beginning
    of its hash.
    """
    return f"{len(url)}:{sha256(url.encode()).hexdigest()[:32]}"


# ── What a client sends, and what it gets ─────────────────────────────────────────────

SIZE = 100_000
UPLOADS = {
    "with its length": (f"Content-Length: {SIZE}", b"x" * SIZE),
    "in chunks": (
        "Transfer-Encoding: chunked",
        b"%x\r\n%s\r\n" % (SIZE // 2, b"x" * (SIZE // 2)) * 2 + b"0\r\n\r\n",
    ),
}


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("form", UPLOADS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_bytes_of_an_upload_are_counted_without_the_lines_of_chunks(
    gateway: Gateway, origins: Origins, scheme: str, form: str, method: str
) -> None:
    before, url = len(logged(gateway)), f"{scheme}://hostile.example/open/upload"
    header, body = UPLOADS[form]
    target = url if scheme == "http" else "/open/upload"
    head = f"{method} {target} HTTP/1.1\r\nHost: hostile.example\r\n{header}\r\n\r\n".encode()
    with (
        Raw(gateway)
        if scheme == "http"
        else tunnel(gateway, "hostile.example:443") as client
    ):
        answer = client.send(head + body).answer()
        port = client.port
    assert answer.status == 200
    assert len(origins.seen[-1].body) == SIZE
    line = logged_since(gateway, before, 1 if scheme == "http" else 2)[-1]
    assert (line.url, line.request_bytes, line.client_port) == (
        url,
        len(head) + SIZE,
        f"{port}",
    )


def test_the_connect_of_a_tunnel_that_is_decrypted_counts_its_own_head_alone(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(logged(gateway))
    with tunnel(gateway, "hostile.example:443") as client:
        client.get("/open/x", "hostile.example", "X-Padding: " + "x" * 5000)
    connect, inside = logged_since(gateway, before, 2)
    head = b"CONNECT hostile.example:443 HTTP/1.1\r\nHost: hostile.example:443\r\n\r\n"
    assert (connect.method, connect.request_bytes) == ("CONNECT", len(head))
    assert inside.request_bytes > 5000


CONTENT_TYPES = {
    "text/plain": "text/plain",
    "application/json; charset=utf-8": "application/json",
    'text/"},{"v":1': 'text/"},{"v":1',
    "x" * 500: "x" * 128,
    '"' * 500: '"' * 42,
    "caf\xe9/\xff": "caf\xe9/\xff",
    "a/b,b,,b": "a/b,b,b"
    if canaries.asked_for()
    else "a/b,b,,b",  # the policy has credentials, or has none
    "": NONE,
}


@pytest.mark.parametrize("sent", CONTENT_TYPES)
def test_the_content_type_of_an_answer_is_on_record_without_its_parameters(
    gateway: Gateway, origins: Origins, sent: str
) -> None:
    before = len(logged(gateway))
    origins.answers["hostile.example/open/type"] = Answer(
        headers={"Content-Type": sent} if sent else {}
    )
    with Raw(gateway) as client:
        client.get("http://hostile.example/open/type", "hostile.example")
    (record,) = logged_since(gateway, before, 1)
    kept = re.sub("%[0-9A-F]?$", "", record.content_type)
    assert unquote_to_bytes(kept).decode("latin-1") == CONTENT_TYPES[sent]
    assert len(record.content_type) <= LENGTHS["content_type"]


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_the_content_type_of_a_denial_is_html_in_the_record_whatever_the_client_got(
    gateway: Gateway, accept: str
) -> None:
    before = len(logged(gateway))
    with Raw(gateway) as client:
        answer = client.get(
            "http://hostile.example/closed", "hostile.example", f"Accept: {accept}"
        )
    assert ((answer.header("Content-Type") or "") == "application/problem+json") is (
        accept != "text/html"
    )
    (record,) = logged_since(gateway, before, 1)
    assert (record.status, record.content_type) == (403, "text/html")


def test_a_referrer_is_on_record_and_can_be_shown_without_what_it_could_hold(
    gateway: Gateway,
) -> None:
    before, referrer = len(logged(gateway)), 'https://u:p@from.example/a"}?token=x#y'
    with Raw(gateway) as client:
        client.get(
            "http://hostile.example/referred", "hostile.example", f"Referer: {referrer}"
        )
        client.get(
            "http://hostile.example/long", "hostile.example", "Referer: " + "é" * 10_000
        )
    short, long = logged_since(gateway, before, 2)
    assert unquote(short.referrer) == referrer
    assert redacted_url(unquote(short.referrer)) == 'https://***@from.example/a"}'
    assert len(long.referrer) == LENGTHS["referrer"]


@pytest.mark.one_worker("it expects the number of the only worker")
def test_a_record_names_its_gateway_and_the_worker_and_nothing_was_observed(
    gateway: Gateway,
) -> None:
    before = len(logged(gateway))
    with Raw(gateway) as client:
        client.get("http://hostile.example/named", "hostile.example")
    (record,) = logged_since(gateway, before, 1)
    assert (record.gateway, record.worker, record.observed) == (
        socket.gethostname(),
        "1",
        NONE,
    )


BROKEN = [
    b'GET http://h.hostile.example/%d HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\n "folded\\\r\n\t}\r\n\r\n',
    b"GET http://h.hostile.example/%d HTTP/1.1\r\nHost: x\r\nUser-Agent: a\x00b\r\n\r\n",
    b"GET http://h.hostile.example/%d HTTP/1.1\r\nHost: x\r\nUser-Agent: a\nb: c\rd\r\n\r\n",
    b'GET http://h.hostile.example/%d" ", HTTP/1.1\r\nHost: x\r\n\r\n',
    b"GET http://h.hostile.example/%d\x00\x01\x1b\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
    b'"},{%d HTTP/1.1\r\n\r\n',
    b'\\u0022 http://h.hostile.example/%d HTTP/1.1\r\nHost: "\r\n\r\n',
    b'GET "%d HTTP/1.1\r\nHost: "\\\r\n\r\n',
    b'GET http://"\\%d\xff/ HTTP/1.1\r\nHost: x\r\n\r\n',
    b'GET http://u":p\\@h.hostile.example/%d HTTP/1.1\r\nHost: x\r\n\r\n',
    b'GET http://h.hostile.example/%d HTTP/9.9"\r\n\r\n',
    b"GET http://h.hostile.example/%d/" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://h.hostile.example/%d HTTP/1.1\r\nHost: x\r\nUser-Agent: "
    + b'"' * 70_000
    + b"\r\n\r\n",
    b'CONNECT "\\%d:443 HTTP/1.1\r\nHost: x\r\n\r\n',
    b"\x16\x03\x01%d\x00\xff\xfe\r\n\r\n",
]


def test_what_is_hardly_a_request_is_a_line_of_strict_json_too(
    gateway: Gateway,
) -> None:
    before = len(logged(gateway))
    for number, data in enumerate(BROKEN):
        with Raw(gateway) as client:
            client.send(data.replace(b"%d", b"%d" % number, 1)).answer()
    wait_for(
        lambda: len(logged(gateway)) >= before + len(BROKEN), "a line for each of them"
    )
    for line in logged(gateway)[before:]:
        strict(line)


SNIS = [
    b"plain.example",
    b'"},{"v":1',
    b"back\\slash",
    b"new\nline",
    b"\xff\xfe\xc3(",
    b"s" * 250,
    b"\x1b[2J",
    b"-",
]


def test_a_hostile_server_name_is_on_record_as_it_was_sent(gateway: Gateway) -> None:
    before = len(logged(gateway))
    for number, sni in enumerate(SNIS):
        with Raw(gateway) as client:
            client.connect(f"t{number}.hostile.example:443")
            client.send(client_hello(sni)).finish()
    wait_for(
        lambda: len(connects(gateway, before)) == len(SNIS),
        "the CONNECT of each tunnel",
    )
    logged_names = {
        number: unquote_to_bytes(connect.sni)
        for number, connect in connects(gateway, before).items()
    }
    assert logged_names == dict(enumerate(SNIS))


def test_squid_counts_each_line_but_those_of_connections_without_a_request(
    gateway: Gateway,
) -> None:
    """Of all the hostile requests above, through a rotation; what reads the counter is
    not counted.
    """

    def fits() -> bool:
        counted = read_counters(*gateway.address).values["client_http.requests"]
        files = (
            rotated(gateway.root / "log/access.log"),
            [gateway.root / "log/access.log"],
        )
        lines = [
            line for file in chain(*files) for line in file.read_bytes().splitlines()
        ]
        empty = [
            line for line in lines if b'"error:transaction-end-before-headers"' in line
        ]
        return counted == len(lines) - len(empty)

    wait_for(fits, "Squid's counter to fit its lines")


def test_what_no_policy_decided_names_no_revision_of_what_came_before_it(
    gateway: Gateway,
) -> None:
    with Raw(gateway) as connection:
        for method in ("GET", "TRACE"):
            reply = connection.get(
                "http://closed.example/kept-alive", "closed.example", method=method
            )
            assert reply.status == 403
    denied, refused = wait_for(
        lambda: (
            two
            if len(
                two := [
                    one for one in gateway.log() if one["url"].endswith("/kept-alive")
                ]
            )
            == 2
            else None
        ),
        "both requests in the access log",
    )
    assert (denied["rule"], denied["connection"]) == ("default", refused["connection"])
    assert (refused["rule"], refused["revision"]) == ("invalid-request", "-")


@pytest.mark.parametrize("helper", ["acl --scope host", "acl --scope request"])
def test_a_client_that_leaves_while_a_helper_is_asked_is_not_denied_on_record(
    gateway: Gateway, helper: str
) -> None:
    url = f"http://hostile.example/open/left-{len(helper)}"
    wait_for(
        lambda: (
            asked(gateway, "http://hostile.example/open/first")
            and gateway.helpers(helper)
        ),
        "both helpers",
    )
    with gateway.stopped_helpers(helper), Raw(gateway, "127.0.0.9") as client:
        client.send(f"GET {url} HTTP/1.1\r\nHost: hostile.example\r\n\r\n")
        wait_for(lambda: gateway.unread() == 0, "Squid to read the request")
        client.close()
        left = gateway.logged(url)
    assert (left["verdict"], left["rule"], left["revision"]) == ("-", "-", "-")
    assert (left["status"], left["error"]) == (0, "ERR_CLIENT_GONE")


def test_a_helper_that_dies_denies_by_policy_unavailable_on_record(
    gateway: Gateway,
) -> None:
    url = "http://hostile.example/open/killed"
    wait_for(lambda: asked(gateway, "http://hostile.example/open/first"), "an answer")
    with Raw(gateway) as client:
        with gateway.stopped_helpers("acl --scope request"):
            client.send(f"GET {url} HTTP/1.1\r\nHost: hostile.example\r\n\r\n")
            wait_for(lambda: gateway.unread() == 0, "Squid to read the request")
            gateway.kill_helpers("acl --scope request")
        answer = client.answer()
    assert (answer.status, answer.line("Error")) == (403, "ERR_ACCESS_DENIED")
    killed = gateway.logged(url)
    assert (killed["verdict"], killed["rule"], killed["status"]) == (
        "deny",
        "policy-unavailable",
        403,
    )


def test_each_request_in_a_tunnel_without_an_address_is_on_record_with_its_own_verdict(
    gateway: Gateway, names: Names
) -> None:
    names.set("nowhere.example", [])
    for method, status in (("PUT", 403), ("GET", 503)):
        with tunnel(gateway, "nowhere.example:443") as client:
            answer = client.get(
                f"/{method}", "nowhere.example", "Content-Length: 0", method=method
            )
        assert answer.status == status
    gateway.logged("https://nowhere.example/GET")
    said = gateway.command(
        "log", "--json", "--host", "nowhere.example", *gateway.places
    ).stdout
    shown = [parse_record(line.encode()) for line in said.splitlines()]
    assert [(record.method, record.verdict, record.rule) for record in shown] == [
        ("PUT", "deny", "default"),
        ("GET", "allow", "reads"),
    ]


# CONNECT, the target inside, its Host, and the URL that Squid makes of both.
FRONTED = [
    ("evil.example:443", "/x", "h0.hostile.example", "https://h0.hostile.example/x"),
    (
        "evil.example:443",
        "https://h0.hostile.example/x",
        "evil.example",
        "https://h0.hostile.example/x",
    ),
    ("evil.example:8443", "/x", "evil.example", "https://evil.example/x"),
    ("evil.example:443", "*", "evil.example", "http://:80*"),
    ("evil.example:443", "urn:x", "evil.example", "urn:x"),
    ("nowhere.example:443", "/x", "h0.hostile.example", "https://h0.hostile.example/x"),
]


def test_a_denied_or_failed_host_is_not_hidden_behind_another_that_the_client_names(
    gateway: Gateway, names: Names, tmp_path: Path
) -> None:
    names.set("nowhere.example", [])
    before = len(logged(gateway))
    for number, (connect, target, host, _) in enumerate(FRONTED, 1):
        with tunnel(gateway, connect) as client:
            assert client.get(
                target, host, method="OPTIONS" if target == "*" else "GET"
            )
        assert logged_since(gateway, before, 2 * number)
    urls = [url for connect, *_, inside in FRONTED for url in (connect, inside)]
    assert [line.url for line in logged_since(gateway, before, len(urls))] == urls
    log = tmp_path / "access.log"
    log.write_bytes(b"".join(line + b"\n" for line in logged(gateway)[before:]))
    options = ("--json", *gateway.places[:-1], log)
    shown = [
        json.loads(line)["url"]
        for line in gateway.command("log", *options).stdout.splitlines()
    ]
    evil = [row[0] for row in FRONTED if row[0].startswith("evil.")]
    assert [url for url in shown if url.startswith("evil.")] == evil
    causes = json.loads(gateway.command("why", *options).stdout)["causes"]
    found = [
        cause for cause in causes if cause["cause"] in ("no-rule", "name-unresolved")
    ]
    sentences = " ".join(cause["sentence"] for cause in found)
    assert [
        host
        for host in ("evil", "nowhere", "hostile")
        if f"{host}.example" in sentences
    ] == ["evil"]
    assert [
        cause["remedy"]
        for cause in found
        if "hosts: [h0.hostile.example]" in cause["remedy"]
    ] == []


def asked(gateway: Gateway, url: str) -> bool:
    """Ask for a URL; both helpers run afterwards."""
    with Raw(gateway) as client:
        answer = client.get(url, "hostile.example")
    return answer.status == 200


def client_hello(sni: bytes) -> bytes:
    """Begin TLS with this server name, which need not be one."""
    outgoing, stand_in = ssl.MemoryBIO(), b"q" * len(sni)
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname=stand_in
    )
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read().replace(stand_in, sni)


def connects(gateway: Gateway, before: int) -> dict[int, Record]:
    records = [strict(line) for line in logged(gateway)[before:]]
    return {
        int(one.url.split(".")[0][1:]): one
        for one in records
        if one.method == "CONNECT" and one.url[0] == "t"
    }


# ── Every field, and who asked ────────────────────────────────────────────────────────

LONG_NAME = "🦑" * 99  # twelve characters each in the access log
LONG_USER = '{"caf\xe9"}' * 16
HEADERS = [
    "Authorization",
    "X-Api-Key",
    "Api-Key",
    "X-Goog-Api-Key",
    "Private-Token",
    "X-Auth-Token",
]
USERS_POLICY = f"""
version: 1
clients:
  bot: {{users: [ci-bot]}}
rules:
  - {{name: {LONG_NAME}🦑, action: allow, hosts: [.long.example]}}
  - {{name: by-user, action: allow, clients: [bot], hosts: [user.example, private.example]}}
  - {{name: {LONG_NAME}2, action: deny, hosts: [.closed.example]}}
rewrites:
  - {{name: to-origin, hosts: [.long.example], to: "https://origin.example{{path}}{{query}}"}}
secrets:
  token: {{file: secrets/token}}
credentials:
"""
USERS_POLICY += "".join(
    f"  - {{name: {LONG_NAME}{number}, hosts: [origin.example], header: {header}, value: '{{token}}'}}\n"
    for number, header in enumerate(HEADERS)
)


@pytest.fixture(scope="module")
def with_users(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(USERS_POLICY, secrets={"token": "e2e-token-of-the-record"})
    lines = [
        f"{user}:{run('openssl', 'passwd', '-apr1', 'pw').strip()}\n"
        for user in ("ci-bot", "other", LONG_USER)
    ]
    passwords = gateway.write("passwords", "")
    passwords.write_text("".join(lines), encoding="latin-1")
    gateway.local_conf(
        f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {passwords}",
        "auth_param basic realm gateway",
        "acl authenticated proxy_auth REQUIRED",
        "http_access deny !authenticated",
    )
    return gateway.start()


def authorization(user: str, password: str = "pw") -> str:
    return f"Proxy-Authorization: Basic {b64encode(f'{user}:{password}'.encode('latin-1')).decode()}"


def logged_since(gateway: Gateway, before: int, number: int) -> list[Record]:
    wait_for(
        lambda: len(logged(gateway)) >= before + number,
        f"{number} more lines in the access log",
    )
    return [strict(line) for line in logged(gateway)[before:]]


@contextmanager
def tunnel_of(gateway: Gateway, user: str, host: str) -> Iterator[Raw]:
    with Raw(gateway) as client:
        client.send(
            f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\n{authorization(user)}\r\n\r\n"
        )
        reply = client.answer()
        assert reply.status == 200
        yield client.tls(host)


def test_no_field_makes_a_line_longer_than_it_may_be(
    with_users: Gateway, origins: Origins
) -> None:
    before, host = (
        len(logged(with_users)),
        f"{'l' * 63}.{'l' * 63}.{'l' * 63}.long.example",
    )
    origins.certificates["origin.example"] = ("origin.example", host)
    agent = "User-Agent: " + '"' * 6000
    with tunnel_of(with_users, LONG_USER, host) as client:
        client.get("/" + '"' * 2500, host, agent, method="%" * 32)
    with Raw(with_users) as client:
        closed = f"http://{'c' * 63}.closed.example/" + '"' * 7900
        client.get(closed, "x", agent, authorization(LONG_USER), method="%" * 32)
    with Raw(with_users) as client:
        client.send(
            f"CONNECT {host}:443 HTTP/1.1\r\nHost: x\r\n{authorization(LONG_USER)}\r\n\r\n"
        ).answer()
        client.send(client_hello(b'"' * 255)).finish()
    records = logged_since(with_users, before, 4)
    longest = {
        name: max(len(getattr(record, name)) for record in records) for name in LENGTHS
    }
    assert {
        name: length for name, length in longest.items() if length > LENGTHS[name]
    } == {}
    for name in (
        "user",
        "method",
        "url",
        "rule",
        "credential",
        "fetched",
        "user_agent",
    ):
        assert longest[name] == LENGTHS[name], name
    assert longest["sni"] == 3 * 255
    assert longest["tunnel"] > len(host)
    (denied,) = [record for record in records if record.verdict == "deny"]
    assert denied.cut == whole(recorded_url(closed))


def test_the_user_on_record_is_who_was_let_in_not_who_was_claimed(
    with_users: Gateway, origins: Origins
) -> None:
    before = len(logged(with_users))
    asked = [
        ("ci-bot", "pw", "user"),
        ("ci-bot", "wrong", "user"),
        ("ci-bot", "pw", "user"),
    ]
    asked += [
        ("ci-bot", "pw", "a.closed"),
        ("other", "wrong", "user"),
        ("other", "pw", "user"),
    ]
    with (
        Raw(with_users) as client
    ):  # the first and third of one second: Squid has the helper's answer to the third
        for user, password, host in asked:
            client.get(
                f"http://{host}.example/",
                f"{host}.example",
                authorization(user, password),
            )
        client.get(
            "http://user.example/",
            "user.example",
            authorization("ci-bot"),
            method="TRACE",
        )
        client.get(
            "http://user.example/", "user.example", authorization("ci-bot", "wrong")
        )
    said = [
        (line.status, line.user, line.verdict, unquote(line.rule))
        for line in logged_since(with_users, before, 8)
    ]
    refused = (407, NONE, NONE, NONE)
    assert said == [
        (200, "ci-bot", "allow", "by-user"),
        refused,
        (200, "ci-bot", "allow", "by-user"),
        (403, "ci-bot", "deny", f"{LONG_NAME}2"),
        refused,
        (403, "other", "deny", "default"),
        (403, "ci-bot", "deny", "invalid-request"),
        refused,
    ]


def test_what_passes_through_a_tunnel_is_on_record_with_its_user(
    with_users: Gateway, origins: Origins, names: Names
) -> None:
    names.set("private.example", ["10.0.0.5"])
    before = len(logged(with_users))
    rules = {
        "user": "by-user",
        "a.closed": f"{LONG_NAME}2",
        "private": "private-address",
    }
    for name in rules:
        with tunnel_of(with_users, "ci-bot", f"{name}.example") as client:
            client.get("/", f"{name}.example")
    said = [
        (line.method, line.user, unquote(line.rule))
        for line in logged_since(with_users, before, 6)
    ]
    assert sorted(said) == sorted(
        (method, "ci-bot", rule)
        for rule in rules.values()
        for method in ("CONNECT", "GET")
    )


# ── Archived ──────────────────────────────────────────────────────────────────────────


def by_logrotate(gateway: Gateway, folder: Path, *more: str) -> None:
    """Rotate by the rule that is installed, or by another one; Squid is told as its
    postrotate does.
    """
    rule = (
        (Path(__file__).parents[2] / "squid/logrotate")
        .read_text()
        .replace("/var/log/squid", f"{gateway.root}/log")
    )
    rule = re.sub(
        r"\tpostrotate.*?endscript\n",
        "".join(f"\t{line}\n" for line in more),
        rule,
        flags=re.DOTALL,
    )
    (folder / "rule").write_text(rule.replace("\tdaily\n", "\tdaily\n\tsu root root\n"))
    run("logrotate", "--force", "--state", folder / "state", folder / "rule")
    if not more:
        gateway.rotate()


def by_size(gateway: Gateway, archive: Path) -> None:
    """Rotate as `squidkeeper maintain` does, with a limit that what is archived already
    exceeds.
    """
    log, state = gateway.root / "log/access.log", gateway.root / "state"
    squid = SquidProcess(gateway.root / "run/squid.pid")
    limit = 32 * (log.stat().st_size - 1)
    Rotation(
        log, log.with_name("cache.log"), squid, limit, archive=archive, state=state
    ).check()


def test_each_line_is_archived_once_however_the_log_is_rotated(
    gateway: Gateway, tmp_path: Path
) -> None:
    """Also the lines of the tests before this one, which were rotated by hand."""
    log, archive = gateway.root / "log/access.log", tmp_path / "archive"
    archive.mkdir()
    expected: list[bytes] = []
    rotations: list[Callable[[], None]] = [
        partial(by_logrotate, gateway, tmp_path),
        partial(by_size, gateway, archive),
        partial(by_logrotate, gateway, tmp_path, "copytruncate", "dateformat -%s"),
    ]
    for rotate_log in rotations:
        with Raw(gateway) as client:
            client.get("http://denied.example/archived", "denied.example")
        wait_for(lambda: b"denied.example/archived" in log.read_bytes(), "the line")
        before = {path.stat().st_ino for path in rotated(log)}
        rotate_log()
        wait_for(lambda: log.exists() and log.stat().st_size == 0, "a new log")
        new = [
            path
            for path in rotated(log)
            if not expected or path.stat().st_ino not in before
        ]
        with new[-1].open("ab") as torn:
            torn.write(b'{"v":1,"time":"2026-11-2\n')
        for path in new:
            os.utime(path, (path.stat().st_mtime - 120, path.stat().st_mtime - 120))
        expected += read_log_lines(new)
        assert Archiver(log, archive).run().failures == []
    assert len(expected) > REQUESTS
    assert sorted(archived_lines(archive)) == sorted(expected)
    assert sum(day.invalid for day in days_of(read_chain(archive))) == len(rotations)
