"""How fast one client is denied, and that it costs nobody else anything: neither time,
nor the right answer.
"""

import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from squidkeeper.base.helper_metrics import THROTTLED
from squidkeeper.serving.counters.reader import read_counter_files
from tests.ports import free_port
from tests.waiting import pause, wait_for

from .curl import answer, curl
from .dns import Names
from .gateway import Gateway, NewGateway
from .network import run
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply

pytestmark = pytest.mark.one_worker(
    "each worker has a throttle of its own, with a part of the rate"
)
SECURITY = Path(__file__).parents[2] / "squid/SECURITY.md"
INSTALL = SECURITY.with_name("INSTALL.md")
POLICY = """
version: 1
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: open, action: allow, hosts: [open.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}
  - {name: any, action: allow, hosts: [.rebind.example]}
  - {name: api, action: allow, hosts: [api.example]}
secrets:
  gone: {file: secrets/gone}
credentials:
  - {name: api, hosts: [api.example], bearer: gone}
"""
RATE, BURST = 10, 10
HONEST = "127.0.0.9"


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, names: Names) -> Gateway:
    """A gateway whose bounds are reached in seconds: one client has ten slots to wait
    in.
    """
    names.set("private.rebind.example", ["10.0.0.5"])
    names.set("nowhere.rebind.example", [])
    gateway = new_gateway(POLICY, throttled=True)
    gateway.edit(
        "squidkeeper.conf",
        "--rate 10 --burst 200 --longest 5",
        f"--rate {RATE} --burst {BURST} --longest 1",
    )
    return gateway.start()


@pytest.fixture(scope="module")
def installed(new_gateway: NewGateway) -> Gateway:
    """A gateway with the bounds as they are installed."""
    return new_gateway(POLICY, throttled=True).start()


def test_allowed_requests_never_ask(installed: Gateway, origins: Origins) -> None:
    for url in (
        "http://open.example/",
        "https://open.example/",
        "http://paths.example/open/x",
    ):
        assert curl(installed, url).status == 200
    assert installed.helpers("throttle") == []
    assert curl(installed, "http://closed.example/").rule == "closed"
    assert len(installed.helpers("throttle --scope client")) == 1
    assert installed.helpers("throttle --scope surplus") == []


@pytest.mark.parametrize("tls", [False, True])
def test_after_long_heads_a_connection_waits_and_no_other_does(
    new_gateway: NewGateway, origins: Origins, tls: bool
) -> None:
    gateway = new_gateway(POLICY, throttled=True)
    bounds = "--rate 10 --burst 200 --longest 5"
    gateway.edit("squidkeeper.conf", bounds, "--rate 0.05 --burst 1 --longest 1")
    gateway.start()
    lines = ["A:"] * 3_900
    with ExitStack() as stack:
        opened = tunnel(gateway, "open.example:443") if tls else Raw(gateway)
        attacker = stack.enter_context(opened)
        usual = stack.enter_context(Raw(gateway))
        target = "/" if tls else "http://open.example/"
        for _ in range(3):  # the first is known when it is logged, one is surplus
            assert attacker.get(target, "open.example", *lines).status == 200
        attacker.send(f"GET {target} HTTP/1.1\r\nHost: open.example\r\n\r\n")
        for _ in range(20):
            assert usual.get("http://open.example/", "open.example").status == 200
        assert not attacker.is_answered()
    assert {line["rule"] for line in gateway.log() if line["status"] == 200} == {"open"}


def in_tunnel(target: str, host: str) -> Callable[[Gateway, str], Reply]:
    def ask(gateway: Gateway, client: str) -> Reply:
        with tunnel(gateway, f"{host}:443", client=client) as raw:
            return raw.get(target, host)

    return ask


def plain(url: str, method: str = "GET") -> Callable[[Gateway, str], Reply]:
    def ask(gateway: Gateway, client: str) -> Reply:
        with Raw(gateway, client) as raw:
            return raw.get(url, "open.example", method=method)

    return ask


