"""Clients without proxy settings: policy by the ports 443 and 80, and the resolver, as
programs in a VM see them.
"""

import re
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dnslib import CLASS, EDNS0, QTYPE, RCODE, DNSHeader, DNSQuestion, DNSRecord

from tests.waiting import wait_for

from .network import VirtualMachine, run
from .origin import Answer, Bytes, Origins
from .transparent import Transparent

TOKEN = "e2e-token-that-no-vm-holds"
SECRETS = {"token": TOKEN}
POLICY = """
version: 1
clients:
  agents: {networks: [192.168.137.0/24]}
rules:
  - {name: no-wikipedia, action: deny, hosts: [.wikipedia.org], reason: Wikipedia is closed to sandboxes.}
  - {name: no-push, action: deny, hosts: [git.example], paths: ["/**/git-receive-pack"]}
  - {name: pinned, action: allow, clients: [agents], hosts: [pinned.example], tls: passthrough}
  - {name: chat, action: allow, clients: [agents], hosts: [chat.example], paths: [/live/**], websocket: true}
  - {name: asked, action: ask, clients: [agents], hosts: [asked.example]}
  - {name: counted, action: allow, clients: [agents], hosts: [counted.example]}
  - {name: agents, action: allow, clients: [agents], hosts: [example.com, git.example, api.example, front.example]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://target.example{path}"}
credentials:
  - {name: api, clients: [agents], hosts: [api.example], header: X-Api-Key, value: "{token}"}
secrets:
  token: {file: secrets/token}
quotas:
  - {name: few, per: client, rules: [counted], requests: 2, every: day}
"""
BOTH = pytest.mark.parametrize("scheme", ["https", "http"])
CURL = ("curl", "-sS", "--max-time", "20")
STATUS = (*CURL, "-o", "/dev/null", "-w", "%{http_code}\n")
WALKED = "/wiki/Squid"


@BOTH
def test_what_the_policy_allows_arrives_and_what_it_denies_gets_its_page(
    transparent: Transparent, origins: Origins, scheme: str
) -> None:
    walk(transparent, origins, scheme)


def walk(transparent: Transparent, origins: Origins, scheme: str) -> None:
    gateway, before = transparent.gateway, len(transparent.gateway.log())
    origins.forget()
    assert (
        transparent.inside(*STATUS, f"{scheme}://example.com/{scheme}").text == "200\n"
    )
    page = transparent.inside(*CURL, f"{scheme}://en.wikipedia.org{WALKED}")
    assert (page.rule, page.reason) == (
        "no-wikipedia",
        "Wikipedia is closed to sandboxes.",
    )
    assert (
        transparent.inside(*STATUS, f"{scheme}://git.example/app/file").text == "200\n"
    )
    push = transparent.inside(*CURL, f"{scheme}://git.example/app/git-receive-pack")
    assert push.rule == "no-push"
    assert transparent.inside(*CURL, f"{scheme}://nowhere.example/").rule == "default"
    assert origins.urls() == [
        f"{scheme}://example.com/{scheme}",
        f"{scheme}://git.example/app/file",
    ]
    for url, rule in (
        (f"example.com/{scheme}", "agents"),
        (f"en.wikipedia.org{WALKED}", "no-wikipedia"),
    ):
        line = gateway.logged(f"{scheme}://{url}", before)
        assert (line["client"], line["rule"]) == (transparent.vm.address, rule)


@BOTH
def test_a_rewrite_leads_to_its_target(
    transparent: Transparent, origins: Origins, scheme: str
) -> None:
    assert transparent.inside(*STATUS, f"{scheme}://front.example/a").text == "200\n"
    assert origins.urls() == ["https://target.example/a"]


