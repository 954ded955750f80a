"""A gateway behind a load balancer, which names its clients and asks whether it is
healthy; and the load balancer.

tests/fleet has three gateways, each in a network of its own.
"""

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from squidkeeper.base.squid_counters import read_counters
from squidkeeper.serving.drained import drain, undrain

from .balancer import Balancer
from .gateway import Gateway, NewGateway, Site
from .observer import Exporter
from .origin import Origins

BALANCER = "127.0.0.5"  # speaks the PROXY protocol as the tests have it
HAPROXY = "127.0.0.1"
FRONT = ("127.0.0.99", 3129)
VM = "10.9.8.7"
POLICY = """
version: 1
clients:
  vm: {networks: [10.9.8.7]}
rules:
  - {name: vm, action: allow, clients: [vm], hosts: [example.com]}
"""
OK = b"HTTP/1.1 200 OK"
CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"


def version_1(client: str) -> bytes:
    return f"PROXY TCP4 {client} 127.0.0.1 4000 3129\r\n".encode()


def version_2(client: str) -> bytes:
    addresses = ip_address(client).packed + ip_address("127.0.0.1").packed
    return (
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
        + addresses
        + (4000).to_bytes(2)
        + (3129).to_bytes(2)
    )


HEADERS = pytest.mark.parametrize("header", [version_1, version_2])


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    options = ("--behind", f"{BALANCER},{HAPROXY}")
    return new_gateway(POLICY, "shutdown_lifetime 0 seconds", options=options).start()


@pytest.fixture(scope="module")
def exporter(gateway: Gateway) -> Iterator[Exporter]:
    """The exporter, with the options that its unit has for the load balancer."""
    unit = (gateway.root / "etc/squidkeeper-exporter.service").read_text()
    [options] = re.findall(r"^ExecStart=.*( --proxy-header .*)$", unit, re.MULTILINE)
    with Exporter(gateway, gateway.address[1] + 6000, *options.split()) as exporter:
        yield exporter


@pytest.fixture(scope="module")
def balancer(site: Site, gateway: Gateway, exporter: Exporter) -> Iterator[Balancer]:
    balancer = Balancer(site.folder / "balancer", FRONT, [HAPROXY], [gateway]).start()
    yield balancer
    balancer.stop()


def connection(gateway: Gateway, source: str) -> socket.socket:
    return socket.create_connection(gateway.address, 20, source_address=(source, 0))


def get(to: socket.socket, header: bytes, path: str) -> bytes:
    """Send a PROXY header and a request; give all that comes back."""
    to.sendall(
        header
        + f"GET http://example.com{path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".encode()
    )
    try:
        return b"".join(iter(lambda: to.recv(65536), b""))
    except ConnectionError:
        return b""


def health(
    gateway: Gateway, source: str = BALANCER, path: str = "/healthz"
) -> tuple[int, str]:
    """Ask as a load balancer does; status 0: the connection was closed."""
    try:
        with socket.create_connection(
            (gateway.address[0], gateway.address[1] + 7000), 20, (source, 0)
        ) as to:
            to.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: to.recv(65536), b""))
    except ConnectionError:
        return 0, ""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode()


# ── Who names the client ──────────────────────────────────────────────────────────────


@HEADERS
def test_the_client_is_the_one_that_the_load_balancer_names(
    gateway: Gateway, origins: Origins, header: Callable[[str], bytes]
) -> None:
    before, path = len(gateway.log()), f"/{header.__name__}"
    with connection(gateway, BALANCER) as to:
        assert get(to, header(VM), path).startswith(OK)
    line = gateway.logged(f"http://example.com{path}", before)
    assert (line["client"], line["client_port"], line["rule"]) == (VM, "4000", "vm")
    with connection(gateway, BALANCER) as to:
        assert b" 403 " in get(to, header("10.9.8.8"), "/other")[:20]
    assert gateway.logged("http://example.com/other", before)["rule"] == "default"


@HEADERS
@pytest.mark.parametrize("source", [VM, "127.0.0.6"])
def test_nobody_else_can_name_a_client(
    gateway: Gateway, origins: Origins, header: Callable[[str], bytes], source: str
) -> None:
    with connection(gateway, source) as to:
        assert get(to, header(VM), "/forged") == b""
    assert origins.seen == []


@pytest.mark.parametrize("source", [BALANCER, VM])
def test_a_connection_without_a_header_gets_nothing(
    gateway: Gateway, origins: Origins, source: str
) -> None:
    with connection(gateway, source) as to:
        assert get(to, b"", "/without") == b""
    assert origins.seen == []


def test_squids_counters_are_read_past_the_header(gateway: Gateway) -> None:
    assert (
        read_counters(*gateway.address, proxy_header=True).values[
            "client_http.requests"
        ]
        >= 0
    )
    assert read_counters(*gateway.address).problem
    unit = (gateway.root / "etc/squidkeeper-maintenance.service").read_text()
    assert re.search("^ExecStart=.* --proxy-header$", unit, re.MULTILINE)


# ── Whether it is healthy ─────────────────────────────────────────────────────────────


def test_the_load_balancer_alone_is_told_whether_the_gateway_is_healthy(
    gateway: Gateway, exporter: Exporter
) -> None:
    status, body = health(gateway)
    assert (status, json.loads(body)) == (200, {"healthy": True, "conditions": []})
    assert health(gateway, VM) == (0, "")
    assert [health(gateway, path=path)[0] for path in ("/", "/metrics")] == [404, 404]


def test_a_drained_gateway_is_unhealthy_at_once_and_says_why(
    gateway: Gateway, origins: Origins, exporter: Exporter
) -> None:
    assert drain(gateway.root / "run")
    try:
        status, body = health(gateway)
        assert (status, json.loads(body)["conditions"]) == (503, ["drained"])
        assert "drained" in exporter.health()[1]
        with connection(gateway, BALANCER) as still:
            assert get(still, version_2(VM), "/drained").startswith(OK), (
                "Squid still serves whoever comes"
            )
    finally:
        assert undrain(gateway.root / "run")
    assert health(gateway)[0] == 200


# ── Drained ───────────────────────────────────────────────────────────────────────────


def command(gateway: Gateway, *options: str) -> subprocess.Popen[str]:
    program = (
        f"{gateway.root}/bin/squidkeeper",
        "drain",
        "--root",
        f"{gateway.root}",
        *options,
    )
    return subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.long
def test_a_drained_gateway_can_stop_its_squid(
    gateway: Gateway, origins: Origins
) -> None:
    draining = command(gateway, "--for", "1s", "--stop")
    assert draining.communicate(timeout=60)[0].splitlines()[-1] == "Squid is stopped"
    assert draining.returncode == 0
    assert not gateway.runs
    said = command(gateway, "--cancel").communicate(timeout=60)[0]
    assert said.startswith(
        "the gateway is no longer drained, but Squid is stopped and serves nobody: start it by `"
    )
    gateway.stop()
    gateway.start()
