"""A gateway behind a load balancer, which names its clients and asks whether it is healthy; and the load balancer.

tests/fleet has three gateways, each in a network of its own.
"""

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from squidkeeper.base.squid_counters import read_counters
from squidkeeper.operate.setup.sockets import open_connections
from squidkeeper.serving.drained import drain, undrain
from tests.waiting import wait_for

from .balancer import Balancer
from .gateway import Gateway, NewGateway, Site
from .observer import Exporter
from .origin import Answer, Origins

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
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + addresses + (4000).to_bytes(2) + (3129).to_bytes(2)


HEADERS = pytest.mark.parametrize("header", [version_1, version_2])


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(POLICY, "shutdown_lifetime 0 seconds", options=("--behind", f"{BALANCER},{HAPROXY}"))
    return gateway.start()


@pytest.fixture(scope="module")
def exporter(gateway: Gateway) -> Iterator[Exporter]:
    """The exporter, with the options that its unit has for the load balancer."""
    unit = (gateway.root / "etc/squidkeeper-exporter.service").read_text()
    [options] = re.findall(r"^ExecStart=.*( --proxy-header .*)$", unit, re.MULTILINE)
    exporter = Exporter(gateway, gateway.address[1] + 6000, *options.split()).start()
    yield exporter
    exporter.stop()


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
        header + f"GET http://example.com{path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".encode()
    )
    try:
        return b"".join(iter(lambda: to.recv(65536), b""))
    except ConnectionError:
        return b""


def health(gateway: Gateway, source: str = BALANCER, path: str = "/healthz") -> tuple[int, str]:
    """Ask as a load balancer does; status 0: the connection was closed."""
    try:
        with socket.create_connection((gateway.address[0], gateway.address[1] + 7000), 20, (source, 0)) as to:
            to.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: to.recv(65536), b""))
    except ConnectionError:
        return 0, ""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode()


# ── Who names the client ─────────────────────────────────────────────────────────────────────────────────────────────


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
def test_a_connection_without_a_header_gets_nothing(gateway: Gateway, origins: Origins, source: str) -> None:
    with connection(gateway, source) as to:
        assert get(to, b"", "/without") == b""
    assert origins.seen == []


def test_squids_counters_are_read_past_the_header(gateway: Gateway) -> None:
    assert read_counters(*gateway.address, proxy_header=True).values["client_http.requests"] >= 0
    assert read_counters(*gateway.address).problem
    unit = (gateway.root / "etc/squidkeeper-maintenance.service").read_text()
    assert re.search("^ExecStart=.* --proxy-header$", unit, re.MULTILINE)


# ── HAProxy in front ─────────────────────────────────────────────────────────────────────────────────────────────────


def through(balancer: Balancer, source: str, *, tls: bool) -> socket.socket:
    """A connection to HAProxy, with TLS or without."""
    plain = socket.create_connection(balancer.address, 20, source_address=(source, 0))
    context = ssl.create_default_context(cafile=str(balancer.gateways[0].ca))
    return context.wrap_socket(plain, server_hostname=balancer.address[0]) if tls else plain


BOTH = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


@BOTH
def test_a_client_of_haproxy_keeps_its_address(
    balancer: Balancer, gateway: Gateway, origins: Origins, tls: bool
) -> None:
    before, path = len(gateway.log()), f"/through-{tls}"
    with through(balancer, VM, tls=tls) as to:
        port = str(to.getsockname()[1])
        assert get(to, b"", path).startswith(OK)
    line = gateway.logged(f"http://example.com{path}", before)
    assert (line["client"], line["client_port"], line["rule"]) == (VM, port, "vm")


@BOTH
@HEADERS
def test_haproxy_takes_a_header_from_nobody(
    balancer: Balancer, gateway: Gateway, origins: Origins, header: Callable[[str], bytes], tls: bool
) -> None:
    """For Squid it is no HTTP, behind HAProxy's own: the client gets an error, and its address stays its own."""
    before = len(gateway.log())
    with through(balancer, "10.9.8.8", tls=tls) as attacker:
        assert get(attacker, header(VM), "/forged").startswith(b"HTTP/1.1 400 ")
    [line] = wait_for(lambda: gateway.log()[before:])
    assert (line["client"], line["url"]) == ("10.9.8.8", "error:invalid-request")
    assert origins.seen == []