def test_a_credential_is_added_over_tls_alone_and_the_vm_never_sees_it(
    transparent: Transparent, origins: Origins
) -> None:
    origins.answers["api.example/v1"] = Answer(body=b"done")
    over_tls, plain = (
        transparent.inside(*CURL, "-i", f"{scheme}://api.example/v1")
        for scheme in ("https", "http")
    )
    assert "done" in over_tls.text
    assert [seen.values("X-Api-Key") for seen in origins.seen if seen.port == 443] == [
        [TOKEN]
    ]
    assert TOKEN not in over_tls.text + plain.text
    assert not [
        seen for seen in origins.seen if seen.port == 80 and seen.values("X-Api-Key")
    ]


def test_a_quota_counts_both_ports_together(
    transparent: Transparent, origins: Origins
) -> None:
    schemes = ("https", "http", "https", "http")
    asked = [
        transparent.inside(*STATUS, f"{scheme}://counted.example/").text
        for scheme in schemes
    ]
    assert asked == ["200\n", "200\n", "403\n", "403\n"]
    assert len(origins.seen) == 2


@BOTH
def test_a_websocket_opens_where_its_rule_says_so(
    transparent: Transparent, origins: Origins, scheme: str
) -> None:
    frame = b"\x81\x05hello"
    upgraded = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    origins.answers["chat.example/live/room"] = Bytes(body=upgraded + frame)
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: x",
    )
    headers = [word for header in upgrade for word in ("-H", header)]
    opened = transparent.inside(
        *CURL,
        "-i",
        "-N",
        "--max-time",
        "3",
        *headers,
        f"{scheme}://chat.example/live/room",
    )
    assert opened.body.startswith(b"HTTP/1.1 101 ")
    assert frame in opened.body
    closed = transparent.inside(*CURL, *headers, f"{scheme}://chat.example/other")
    assert closed.rule == "default"


def test_a_tunnel_that_is_passed_through_keeps_the_origins_certificate(
    transparent: Transparent, origins: Origins
) -> None:
    own = ("--cacert", transparent.gateway.root.parent / "upstream.crt")
    assert transparent.inside(*STATUS, *own, "https://pinned.example/").text == "200\n"
    assert transparent.inside(*STATUS, "https://pinned.example/").text.endswith(
        "\n000\n"
    )
    assert transparent.inside(*STATUS, "http://pinned.example/").text == "403\n"
    assert origins.urls() == ["https://pinned.example/"]


@BOTH
def test_an_ask_gets_a_ticket_and_passes_once_it_is_approved(
    transparent: Transparent, origins: Origins, scheme: str
) -> None:
    url, gateway = f"{scheme}://asked.example/{scheme}", transparent.gateway
    [number] = re.findall(
        r"^Ticket: (\S+)$", transparent.inside(*CURL, url).text, re.MULTILINE
    )
    log = ("--access-log", gateway.places[-1])
    approved = gateway.command(
        "ask", "approve", number, "--yes", "--for", "1h", *gateway.places[:-1], *log
    )
    assert approved.returncode == 0, approved.stderr
    gateway.settle()
    assert transparent.inside(*STATUS, url).text == "200\n"
    assert origins.urls() == [url]


# ── The resolver ──────────────────────────────────────────────────────────────────────

GATEWAY = VirtualMachine.gateway
Answered = tuple[str, list[str]]  # the code, and the data
NO_DATA: Answered = ("NOERROR", [])
NO_NAME: Answered = ("NXDOMAIN", [])
NAMES: dict[str, Answered] = {
    "example.com": ("NOERROR", [GATEWAY]),
    "EXAMPLE.com": ("NOERROR", [GATEWAY]),
    "a.b.c.d.e.f.xn--bcher-kva.example": ("NOERROR", [GATEWAY]),
    ".".join(["a" * 61] * 4): ("NOERROR", [GATEWAY]),
    "git.test": ("NOERROR", [GATEWAY]),
    "nas.home.arpa": ("NOERROR", [GATEWAY]),
    "host": ("NOERROR", [GATEWAY]),  # unbound has no pattern for names of one label
    ".": ("NOERROR", [GATEWAY]),
    "wpad": NO_NAME,
    "isatap": NO_NAME,
    "printer.local": NO_NAME,
    "local": NO_NAME,
    "use-application-dns.net": NO_NAME,
    "1.137.168.192.in-addr.arpa": NO_NAME,
    "1.0.2.ip6.arpa": NO_NAME,
    "x.onion": NO_NAME,
    "x.invalid": NO_NAME,
    "_dns.resolver.arpa": NO_NAME,
}
TYPES = [
    "AAAA",
    "ANY",
    "HTTPS",
    "SVCB",
    "TXT",
    "MX",
    "NS",
    "SOA",
    "SRV",
    "CNAME",
    "DS",
    "DNSKEY",
    "PTR",
    "CAA",
    "NULL",
]