# Each deny line that a client can reach at will: how, the status, the logged rule, the
# page.
DENIALS = {
    "own pages": (
        plain("http://open.example/squid-internal-mgr/menu"),
        403,
        "invalid-request",
        "invalid",
    ),
    "method": (
        plain("http://open.example/", "TRACE"),
        403,
        "invalid-request",
        "invalid",
    ),
    "scheme": (plain("ftp://open.example/"), 403, "invalid-request", "invalid"),
    "userinfo": (plain("http://u:p@open.example/"), 403, "invalid-request", "invalid"),
    "host": (plain("http://closed.example/"), 403, "closed", "denied"),
    "request": (plain("http://paths.example/x"), 403, "default", "denied"),
    "private": (
        plain("http://private.rebind.example/"),
        403,
        "private-address",
        "private",
    ),
    "no address": (plain("http://nowhere.rebind.example/"), 503, "any", "no-address"),
    "tunnel": (in_tunnel("/", "closed.example"), 403, "closed", "denied"),
    "in a tunnel": (in_tunnel("/x", "paths.example"), 403, "default", "denied"),
    "credential": (
        in_tunnel("/", "api.example"),
        403,
        "credential-unavailable",
        "no-credential",
    ),
}


@pytest.mark.parametrize("kind", DENIALS)
def test_each_kind_of_denial_waits_for_its_turn_and_is_the_same(
    gateway: Gateway, origins: Origins, kind: str
) -> None:
    ask, status, rule, page = DENIALS[kind]
    client = f"127.0.1.{list(DENIALS).index(kind) + 1}"
    begun = time.monotonic()
    replies = [ask(gateway, client) for _ in range(BURST + 6)]
    assert time.monotonic() - begun > 5 / RATE, (
        "those after the burst come one after another"
    )
    assert {reply and reply.status for reply in replies} == {status}
    lines = wait_for(
        lambda: denied_of(gateway, client, BURST + 6), "a log line for each"
    )
    assert {(line["rule"], line["page"]) for line in lines} == {(rule, page)}
    assert origins.seen == []


def denied_of(gateway: Gateway, client: str, number: int) -> list[dict[str, object]]:
    """The denials of a client, as soon as there are so many; without the requests
    inside a denied tunnel.
    """
    lines = [
        line
        for line in gateway.log()
        if line["client"] == client and "TCP_DENIED" in line["squid"]
    ]
    return lines if len(lines) >= number else []


# A flood


@dataclass
class Flood:
    """What a client got that is denied on many connections without a pause."""

    answers: Counter[tuple[int, str | None]] = field(default_factory=Counter)
    open: set[Raw] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, make: Callable[[], Raw], ask: Callable[[Raw], Reply]) -> None:
        while not self.over.is_set():
            with suppress(OSError, ValueError), make() as raw:
                self.open.add(raw)
                while not self.over.is_set() and (reply := ask(raw)):
                    self.answers[reply.status, reply.rule] += 1


@contextmanager
def flood(gateway: Gateway, client: str) -> Iterator[Flood]:
    """Ask on fifty connections without a pause while the block runs."""
    running = Flood()
    threads = [
        threading.Thread(target=running.run, args=arguments)
        for arguments in flooding(gateway, client)
    ]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.over.set()
        for raw in list(running.open):
            raw.abandon()
        while any(thread.is_alive() for thread in threads):
            gateway.kill_helpers("throttle")  # who waits for a CONNECT's answer gets it
            pause(0.1, "Squid starts another helper")


def flooding(
    gateway: Gateway, client: str
) -> list[tuple[Callable[[], Raw], Callable[[Raw], Reply]]]:
    """Plain http, tunnels that are denied, and requests inside tunnels."""

    def http() -> Raw:
        return Raw(gateway, client)

    def inside() -> Raw:
        return tunnel(gateway, "paths.example:443", client=client)

    def denied() -> Raw:
        return tunnel(gateway, "closed.example:443", client=client)

    return [
        *[(http, lambda raw: raw.get("http://closed.example/flood", "closed.example"))]
        * 30,
        *[(inside, lambda raw: raw.get("/flood", "paths.example"))] * 10,
        *[(denied, lambda raw: raw.get("/flood", "closed.example"))] * 10,
    ]


