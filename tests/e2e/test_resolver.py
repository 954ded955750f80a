"""The way of a name: Squid, the gateway's own resolver (unbound), the host's name
servers; and forged answers.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from tests.waiting import pause, wait_for

from .curl import answer, curl
from .dns import Names
from .gateway import NAMESERVER, Gateway, NewGateway
from .network import VirtualMachine, filter_vm, unfilter_vm
from .observer import Maintenance
from .origin import Origins

POLICY = """
version: 1
defaults: {action: allow}
rules:
  - {name: inside, action: allow, hosts: [open.private.example], private: true}
"""
FORGED = "203.0.113.66"
# where a spoofed packet can claim to come from: the kernel drops one from a loopback
# address
UPSTREAM = "203.0.113.53"


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY, nameserver=None).start()


@pytest.fixture(scope="module")
def maintenance(gateway: Gateway) -> Iterator[Maintenance]:
    maintenance = Maintenance(gateway, gateway.root / "resolv.conf")
    maintenance.use(NAMESERVER)
    yield maintenance.start()
    maintenance.stop()


@pytest.fixture(autouse=True)
def running(gateway: Gateway, maintenance: Maintenance, names: Names) -> None:
    """Whatever a test has done, the next one finds the resolver forwarding to the
    tests' DNS server.
    """
    if not maintenance.runs:
        maintenance.start()
    forward_to(gateway, maintenance, NAMESERVER)
    wait_for(
        lambda: (
            answer(gateway, f"http://ready-{time.monotonic_ns()}.example/").status
            == 200
        ),
        "an answer",
    )


def forward_to(gateway: Gateway, maintenance: Maintenance, *servers: str) -> None:
    """Name these in resolv.conf, and wait until the resolver has taken it up."""
    maintenance.use(*servers)
    named = [server for server in servers if server != maintenance.address]
    rendered = gateway.root / "state/resolver/unbound.conf"
    wait_for(
        lambda: re.findall(r"forward-addr: (\S+)", rendered.read_text()) == named,
        f"{servers} to be taken up",
    )


def fetched(gateway: Gateway, host: str) -> int:
    return curl(gateway, f"http://{host}/").status


def test_squid_asks_the_resolver_that_install_sh_has_named(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    configuration = (gateway.root / "etc/squid.conf").read_text()
    assert f"\ndns_nameservers {maintenance.address}\n" in configuration
    assert maintenance.address.startswith("127.")


def test_queries_come_from_different_ports_in_mixed_case(
    gateway: Gateway, names: Names
) -> None:
    before = len(names.seen)
    for number in range(16):
        assert fetched(gateway, f"many-letters-{number}.ports.example") == 200
    asked = [
        (name, port)
        for name, port in names.seen[before:]
        if name.lower().endswith("ports.example")
    ]
    assert len(asked) >= 32  # A and AAAA
    assert len({port for _, port in asked}) >= len(asked) - 2
    assert (
        len([name for name, _ in asked if name not in (name.lower(), name.upper())])
        >= len(asked) - 2
    )


@pytest.mark.parametrize(
    "host", ["box.test", "box.invalid", "nas.home.arpa", "hidden.onion"]
)
def test_names_that_unbound_keeps_to_itself_by_default_resolve(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    assert fetched(gateway, host) == 200
    assert origins.urls() == [f"http://{host}/"]


def test_a_private_answer_arrives_and_is_denied_or_allowed_by_the_policy(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    for host in ("closed.private.example", "open.private.example"):
        names.set(host, ["10.1.2.3"])
    reply = curl(gateway, "http://closed.private.example/")
    assert (reply.status, reply.rule) == (403, "private-address")
    assert fetched(gateway, "open.private.example") == 200
    assert {address for address, _ in origins.connections} == {"10.1.2.3"}


def test_a_name_without_an_address_is_told_as_such(
    gateway: Gateway, names: Names
) -> None:
    names.set("none.example", [])
    assert fetched(gateway, "none.example") == 503


def test_a_changed_resolv_conf_is_followed(
    gateway: Gateway, maintenance: Maintenance, names: Names
) -> None:
    other = Names("127.0.0.54")
    try:
        # its own address in it makes no loop
        forward_to(gateway, maintenance, other.address, maintenance.address)
        wait_for(
            lambda: (
                fetched(gateway, f"moves-{time.monotonic_ns()}.example") == 200
                and other.seen
            ),
            "the change",
        )
        assert fetched(gateway, "moved.example") == 200
        assert other.asked("moved.example")
        assert names.asked("moved.example") == []
    finally:
        other.stop()


def test_an_empty_resolv_conf_changes_nothing_and_is_told_once(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    maintenance.resolv_conf.write_text("search example\n")
    wait_for(lambda: "has no name server" in log_of(gateway), "the complaint")
    pause(2, "maintenance reads resolv.conf every second")
    assert fetched(gateway, "still-there.example") == 200
    forward_to(gateway, maintenance, NAMESERVER)
    wait_for(lambda: "works again" in log_of(gateway), "its end")
    assert log_of(gateway).count("has no name server") == 1


def test_bytes_of_no_encoding_in_resolv_conf_do_not_hide_its_name_servers(
    gateway: Gateway, maintenance: Maintenance, names: Names
) -> None:
    other = Names("127.0.0.54")
    try:
        maintenance.resolv_conf.write_bytes(
            b'# B\xfcro\nnameserver 127.0.0.54\nnameserver fe80::1%a"b\n'
        )
        wait_for(
            lambda: (
                fetched(gateway, f"moved-{time.monotonic_ns()}.example") == 200
                and other.seen
            ),
            "the change",
        )
    finally:
        other.stop()


def log_of(gateway: Gateway) -> str:
    return (gateway.root / "log/maintenance.txt").read_text()


def test_a_killed_unbound_is_started_again(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    killed = maintenance.unbound
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: maintenance.unbound not in (0, killed), "another unbound")
    assert fetched(gateway, "after-unbound.example") == 200


def test_an_unbound_that_hangs_is_replaced(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    hanging = maintenance.unbound
    os.kill(hanging, signal.SIGSTOP)
    wait_for(lambda: maintenance.unbound not in (0, hanging), "another unbound")
    said = log_of(gateway)
    assert f"resolver: unbound, process {hanging}, does not answer on" in said
    assert f"unbound, process {hanging}, hangs: killed it" in said
    wait_for(
        lambda: fetched(gateway, f"after-{time.monotonic_ns()}.example") == 200,
        "an answer",
    )


def test_a_killed_maintenance_process_takes_unbound_with_it_and_the_next_starts_another(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    maintenance.kill()
    wait_for(lambda: not maintenance.unbound, "the end of unbound")
    assert fetched(gateway, "in-between.example") == 503
    maintenance.start()
    wait_for(
        lambda: fetched(gateway, f"after-{time.monotonic_ns()}.example") == 200,
        "an answer",
    )


def test_a_configuration_of_unbound_that_a_crash_has_torn_is_written_again(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    maintenance.kill()
    (gateway.root / "state/resolver/unbound.conf").write_bytes(b"server:\n\xff\0")
    maintenance.start()
    wait_for(
        lambda: fetched(gateway, f"after-{time.monotonic_ns()}.example") == 200,
        "an answer",
    )


def test_a_silent_name_server_fails_a_name_within_five_seconds(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.55", 53))
        forward_to(gateway, maintenance, "127.0.0.55")
        assert fetched(gateway, "unanswered.example") == 503


@pytest.mark.long
def test_names_whose_servers_are_silent_do_not_spoil_others(
    gateway: Gateway, maintenance: Maintenance
) -> None:
    """One client asks for thousands of them; by unbound's defaults every name then
    fails.
    """
    partly = Names("127.0.0.56", silent_below="silent.example")
    try:
        forward_to(gateway, maintenance, partly.address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for number in range(2400):
                question = DNSRecord.question(
                    f"n{number}.silent.example", ("A", "AAAA")[number % 2]
                )
                client.sendto(question.pack(), (maintenance.address, 53))
                pause(0.005, "unbound's rate for one client")
        assert [fetched(gateway, f"good-{number}.example") for number in range(5)] == [
            200
        ] * 5
    finally:
        partly.stop()


# ── Forged answers ────────────────────────────────────────────────────────────────────

FLOOD = """
import socket, struct, sys
from threading import Event
source, target, port, name, forged = sys.argv[1:]
address = socket.inet_aton
question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\\0\\0\\1\\0\\1"
answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + address(forged)
body = b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + question + answer
length = 8 + 2 + len(body)
header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, 17, 0, address(source), address(target))
udp = struct.pack("!HHHH", 53, int(port), length, 0)
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    for number in range(65536):
        raw.sendto(header + udp + struct.pack("!H", number) + body, (target, 0))
        if number % 100 == 0:
            Event().wait(0.001)  # more than a socket's buffer holds would be lost
