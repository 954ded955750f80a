"""VMs with a route past the gateway, by IPv4 and IPv6: squid/transparent.nft
closes it.
"""

import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fleet.network import Machine, bridge

from .network import run
from .origin import Origins
from .transparent import PORTS, Transparent

GATEWAY = ("192.168.137.1", "fd37::1")
OUTSIDE = ("10.99.0.99", "fd99::99")  # another machine
OPTIONS = ("--transparent", ",".join(GATEWAY))
POLICY = """
version: 1
defaults: {action: deny}
rules:
  - {name: open, action: allow, hosts: [open.example]}
"""
RULES = Path(__file__).parents[2] / "squid/transparent.nft"
ASK = """
import socket, sys, time
for target in sys.argv[1:]:
    kind, address, port = target.split(",")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    began = time.monotonic()
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as asked:
        asked.settimeout(3)
        try:
            asked.connect((address, int(port)))
            asked.send(b"?")
            told = asked.recv(100).decode()
        except OSError as error:
            told = f"{type(error).__name__} {'at once' if time.monotonic() - began < 1 else 'late'}"
    print(target, told)
"""
RESOLVE = """
import sys, dnslib
for server in sys.argv[1:]:
    for tcp in (False, True):
        for kind in ("A", "AAAA"):
            told = dnslib.DNSRecord.question("open.example", kind).send(server, tcp=tcp, timeout=5, ipv6=":" in server)
            print(dnslib.DNSRecord.parse(told).short())
"""


class Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(b"outside", self.client_address)


class Stream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"outside")


def serve(stack: ExitStack, address: str, port: int) -> None:
    """Answer to TCP and UDP."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind, handler in (
        (socketserver.TCPServer, Stream),
        (socketserver.UDPServer, Datagram),
    ):
        of_family = type("Server", (kind,), {"address_family": family})
        server = stack.enter_context(of_family((address, port), handler))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)


@pytest.fixture(scope="module")
def outside(transparent: Transparent) -> Iterator[None]:
    """The other machine answers to TCP and UDP, and the VM has a route to it."""
    vm = transparent.vm
    run("ip", "addr", "add", f"{GATEWAY[1]}/64", "dev", "bragents0", "nodad")
    vm.run("ip", "addr", "add", "fd37::10/64", "dev", "eth0", "nodad")
    vm.run("ip", "route", "add", "default", "via", GATEWAY[1])
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    with bridge(), ExitStack() as stack:
        machine = Machine("outside", *OUTSIDE)
        stack.callback(machine.stop)
        with machine.entered():
            run("ip", "route", "add", "default", "via", "fd99::1")
            for address in OUTSIDE:
                for port in (22, 53, 443):
                    serve(stack, address, port)
        yield


@pytest.fixture(scope="module")
def closed(transparent: Transparent, outside: None) -> None:
    """The rules, for the ports of the tests. Nobody knows a neighbour from before."""
    tls, http = PORTS["transparent"]
    run(
        "nft",
        RULES.read_text()
        .replace("tcp . 443", f"tcp . {tls}")
        .replace("tcp . 80", f"tcp . {http}"),
    )
    run("ip", "neigh", "flush", "all")
    transparent.vm.run("ip", "neigh", "flush", "all")


def asked(transparent: Transparent, *targets: str) -> dict[str, str]:
    """What a VM is told at each target."""
    told = transparent.inside(sys.executable, "-c", ASK, *targets).text
    return dict(line.split(" ", 1) for line in told.splitlines())


TARGETS = [
    f"{kind},{address},{port}"
    for kind in ("tcp", "udp")
    for address in OUTSIDE
    for port in (22, 443)
]


def test_without_the_rules_a_vm_reaches_the_other_machine(
    transparent: Transparent, outside: None
) -> None:
    assert asked(transparent, *TARGETS) == dict.fromkeys(TARGETS, "outside")


def test_everything_else_is_refused_at_once(
    transparent: Transparent, closed: None
) -> None:
    """Origins listen on port 22 of the gateway too. Nobody listens to UDP there."""
    targets = [
        *TARGETS,
        *(
            f"{kind},{address},{port}"
            for kind, port in GATEWAYS_OWN
            for address in GATEWAY
        ),
    ]
    assert asked(transparent, *targets) == dict.fromkeys(
        targets, "ConnectionRefusedError at once"
    )


GATEWAYS_OWN = (("tcp", 22), ("udp", 22), ("udp", 443))


def test_the_gateway_answers_questions_to_every_name_server(
    transparent: Transparent, closed: None
) -> None:
    told = transparent.inside(sys.executable, "-c", RESOLVE, *OUTSIDE, *GATEWAY).text
    assert told.split() == [*GATEWAY] * 8


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_requests_by_both_families_arrive_and_are_on_record(
    transparent: Transparent, closed: None, origins: Origins, scheme: str, family: str
) -> None:
    url = f"{scheme}://open.example/{scheme}{family}"
    told = transparent.inside(
        "curl", "-sS", family, "-o", "/dev/null", "-w", "%{http_code}", url
    )
    assert told.text == "200"
    client = {"-4": transparent.vm.address, "-6": "fd37::10"}[family]
    assert transparent.gateway.logged(url)["client"] == client
    told = transparent.inside("curl", "-sS", family, f"{scheme}://other.example/")
    assert told.rule == "default"


def test_a_client_of_http3_falls_back_without_waiting(
    transparent: Transparent, closed: None, origins: Origins
) -> None:
    only = transparent.inside(
        "curl",
        "-sS",
        "--http3-only",
        "-m",
        "10",
        "-w",
        "%{time_total}",
        "https://open.example/",
    )
    assert (only.status, float(only.text.split()[-1]) < 1) == (7, True), only.text
    either = transparent.inside(
        "curl",
        "-sS",
        "--http3",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "https://open.example/",
    )
    assert either.text == "200"


def test_a_machine_that_does_not_forward_refuses_at_once_too(
    transparent: Transparent, closed: None
) -> None:
    run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    targets = [
        f"tcp,{address},22" for address in (*OUTSIDE, "198.51.100.1", "2001:db8::1")
    ]
    assert asked(transparent, *targets) == dict.fromkeys(
        targets, "ConnectionRefusedError at once"
    )
