"""TLS to the proxy: HAProxy on the proxy's port tells TLS from plain, as clients in a
VM and attackers there see it.
"""

import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPResponse
from ipaddress import ip_network
from pathlib import Path

import pytest

from squidkeeper.base.squid_counters import read_counters
from squidkeeper.operate.setup.configuration import CLIENT_SHARE
from squidkeeper.services.sessions.connections import Cut, Listener, cut
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    issue_server_certificate,
    make_ca,
)
from tests.waiting import wait_for

from .gateway import Gateway, NewGateway, Site
from .haproxy import HAProxy
from .maintained import maintained
from .network import VirtualMachine, inside, run
from .origin import Answer, Origins

POLICY = """
version: 1
clients:
  agents: {networks: [192.168.137.0/24, 127.0.0.0/8]}
rules:
  - {name: no-wikipedia, action: deny, hosts: [.wikipedia.org], reason: Wikipedia is closed to sandboxes.}
  - {name: agents, action: allow, clients: [agents], hosts: [example.com]}
  - {name: pinned, action: allow, clients: [agents], hosts: [pinned.example], tls: passthrough}
  - {name: loopback, action: allow, hosts: [127.0.0.0/8], ports: [13129]}
"""
PORT = 3129  # of the walkthrough; each module has a network of its own
OK = b"HTTP/1.1 200 OK"
BOTH = pytest.mark.parametrize("scheme", ["https", "http"])
CURL = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n")


@pytest.fixture(scope="module")
def haproxy(new_gateway: NewGateway, vm: VirtualMachine) -> Iterator[HAProxy]:
    """A gateway installed by `install.sh --listen 192.168.137.1:3129 --tls`, with its
    Squid and its HAProxy.
    """
    gateway = new_gateway(
        POLICY,
        "shutdown_lifetime 0 seconds",
        at=vm.gateway,
        port=PORT,
        options=("--tls",),
    )
    vm.trust(gateway.ca)
    haproxy = HAProxy(gateway).start()
    gateway.start()
    yield haproxy
    haproxy.stop()


@pytest.fixture(scope="module")
def gateway(haproxy: HAProxy) -> Gateway:
    return haproxy.gateway


def connection(gateway: Gateway, client: str = "127.0.0.1") -> socket.socket:
    """A connection from this machine, from any address."""
    return socket.create_connection(gateway.address, 20, source_address=(client, 0))