"""


@pytest.fixture(scope="module")
def upstream(internet: None) -> Iterator[Names]:
    server = Names(UPSTREAM)
    yield server
    server.stop()


def forged(
    gateway: Gateway, vm: VirtualMachine, upstream: Names, origins: Origins, host: str
) -> bool:
    """Flood the port of the last query with every ID, while a name is looked up.

    Whether one was believed.
    """
    origins.forget()
    assert fetched(gateway, f"before-{host}") == 200
    asked_from = upstream.seen[-1][1]
    upstream.answering.clear()
    try:
        client = subprocess.Popen(
            [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "--proxy",
                f"http://{gateway.authority}",
                f"http://{host}/",
            ]
        )
        wait_for(
            lambda: [name for name, _ in upstream.seen if name.lower() == host],
            "the look-up",
        )
        subprocess.run(
            vm.command(
                sys.executable,
                "-c",
                FLOOD,
                UPSTREAM,
                vm.gateway,
                str(asked_from),
                host,
                FORGED,
            ),
            check=True,
        )
    finally:
        upstream.answering.set()
    assert client.wait(120) == 0
    return FORGED in {address for address, _ in origins.connections}


@pytest.mark.one_worker("it floods the port of one worker")
def test_a_flood_of_forged_answers_is_believed_by_squid_alone_and_stopped_by_resolver_and_packet_filter(
    new_gateway: NewGateway,
    gateway: Gateway,
    maintenance: Maintenance,
    vm: VirtualMachine,
    upstream: Names,
    origins: Origins,
) -> None:
    # Here every address is this machine's own, and the kernel drops what claims to come
    # from one.
    Path("/proc/sys/net/ipv4/conf/bragents0/accept_local").write_text("1")
    # a flood takes a loaded machine long
    patient = (
        "dns_timeout 2 minutes",
        "dns_retransmit_interval 1 minute",
    )
    squid_alone = new_gateway(POLICY, *patient, nameserver=UPSTREAM).start()
    assert forged(squid_alone, vm, upstream, origins, "alone.example"), (
        "the flood of this test is none"
    )
    filter_vm(gateway.address[1])
    assert not forged(squid_alone, vm, upstream, origins, "filtered.example")
    unfilter_vm()
    forward_to(gateway, maintenance, UPSTREAM)
    assert not forged(gateway, vm, upstream, origins, "resolved.example")