def test_one_client_is_denied_at_its_rate_and_others_do_not_wait(
    gateway: Gateway, origins: Origins
) -> None:
    client = "127.0.0.66"
    with flood(gateway, client) as running:
        wait_for(lambda: gateway.helpers("throttle --scope surplus"), "surplus")
        wait_for(lambda: denied_of(gateway, client, 2 * BURST), "the burst to end")
        begun, before = time.monotonic(), len(denied_of(gateway, client, 0))
        overtaken = median(honest(gateway, running) for _ in range(20))
        denials = wait_for(
            lambda: denied_of(gateway, client, before + 60), "the flood in the log"
        )
        seconds = time.monotonic() - begun
    # Its own turns and, as it is alone in that, all of the surplus; half as much again
    # for what lies between two looks.
    assert len(denials) - before <= 2 * RATE * seconds * 1.5
    assert {line["rule"] for line in denials} <= {"closed", "default"}
    assert overtaken < BURST, (
        "whoever is behind the flood waits for all that wait of it"
    )
    assert set(running.answers) <= {(403, "closed"), (403, "default")}


def honest(gateway: Gateway, running: Flood) -> int:
    """Ask for what is open and for what is closed, from another client; return how much
    of the flood came first.
    """
    before = running.answers.total()
    for url, status, rule in (
        ("http://open.example/", 200, None),
        ("http://closed.example/", 403, "closed"),
    ):
        reply = curl(gateway, url, client=HONEST)
        assert reply.status == status
        assert rule in (None, reply.rule)
    overtaken = running.answers.total() - before
    pause(1 / RATE, "it asks at its rate")
    return overtaken


def test_a_burst_of_an_honest_client_is_answered_at_once(
    installed: Gateway, origins: Origins
) -> None:
    with Raw(installed) as raw:
        replies = [
            raw.get(f"http://closed.example/{number}", "closed.example")
            for number in range(150)
        ]
    assert {(reply.status, reply.rule) for reply in replies if reply} == {
        (403, "closed")
    }
    counted = [
        sample
        for slot in read_counter_files(installed.root / "state/helpers")
        for sample in slot.samples
    ]
    throttled = [
        (labels["wait"], value)
        for name, labels, value in counted
        if name == THROTTLED.name and value
    ]
    assert {wait for wait, _ in throttled} == {"at_once"}
    assert sum(value for _, value in throttled) >= 150


# A client that has many addresses

KEPT = 3
OWN, NETWORK, OTHER = "fd98::1", "fd98:0:0:a::", "fd98:0:0:b::"


@contextmanager
def on_loopback(addresses: list[str]) -> Iterator[None]:
    for address in addresses:
        run("ip", "address", "add", f"{address}/128", "dev", "lo", "nodad")
    try:
        yield
    finally:
        for address in addresses:
            run("ip", "address", "del", f"{address}/128", "dev", "lo")


@contextmanager
def rules_for_ipv6(port: int) -> Iterator[None]:
    """The rules of the documentation, for this port and few connections."""
    text = INSTALL.read_text()
    [rules] = re.findall(
        r"^table inet squidkeeper_ipv6 \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL
    )
    for said, meant in (("3129", f"{port}"), ("over 2048", f"over {KEPT}")):
        assert rules.count(said) == 1
        rules = rules.replace(said, meant)
    run("nft", rules)
    try:
        yield
    finally:
        run("nft", "delete table inet squidkeeper_ipv6")


def connected(stack: ExitStack, clients: list[str], to: tuple[str, int]) -> int:
    """Connect from each address, and stay connected; give how many are answered."""
    return sum(is_answered(stack, client, to) for client in clients)


def is_answered(stack: ExitStack, client: str, to: tuple[str, int]) -> bool:
    try:
        connection = stack.enter_context(
            socket.create_connection(to, 60, source_address=(client, 0))
        )
        connection.sendall(
            b"GET http://closed.example/ HTTP/1.1\r\nHost: closed.example\r\n\r\n"
        )
        return connection.recv(12) == b"HTTP/1.1 403"
    except OSError:
        return False