@pytest.mark.long
def test_one_client_of_haproxy_does_not_have_all_connections(balancer: Balancer, origins: Origins) -> None:
    """With TLS and without together; a reload takes the limit over, and ends no connection."""
    with ExitStack() as held, through(balancer, VM, tls=True) as before:
        balancer.write([HAPROXY], connections_per_client=2)
        assert "reloaded: process " in balancer.set_up()
        wait_for(lambda: "New worker" in balancer.said())
        wait_for(lambda: is_refused(balancer, held), "the limit to be in force")
        assert get(before, b"", "/before").startswith(OK)
        with through(balancer, "10.9.8.9", tls=False) as other:
            assert b" 403 " in get(other, b"", "/other")[:20]
    balancer.write([HAPROXY])
    balancer.set_up()


def is_refused(balancer: Balancer, held: ExitStack) -> bool:
    """Tell whether the connection of a client that holds others is closed before its request."""
    try:
        for tls in (True, False):
            held.enter_context(through(balancer, VM, tls=tls))
        return get(held.enter_context(through(balancer, VM, tls=False)), b"", "/refused") == b""
    except OSError:
        return True


# ── Whether it is healthy ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_load_balancer_alone_is_told_whether_the_gateway_is_healthy(gateway: Gateway, exporter: Exporter) -> None:
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
            assert get(still, version_2(VM), "/drained").startswith(OK), "Squid still serves whoever comes"
    finally:
        assert undrain(gateway.root / "run")
    assert health(gateway)[0] == 200


@pytest.mark.long
def test_haproxy_closes_new_connections_while_its_only_gateway_is_drained(
    gateway: Gateway, origins: Origins, balancer: Balancer
) -> None:
    def served() -> bool:
        try:
            with through(balancer, VM, tls=False) as to:
                return get(to, b"", "/").startswith(OK)
        except OSError:
            return False

    wait_for(served)
    assert drain(gateway.root / "run")
    try:
        wait_for(lambda: not served())
    finally:
        assert undrain(gateway.root / "run")
    wait_for(served)


@pytest.mark.long
def test_a_gateway_whose_squid_is_gone_is_unhealthy(gateway: Gateway, exporter: Exporter) -> None:
    gateway.kill()
    try:
        wait_for(lambda: health(gateway)[0] == 503)
        assert json.loads(health(gateway)[1])["conditions"] == ["squid-down"]
    finally:
        gateway.start()
    wait_for(lambda: health(gateway)[0] == 200)


# ── Drained ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def command(gateway: Gateway, *options: str) -> subprocess.Popen[str]:
    program = (f"{gateway.root}/bin/squidkeeper", "drain", "--root", f"{gateway.root}", *options)
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.long
def test_open_tunnels_go_on_in_a_drained_gateway_until_it_is_idle(gateway: Gateway, origins: Origins) -> None:
    gate = origins.gate()
    origins.answers["example.com/slow"] = Answer(gate=gate)
    with connection(gateway, BALANCER) as slow:
        slow.sendall(version_2(VM) + b"GET http://example.com/slow HTTP/1.1\r\nHost: example.com\r\n\r\n")
        wait_for(lambda: open_connections(gateway.authority))
        draining = command(gateway, "--for", "1m")
        assert draining.stdout is not None
        assert draining.stdout.readline() == "drained: /healthz is unhealthy, and open connections go on\n"
        assert draining.stdout.readline().endswith(" open\n")
        gate.open()
        assert slow.recv(15) == OK
    assert draining.communicate(timeout=60)[0] == "idle: no connection is open\n"
    assert draining.returncode == 0
    assert command(gateway, "--cancel").communicate(timeout=60)[0] == "clients can come again\n"
    assert command(gateway, "--cancel").communicate(timeout=60)[0] == "the gateway was not drained\n"


@pytest.mark.long
def test_draining_ends_after_its_time_and_says_what_is_open(gateway: Gateway, origins: Origins) -> None:
    with connection(gateway, BALANCER) as idle:
        idle.sendall(version_2(VM) + CONNECT)
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
        draining = command(gateway, "--for", "1s")
        said = draining.communicate(timeout=60)[0].splitlines()
    assert (draining.returncode, said[-1]) == (1, "1 s are over: 1 connection open")
    assert undrain(gateway.root / "run")


@pytest.mark.long
def test_a_drained_gateway_can_stop_its_squid(gateway: Gateway, origins: Origins) -> None:
    draining = command(gateway, "--for", "1s", "--stop")
    assert draining.communicate(timeout=60)[0].splitlines()[-1] == "Squid is stopped"
    assert draining.returncode == 0
    assert not gateway.runs
    said = command(gateway, "--cancel").communicate(timeout=60)[0]
    assert said.startswith("the gateway is no longer drained, but Squid is stopped and serves nobody: start it by `")
    gateway.stop()
    gateway.start()