def over_tls(gateway: Gateway, client: str = "127.0.0.1") -> ssl.SSLSocket:
    """TLS to the proxy, verified strictly by its address."""
    context = ssl.create_default_context(cafile=str(gateway.ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context.wrap_socket(
        connection(gateway, client), server_hostname=gateway.address[0]
    )


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other side has ended a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def squid_listens(gateway: Gateway) -> tuple[str, int]:
    """Where Squid listens behind HAProxy."""
    [(address, port)] = re.findall(
        r"^http_port ([\d.]+):(\d+)",
        (gateway.root / "etc/squid.conf").read_text(),
        re.M,
    )
    return address, int(port)


def get(to: socket.socket, url: str) -> bytes:
    """Send a request for a URL as to a proxy, read its answer, and give the status
    line.
    """
    host = url.split("/")[2]
    to.sendall(f"GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    with HTTPResponse(to) as answer:
        answer.begin()
        answer.read()
        return f"HTTP/1.1 {answer.status} {answer.reason}".encode()


# ── Clients ───────────────────────────────────────────────────────────────────────────


@BOTH
def test_the_walkthroughs_two_requests_by_the_literal_address(
    vm: VirtualMachine, gateway: Gateway, origins: Origins, scheme: str
) -> None:
    proxy, before = f"{scheme}://192.168.137.1:3129", len(gateway.log())
    assert inside(vm, proxy, *CURL, f"https://example.com/{scheme}").text == "200\n"
    page = inside(vm, proxy, "curl", "-sS", "https://en.wikipedia.org/wiki/Squid")
    assert (page.rule, page.reason) == (
        "no-wikipedia",
        "Wikipedia is closed to sandboxes.",
    )
    assert (
        inside(vm, proxy, *CURL, f"http://example.com/plain-{scheme}").text == "200\n"
    )
    for url in (
        f"https://example.com/{scheme}",
        f"http://example.com/plain-{scheme}",
        "https://en.wikipedia.org/wiki/Squid",
    ):
        assert gateway.logged(url, before)["client"] == vm.address
    assert gateway.logged(f"https://example.com/{scheme}")["rule"] == "agents"


@BOTH
def test_a_tunnel_passes_through_both(
    vm: VirtualMachine, gateway: Gateway, origins: Origins, site: Site, scheme: str
) -> None:
    before, proxy = len(gateway.log()), f"{scheme}://192.168.137.1:3129"
    own = ("--cacert", site.upstream_ca, "--proxy-cacert", gateway.ca)
    assert inside(vm, proxy, *CURL, *own, "https://pinned.example/").text == "200\n"
    line = wait_for(
        lambda: [
            line
            for line in gateway.log()[before:]
            if line["squid"].startswith("TCP_TUNNEL")
        ],
        "the tunnel's end",
    )[0]
    assert (line["client"], line["rule"], line["sni"]) == (
        vm.address,
        "pinned",
        "pinned.example",
    )


@BOTH
def test_a_python_client_that_can_speak_tls_to_a_proxy(
    vm: VirtualMachine, gateway: Gateway, origins: Origins, scheme: str
) -> None:
    """The library requests, as pip has it: it warns that it does not verify the proxy's
    certificate.
    """
    script = (
        "import sys; from pip._vendor import requests\n"
        "for url in sys.argv[1:]: print(requests.get(url, verify='/etc/ssl/certs/ca-certificates.crt').status_code)"
    )
    urls = (f"https://example.com/requests-{scheme}", "http://en.wikipedia.org/")
    done = inside(
        vm,
        f"{scheme}://192.168.137.1:3129",
        sys.executable,
        "-W",
        "ignore",
        "-c",
        script,
        *urls,
    )
    assert done.text == "200\n403\n"
    assert gateway.logged(urls[0])["client"] == vm.address


@BOTH
def test_pythons_own_client_which_sends_its_connect_without_tls(
    vm: VirtualMachine, gateway: Gateway, origins: Origins, scheme: str
) -> None:
    """Whatever the scheme of the proxy is: one port takes both."""
    script = (
        "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"
    )
    url = f"https://example.com/urllib-{scheme}"
    done = inside(
        vm, f"{scheme}://192.168.137.1:3129", "/usr/bin/python3", "-c", script, url
    )
    assert done.text == "200\n"
    assert gateway.logged(url)["client"] == vm.address


def test_tls_from_1_2_on(gateway: Gateway) -> None:
    with over_tls(gateway) as newest:
        assert newest.version() == "TLSv1.3"
    old = [
        "openssl",
        "s_client",
        "-connect",
        gateway.authority,
        "-cipher",
        "ALL:@SECLEVEL=0",
    ]
    for version, works in (("-tls1_2", True), ("-tls1_1", False)):
        done = subprocess.run(
            [*old, version], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        assert (done.returncode == 0) is works, done.stderr


def test_a_client_hello_in_pieces_is_tls_all_the_same(gateway: Gateway) -> None:
    """One with post-quantum keys fills more than one packet."""
    context, to, received = (
        ssl.create_default_context(cafile=str(gateway.ca)),
        ssl.MemoryBIO(),
        ssl.MemoryBIO(),
    )
    client = context.wrap_bio(received, to, server_hostname=gateway.address[0])
    with connection(gateway) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        for byte in to.read():
            raw.sendall(bytes([byte]))
        assert raw.recv(1) == b"\x16"  # a ServerHello


# ── Attackers ─────────────────────────────────────────────────────────────────────────

HEADERS = {
    "version 1": b"PROXY TCP4 127.0.0.1 127.0.0.1 1000 3129\r\n",
    "version 2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
    + bytes([127, 0, 0, 1, 127, 0, 0, 1, 3, 232, 12, 57]),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_client_that_names_another_address_gets_nothing(
    gateway: Gateway, origins: Origins, header: bytes, tls: bool
) -> None:
    """HAProxy takes no PROXY protocol from clients: for Squid, after HAProxy's own, it
    is no HTTP.
    """
    before = len(gateway.log())
    with (
        over_tls(gateway, "10.9.8.7")
        if tls
        else connection(gateway, "10.9.8.7") as attacker
    ):
        attacker.sendall(
            header
            + b"GET /squid-internal-mgr/counters HTTP/1.1\r\nHost: squidkeeper\r\n\r\n"
        )
        answer = b"".join(iter(lambda: attacker.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:80]
    assert b"client_http.requests" not in answer
    [line] = wait_for(lambda: gateway.log()[before:])
    assert (line["client"], line["url"]) == ("10.9.8.7", "error:invalid-request")


def test_no_client_reaches_squid_behind_haproxy(
    vm: VirtualMachine, gateway: Gateway, origins: Origins
) -> None:
    """Not through the gateway either: loopback is private, even where a rule
    allows it.
    """
    address, port = squid_listens(gateway)
    assert address.startswith("127.")
    page = inside(
        vm, "http://192.168.137.1:3129", "curl", "-sS", f"http://{address}:{port}/"
    )
    assert page.rule == "private-address"


def test_squid_takes_the_proxy_protocol_alone_behind_haproxy(gateway: Gateway) -> None:
    """And from this machine alone: a local user who speaks it can name any client."""
    with socket.create_connection(squid_listens(gateway), 20) as plain:
        plain.sendall(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert is_closed(plain)
    with socket.create_connection(
        squid_listens(gateway), 20, source_address=("10.9.8.7", 0)
    ) as other:
        other.sendall(
            HEADERS["version 1"]
            + b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"
        )
        assert is_closed(other)


def test_the_port_in_the_record_is_the_clients_own(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    with connection(gateway) as plain, over_tls(gateway) as secure:
        for name, opened in (("plain", plain), ("secure", secure)):
            get(opened, f"http://example.com/port-{name}")
            line = gateway.logged(f"http://example.com/port-{name}", before)
            assert line["client_port"] == str(opened.getsockname()[1])


def test_squids_counters_are_for_this_machine_alone(
    vm: VirtualMachine, gateway: Gateway
) -> None:
    assert read_counters(*gateway.address).values["client_http.requests"] > 0
    page = inside(
        vm,
        "http://192.168.137.1:3129",
        "curl",
        "-sS",
        "http://squidkeeper:13129/squid-internal-mgr/counters",
    )
    assert "client_http.requests" not in page.text


def limit_of(haproxy: HAProxy) -> str:
    """The limit of a client, by the descriptors of the machine that the tests
    run on.
    """
    [found] = re.findall(
        r"sc0_conn_cur gt \d+", (haproxy.gateway.root / "etc/haproxy.cfg").read_text()
    )
    return str(found)


def test_one_client_does_not_have_all_connections(
    haproxy: HAProxy, origins: Origins
) -> None:
    """With and without TLS they count together, and another client is served
    meanwhile.
    """
    gateway = haproxy.gateway
    with haproxy.edited({limit_of(haproxy): "sc0_conn_cur gt 3"}), ExitStack() as held:
        for client in (
            over_tls(gateway, "127.0.0.7"),
            over_tls(gateway, "127.0.0.7"),
            connection(gateway, "127.0.0.7"),
        ):
            assert get(held.enter_context(client), "http://example.com/") == OK
        with pytest.raises(ConnectionError):
            get(
                held.enter_context(connection(gateway, "127.0.0.7")),
                "http://example.com/",
            )
        with over_tls(gateway, "127.0.0.8") as other:
            assert get(other, "http://example.com/") == OK


def test_a_machine_with_three_addresses_over_tls_leaves_connections_to_others(
    haproxy: HAProxy, origins: Origins
) -> None:
    """HAProxy has 640 descriptors here, and a client the sixteenth of them that
    install.sh would write.
    """
    gateway, share = haproxy.gateway, 640 // CLIENT_SHARE
    few = haproxy.edited(
        {limit_of(haproxy): f"sc0_conn_cur gt {share}"}, "prlimit", "--nofile=640:640"
    )
    with few, ExitStack() as held:
        for address in ("127.0.0.7", "127.0.0.8", "127.0.0.9"):
            for _ in range(share + 5):
                with suppress(OSError):
                    held.enter_context(over_tls(gateway, address))
        with over_tls(gateway, "127.0.0.10") as other:
            assert get(other, "http://example.com/") == OK


def test_a_connection_without_a_request_writes_no_record(
    gateway: Gateway, origins: Origins
) -> None:
    with connection(gateway) as first:
        assert get(first, "http://example.com/first") == OK
    # so are the requests of the tests before
    gateway.logged("http://example.com/first")
    before = len(gateway.log())
    for probe in (connection(gateway), over_tls(gateway)):
        probe.close()
    with connection(gateway) as last:
        assert get(last, "http://example.com/last") == OK
    gateway.logged("http://example.com/last", before)
    assert len(gateway.log()) == before + 1


def test_a_silent_client_is_cut_off_and_a_slow_answer_is_not(
    haproxy: HAProxy, origins: Origins
) -> None:
    """A first byte that does not come, a handshake that stops, a request that does not
    follow the handshake.
    """
    gateway, gate = haproxy.gateway, origins.gate()
    origins.answers["example.com/slow"] = Answer(gate=gate)
    quick = {
        f"{name} 30s": f"{name} 1s"
        for name in ("timeout client", "timeout server", "inspect-delay")
    }
    with (
        haproxy.edited(quick),
        over_tls(gateway) as patient,
        connection(gateway) as half,
        connection(gateway) as silent,
        over_tls(gateway) as idle,
    ):
        patient.sendall(
            b"GET http://example.com/slow HTTP/1.1\r\nHost: example.com\r\n\r\n"
        )
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        for opened in (silent, half, idle):
            assert is_closed(opened)
        gate.open()
        assert patient.recv(15) == OK


# ── Upkeep ────────────────────────────────────────────────────────────────────────────


@contextmanager
def kept(haproxy: HAProxy) -> Iterator[Path]:
    """Run `squidkeeper maintain` as the unit has it."""
    unit = (haproxy.gateway.root / "etc/squidkeeper-maintenance.service").read_text()
    options = unit[unit.index(" --tls ") :].splitlines()[0].split()
    with maintained(haproxy.gateway, *options) as said:
        yield said


def serial(gateway: Gateway) -> str:
    with over_tls(gateway) as client:
        found = client.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


def test_a_certificate_that_ends_soon_is_renewed_without_a_lost_connection(
    haproxy: HAProxy, origins: Origins
) -> None:
    gateway = haproxy.gateway
    ca = CertificateAuthority(*(file.read_bytes() for file in signing(gateway)))
    two_months_ago = datetime.now(UTC) - timedelta(days=61)
    haproxy.certificate.write_bytes(
        issue_server_certificate(ca, (gateway.address[0], "vm"), two_months_ago)
    )
    haproxy.restart()
    before = serial(gateway)
    with over_tls(gateway) as open_meanwhile, kept(haproxy):
        wait_for(lambda: serial(gateway) != before, "a new certificate")
        assert get(open_meanwhile, "http://example.com/") == OK
    assert haproxy.certificate.stat().st_mode & 0o777 == 0o600
    assert "warn" not in haproxy.said().lower()


def test_another_ca_gets_a_certificate_of_its_own(haproxy: HAProxy) -> None:
    gateway = haproxy.gateway
    files, trusted, other = (
        signing(gateway),
        gateway.ca.read_bytes(),
        make_ca(datetime.now(UTC)),
    )
    ours = (files[0].read_bytes(), files[1].read_bytes())
    with kept(haproxy):
        first = serial(gateway)
        for ca, certificate, key in (
            (other.certificate, other.certificate, other.key),
            (trusted, *ours),
        ):
            gateway.ca.write_bytes(ca)
            files[1].write_bytes(key)
            files[0].write_bytes(certificate)
            wait_for(
                lambda: is_of_the_ca(gateway),
                "a certificate of another CA, then of the old one",
            )
    assert serial(gateway) != first


def signing(gateway: Gateway) -> tuple[Path, Path]:
    """What Squid signs with: the intermediate and its key."""
    return gateway.ca.with_name("signing.crt"), gateway.ca.with_name("signing.key")


def is_of_the_ca(gateway: Gateway) -> bool:
    try:
        return bool(serial(gateway))
    except ssl.SSLCertVerificationError:
        return False


def test_clients_wait_while_squid_restarts(haproxy: HAProxy, origins: Origins) -> None:
    gateway = haproxy.gateway
    gateway.kill()
    with over_tls(gateway) as client:
        client.sendall(
            b"GET http://example.com/restart HTTP/1.1\r\nHost: example.com\r\n\r\n"
        )
        gateway.start()
        assert client.recv(15) == OK


@pytest.mark.long
def test_an_haproxy_that_does_not_answer_fails_the_task(haproxy: HAProxy) -> None:
    status = haproxy.gateway.root / "state/maintenance.json"
    with kept(haproxy):
        wait_for(
            lambda: status.exists() and '"tls":""' in status.read_text(),
            "the task to work",
        )
        haproxy.stop()
        wait_for(lambda: "HAProxy does not answer" in status.read_text(), "the failure")
        haproxy.start()
        wait_for(lambda: '"tls":""' in status.read_text(), "the task to work again")


def test_what_a_client_has_open_behind_haproxy_is_cut(gateway: Gateway) -> None:
    """HAProxy holds the client's own connection, and ends its own to Squid."""
    ended, other = ip_network("127.0.0.5"), "127.0.0.6"
    opened = [
        connect(gateway, client)
        for connect in (connection, over_tls)
        for client in (str(ended.network_address), other)
    ]
    assert [get(to, "http://example.com/") for to in opened] == [OK] * 4
    assert cut([ended], [Listener(*gateway.address)]) == Cut(ended=2)
    for to in opened[::2]:
        wait_for(partial(is_closed, to), "the end")
    assert get(opened[1], "http://example.com/") == OK
    assert get(opened[3], "http://example.com/") == OK
    address, port = squid_listens(gateway)
    ours = ("ss", "-Htn", "state", "established", f"sport = :{port} and src {address}")
    wait_for(lambda: run(*ours).count("\n") == 2, "Squid's ends to close")
    for to in opened:
        to.close()