@pytest.mark.long
def test_a_client_with_an_ipv6_network_does_not_have_all_connections(
    new_gateway: NewGateway, origins: Origins
) -> None:
    """By the nftables rules of the documentation.

    Without them it has: Squid counts each address for itself.
    """
    port = free_port()
    lines = (f"client_ip_max_connections {KEPT}", f"http_port [{OWN}]:{port}")
    many, others = (
        [f"{network}{number:x}" for number in range(1, 13)]
        for network in (NETWORK, OTHER)
    )
    with on_loopback([OWN, *many, *others]):
        gateway = new_gateway(POLICY, *lines).start()
        ipv6 = (OWN, port)
        with ExitStack() as stack:
            # Squid takes one more than it is told
            assert connected(stack, [many[0]] * 12, ipv6) == KEPT + 1
            assert connected(stack, many[1:], ipv6) == 11
        with rules_for_ipv6(port):
            for _ in range(2):  # what was closed does not count
                with ExitStack() as stack:
                    assert connected(stack, many, ipv6) == KEPT
                    assert connected(stack, others, ipv6) == KEPT
                    assert (
                        connected(stack, ["127.0.0.7"] * 12, gateway.address)
                        == KEPT + 1
                    )


SCALE = 16
UPLOAD = b"POST http://open.example/ HTTP/1.1\r\nHost: open.example\r\nContent-Length: 9\r\n\r\nbegun"


@pytest.mark.long
def test_a_machine_that_is_three_clients_leaves_descriptors_to_others(
    new_gateway: NewGateway, origins: Origins
) -> None:
    """With a sixteenth of the numbers of squid.conf.

    Each connection has one to the origin: its upload never ends.
    """
    text = INSTALL.with_name("squid.conf").read_text()
    names = ("max_filedescriptors", "client_ip_max_connections")
    numbers = [
        int(re.findall(rf"^{name} (\d+)$", text, re.MULTILINE)[0]) // SCALE
        for name in names
    ]
    gateway = new_gateway(
        POLICY,
        *(f"{name} {number}" for name, number in zip(names, numbers, strict=True)),
    ).start()
    descriptors = Path(f"/proc/{gateway.pid}/fd")
    with ExitStack() as stack:
        for client in ("127.0.0.6", "127.0.0.7", "127.0.0.8"):
            for _ in range(numbers[1]):
                one = stack.enter_context(
                    socket.create_connection(
                        gateway.address, 60, source_address=(client, 0)
                    )
                )
                one.sendall(UPLOAD)
        wait_for(
            lambda: len([*descriptors.iterdir()]) > 3 * 2 * numbers[1],
            "the uploads to reach the origin",
        )
        assert curl(gateway, "http://open.example/", client=HONEST).status == 200


# A client that breaks off

ATTEMPTS = 900
REQUEST = (
    b"GET http://closed.example/broken-off HTTP/1.1\r\nHost: closed.example\r\n\r\n"
)


def break_off(gateway: Gateway, client: str) -> None:
    """Connect, ask, and reset the connection; a connection that is not taken at once is
    left.
    """
    with socket.socket() as connection, suppress(OSError):
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        connection.settimeout(0.005)
        connection.bind((client, 0))
        connection.connect(gateway.address)
        connection.sendall(REQUEST)


@contextmanager
def packet_filter(port: int) -> Iterator[None]:
    """The commands of the documentation, for this port."""
    commands = re.findall(r"^ *(nft add .*)$", SECURITY.read_text(), re.MULTILINE)
    assert len(commands) == 6
    try:
        for command in commands:
            run("sh", "-ec", command.replace("dport 3129", f"dport {port}"))
        yield
    finally:
        run("nft", "delete", "table", "inet", "squidkeeper", check=False)


def test_the_packet_filter_bounds_the_lines_of_a_client_that_breaks_off(
    gateway: Gateway, origins: Origins
) -> None:
    client, begun, before = "127.0.0.99", time.monotonic(), len(gateway.log())
    with packet_filter(gateway.address[1]):
        for _ in range(ATTEMPTS):
            break_off(gateway, client)
        seconds = time.monotonic() - begun
        assert curl(gateway, "http://open.example/", client=HONEST).status == 200

    def lines() -> int:
        return sum(line["client"] == client for line in gateway.log()[before:])

    wait_for(lambda: lines() > 300, "the lines of what got through")
    assert lines() <= 500 + 50 * seconds + 5