def question(
    name: str, kind: str = "A", class_: int = CLASS.IN, opcode: int = 0, size: int = 0
) -> bytes:
    asked = DNSRecord(
        DNSHeader(rd=1), q=DNSQuestion(name, getattr(QTYPE, kind), class_)
    )
    if size:
        asked.add_ar(EDNS0(udp_len=size))
    packed = bytearray(asked.pack())
    packed[2] |= opcode << 3
    return bytes(packed)


def answered(asked: bytes) -> Answered:
    """Ask the resolver over UDP; give the code and the data of its answer, which is
    hardly longer than the question.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(asked, (GATEWAY, 53))
        answer = client.recv(65536)
    assert len(answer) <= len(asked) + 100
    return read(answer)


def read(answer: bytes) -> Answered:
    record = DNSRecord.parse(answer)
    return RCODE[record.header.rcode], [str(found.rdata) for found in record.rr]


@pytest.fixture(scope="module", autouse=True)
def packets_of_the_resolver(transparent: Transparent) -> Iterator[None]:
    """The resolver sends nothing but answers, whatever it is asked in this module."""
    user = transparent.gateway.layout.user_without_systemd("dns")
    run(
        "nft",
        "add table inet asked; add chain inet asked out { type filter hook output priority 0; }",
    )
    run("nft", f"add rule inet asked out meta skuid {user} th sport != 53 counter")
    yield
    [packets] = re.findall(
        r"counter packets (\d+)", run("nft", "list table inet asked")
    )
    run("nft", "delete table inet asked")
    assert packets == "0"


@pytest.mark.parametrize(
    ("name", "expected"), NAMES.items(), ids=[name[:40] for name in NAMES]
)
def test_a_name_has_the_address_of_the_gateway(
    transparent: Transparent, name: str, expected: Answered
) -> None:
    assert answered(question(name)) == expected


@pytest.mark.parametrize("kind", TYPES)
def test_other_data_than_an_address_there_is_none(
    transparent: Transparent, kind: str
) -> None:
    for name in ("example.com", "host.example", "_443._tcp.example.com"):
        assert answered(question(name, kind)) == NO_DATA


@pytest.mark.parametrize("class_", [0, 2, 3, 4, 5, 254, 255, 4096])
def test_another_class_is_refused(transparent: Transparent, class_: int) -> None:
    for name in ("example.com", "version.bind", "id.server", "trustanchor.unbound"):
        code, data = answered(question(name, "TXT", class_))
        assert (code in ("REFUSED", "SERVFAIL", "FORMERR", "NOTIMP"), data) == (
            True,
            [],
        ), code


@pytest.mark.parametrize("opcode", range(1, 16))
def test_another_opcode_is_refused(transparent: Transparent, opcode: int) -> None:
    assert answered(question("example.com", opcode=opcode))[0] in (
        "NOTIMP",
        "REFUSED",
        "FORMERR",
    )


@pytest.mark.parametrize("size", [1, 512, 1232, 4096, 65535])
def test_any_size_by_edns_is_good(transparent: Transparent, size: int) -> None:
    assert answered(question("example.com", size=size)) == ("NOERROR", [GATEWAY])


@pytest.mark.parametrize("kind", ["AXFR", "IXFR"])
def test_no_zone_is_transferred(transparent: Transparent, kind: str) -> None:
    assert answered(question("example.com", kind)) == ("REFUSED", [])


def test_it_answers_over_tcp_question_after_question(transparent: Transparent) -> None:
    with (
        socket.create_connection((GATEWAY, 53), 10) as client,
        client.makefile("rb") as answers,
    ):
        for name in ("example.com", "other.example", "printer.local"):
            asked = question(name)
            client.sendall(struct.pack("!H", len(asked)) + asked)
            answer = answers.read(struct.unpack("!H", answers.read(2))[0])
            assert read(answer) == NAMES.get(name, ("NOERROR", [GATEWAY]))


def test_clients_that_hold_all_of_its_tcp_connections_take_it_from_nobody(
    transparent: Transparent,
) -> None:
    held = [socket.create_connection((GATEWAY, 53), 10) for _ in range(150)]
    try:
        assert answered(question("example.com")) == ("NOERROR", [GATEWAY])
    finally:
        for client in held:
            client.close()


def test_a_client_that_asks_too_often_is_not_answered_and_another_one_is(
    transparent: Transparent, tmp_path: Path
) -> None:
    """By the limit of dns.conf, with a smaller number."""
    text, own = transparent.gateway.layout.dns.read_text(), "127.0.0.77"
    conf = tmp_path / "dns.conf"
    conf.write_text(
        text.replace("ip-ratelimit: 20000", "ip-ratelimit: 100").replace(
            f"interface: {GATEWAY}", f"interface: {own}"
        )
    )
    with subprocess.Popen(
        ["/usr/sbin/unbound", "-d", "-c", conf], stderr=subprocess.DEVNULL
    ) as resolver:
        wait_for(lambda: run("ss", "-Hlun", f"src {own}:53"), "the resolver")
        try:
            assert answers(own, "127.0.0.5", 1000) < 500
            assert answers(own, "127.0.0.6", 1) == 1
        finally:
            resolver.terminate()


def answers(resolver: str, client: str, questions: int) -> int:
    """Ask from an address, all at once; count the answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.bind((client, 0))
        for _ in range(questions):
            asking.sendto(question("example.com"), (resolver, 53))
        asking.settimeout(1)
        count = 0
        with suppress(TimeoutError):
            while asking.recv(512):
                count += 1
        return count


GARBAGE = [
    b"",
    b"\0",
    b"\xff" * 12,
    b"\0" * 12,
    question("example.com")[:-3],
    question("example.com") + b"\xff" * 400,
]
GARBAGE += [
    bytes.fromhex("5351 0100 00ff 0000 0000 0000 c00c 0001 0001"),
    secrets.token_bytes(4000),
]


def test_garbage_is_answered_by_an_error_or_not_at_all(
    transparent: Transparent,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for data in GARBAGE:
            client.sendto(data, (GATEWAY, 53))
    assert answered(question("example.com")) == ("NOERROR", [GATEWAY])


def test_ten_thousand_names_have_one_address_and_its_memory_stays(
    transparent: Transparent,
) -> None:
    def resident() -> int:
        with open(f"/proc/{transparent.processes['dns'].pid}/status") as status:
            return next(
                int(line.split()[1]) // 1024
                for line in status
                if line.startswith("VmRSS")
            )

    before = resident()
    for number in range(10_000):
        assert answered(question(f"{secrets.token_hex(20)}.n{number}.example")) == (
            "NOERROR",
            [GATEWAY],
        )
    assert resident() - before < 10


def test_programs_in_the_vm_find_the_gateway_at_once(transparent: Transparent) -> None:
    found = transparent.inside("getent", "ahosts", "any.name.at.all.example")
    assert {line.split()[0] for line in found.text.splitlines()} == {GATEWAY}


# ── As `--bump documented` bumps ──────────────────────────────────────────────────────


@BOTH
def test_the_policy_holds_with_documented_bumping_too(
    transparent: Transparent, origins: Origins, scheme: str
) -> None:
    transparent.gateway.render(documented=True)
    transparent.gateway.restart()
    walk(transparent, origins, scheme)