def test_the_packet_filter_bounds_the_bytes_of_the_heads_that_a_client_sends(
    gateway: Gateway, origins: Origins
) -> None:
    head = f"X-Long: {'x' * 15_000}"
    with packet_filter(gateway.address[1]):
        begun = time.monotonic()
        with Raw(gateway, "127.0.0.98") as client:
            for number in range(1, 501):
                target = "http://open.example/"
                assert client.get(target, "open.example", head).status == 200
                sent = number * len(head)
                # nft's bucket holds the burst and what one second brings
                assert sent <= (4 + 1 + time.monotonic() - begun) * 2**20
        assert curl(gateway, "http://open.example/", client=HONEST).status == 200


# A helper that fails


@pytest.mark.parametrize("scope", ["client", "surplus"])
def test_who_waits_is_denied_by_the_same_rule_when_the_helper_is_killed(
    gateway: Gateway, origins: Origins, scope: str
) -> None:
    client = f"127.0.0.{70 + len(scope)}"
    with flood(gateway, client) as running:
        for _ in range(3):
            wait_for(
                lambda: gateway.kill_helpers(f"throttle --scope {scope}"), "the helper"
            )
            pause(0.5, "those that wait are denied, and Squid starts another helper")
            wait_for(
                lambda: (
                    answer(gateway, "http://open.example/", client=HONEST).status == 200
                ),
                "service",
            )
    assert set(running.answers) <= {(403, "closed"), (403, "default")}
    lines = [
        line
        for line in gateway.log()
        if line["client"] == client and "TCP_DENIED/" in line["squid"]
    ]
    assert {(line["rule"], line["page"]) for line in lines} <= {
        ("closed", "denied"),
        ("closed", "-"),  # of a CONNECT that waited
        ("default", "denied"),
    }
    assert not origins.urls() or set(origins.urls()) == {"http://open.example/"}


def test_who_is_denied_waits_for_a_stopped_helper_and_who_is_allowed_does_not(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "http://closed.example/", client=HONEST)
    with (
        gateway.stopped_helpers("throttle --scope client") as pids,
        Raw(gateway, HONEST) as raw,
    ):
        raw.send(
            "GET http://closed.example/stopped HTTP/1.1\r\nHost: closed.example\r\n\r\n"
        )
        assert curl(gateway, "http://open.example/", client=HONEST).status == 200
        assert gateway.kill_helpers("throttle --scope client") == pids != []
        reply = raw.answer()
    assert (reply.status, reply.rule) == (403, "closed")
    assert gateway.logged("http://closed.example/stopped")["rule"] == "closed"


ANSWERS = ["OK", "ERR", "ERR held_until_=x", "BH", "nonsense", "exit"]


def test_whatever_the_helper_answers_a_denial_stands(
    new_gateway: NewGateway, names: Names, origins: Origins
) -> None:
    names.set("private.rebind.example", ["10.0.0.5"])
    names.set("nowhere.rebind.example", [])
    odd = new_gateway(POLICY, throttled=True)
    program, says = odd.root / "odd", odd.root / "says"
    program.write_text(
        f"#!/bin/sh\nwhile read -r id rest; do\nread -r says < {says}\n"
        '[ "$says" = exit ] && exit 1\necho "$id $says"\ndone\n'
    )
    program.chmod(0o755)
    says.write_text("OK\n")
    odd.edit(
        "squidkeeper.conf",
        f"{odd.root}/bin/squidkeeper throttle",
        f"{program} throttle",
    )
    odd.start()
    for number, said in enumerate(ANSWERS):
        says.write_text(said + "\n")
        for kind in (
            "method",
            "host",
            "request",
            "private",
            "no address",
            "tunnel",
        ):  # each page, each list
            ask, status, rule, page = DENIALS[kind]
            # one each: a line can be late
            client = f"127.0.{number + 2}.{list(DENIALS).index(kind) + 1}"
            reply = ask(odd, client)
            # Without an answer of the throttle, these have no page of their own. The
            # tunnel ends at its CONNECT.
            unanswered = kind in ("no address", "tunnel") and said in (
                "BH",
                "nonsense",
                "exit",
            )
            assert reply.status == (403 if unanswered else status), (said, kind)
            (denial, *_) = wait_for(
                partial(denied_of, odd, client, 1), "the denial in the log"
            )
            assert (denial["rule"], denial["page"]) == (
                rule,
                "-" if unanswered else page,
            ), (said, kind)
    assert origins.seen == []
