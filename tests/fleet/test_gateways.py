"""A fleet of three gateways behind HAProxy: who serves whom, and what a gateway that
goes away costs.
"""

import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from squidkeeper.serving.drained import drained_since
from tests.e2e.gateway import install
from tests.e2e.network import run
from tests.e2e.observer import fetch
from tests.e2e.origin import Origins
from tests.e2e.raw import Raw

from .conftest import IPV6_CLIENTS
from .fleet import CLIENTS, FRONT, Fleet
from .load import load
from .network import Machine

pytestmark = pytest.mark.long
ALL = ("gw-1", "gw-2", "gw-3")
DOCUMENT = Path(__file__).parents[2] / "squid/FLEET.md"


def a_client_of(served: dict[str, str], name: str) -> str:
    return next(address for address, gateway in served.items() if gateway == name)


def opened(fleet: Fleet, address: str) -> Raw:
    """A connection that has had an answer, and is kept open."""
    client = fleet.client(address)
    assert still_open(client)
    return client


def still_open(client: Raw) -> bool:
    """Whether a connection still serves requests."""
    try:
        reply = client.get("http://open.example/kept", "open.example")
    except OSError:
        return False
    return reply.status == 200


def test_a_client_stays_with_its_gateway_and_each_gateway_has_some(
    fleet: Fleet, origins: Origins
) -> None:
    first = fleet.served()
    assert fleet.served() == first
    share = [list(first.values()).count(name) for name in ALL]
    assert min(share) >= 2, share


def test_clients_trust_each_gateway_by_one_ca_and_the_metrics_tell_so(
    fleet: Fleet, origins: Origins
) -> None:
    served = fleet.served()
    for member in fleet.members:
        with fleet.client(a_client_of(served, member.name)) as client:
            assert client.connect("open.example:443")
            reply = client.tls("open.example").get("/by-tls", "open.example")
            assert reply.status == 200
    roots = set()
    for member in fleet.members:
        with member.machine.entered():
            roots |= {
                *re.findall(
                    r'squidkeeper_ca_info\{sha256="(\w{64})"\} 1',
                    fetch(9129, "/metrics").text,
                )
            }
    assert len(roots) == 1, roots
    signing = {
        gateway.gateway.ca.with_name("signing.crt").read_bytes()
        for gateway in fleet.members
    }
    assert len(signing) == 3, "each has an intermediate of its own"


def test_the_network_of_an_ipv6_client_stays_with_one_gateway(
    fleet: Fleet, origins: Origins
) -> None:
    first, second, _ = IPV6_CLIENTS
    served = fleet.served((first, second))
    assert served[first] == served[second]


def test_the_packet_filter_of_the_document_leaves_the_ports_of_a_gateway_to_the_load_balancer(
    fleet: Fleet, origins: Origins
) -> None:
    """Clients reach none of them, by IPv4 or IPv6."""
    machine, (address, port) = (
        fleet.members[0].machine,
        fleet.members[0].gateway.address,
    )
    [rules] = re.findall(
        r"^ *table inet squidkeeper_balancers \{\n.*?^  \}\n",
        DOCUMENT.read_text(),
        re.M | re.DOTALL,
    )
    rules = rules.replace("10.0.0.5, 10.0.0.6", FRONT[0]).replace(
        "3129, 9130", f"{port}, {port + 7000}"
    )
    targets = [
        (to, number) for to in (address, "fd99::11") for number in (port, port + 7000)
    ]
    with machine.entered():
        run("ip", "addr", "add", "fd99::11/48", "dev", "eth0", "nodad")
        run("nft", rules)
    try:
        assert [arrives(fleet.clients, *target) for target in targets] == [False] * 4
        assert [arrives(fleet.front, *target) for target in targets[:2]] == [True] * 2
        assert arrives(machine, *targets[0])
    finally:
        with machine.entered():
            run("nft", "delete table inet squidkeeper_balancers")
    assert [arrives(fleet.clients, *target) for target in targets] == [True] * 4


def arrives(machine: Machine, to: str, port: int) -> bool:
    """Whether an attempt to connect reaches the other machine, which may refuse it."""
    with machine.entered():
        try:
            socket.create_connection((to, port), 2).close()
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return True


def test_a_gateway_that_dies_costs_its_open_connections_and_nothing_else(
    fleet: Fleet, origins: Origins
) -> None:
    before = fleet.served()
    dies, *others = fleet.members
    mine = tuple(address for address, name in before.items() if name == dies.name)
    with ExitStack() as held:
        kept = {
            one.name: held.enter_context(opened(fleet, a_client_of(before, one.name)))
            for one in fleet.members
        }
        dies.gateway.kill()
        assert not still_open(kept[dies.name])
        # HAProxy does not know yet: it tries the next gateway
        at_once = fleet.served(mine)
        assert dies.name not in at_once.values()
        fleet.wait_until_up(*(other.name for other in others))
        assert [still_open(kept[other.name]) for other in others] == [True, True]
        during = fleet.served()
        assert {
            address for address in before if before[address] != during[address]
        } == set(mine)
    with dies.machine.entered():
        dies.gateway.start()
    fleet.wait_until_up(*ALL)
    assert fleet.served() == before


def test_a_machine_that_falls_silent_ends_its_connections_within_a_minute(
    fleet: Fleet, origins: Origins
) -> None:
    before = fleet.served()
    silent, other = fleet.members[1], fleet.members[2]
    with (
        opened(fleet, a_client_of(before, silent.name)) as kept,
        opened(fleet, a_client_of(before, other.name)) as well,
    ):
        with silent.machine.cut_off():
            cut = time.monotonic()
            assert fleet.get(a_client_of(before, silent.name), "/silent") == 200
            assert not still_open_within(kept, 60 - (time.monotonic() - cut))
            assert still_open(well)
            fleet.wait_until_up("gw-1", "gw-3")
        fleet.wait_until_up(*ALL)
    assert fleet.served() == before


def still_open_within(client: Raw, seconds: float) -> bool:
    """Whether a silent connection is still open after some time; it returns when the
    connection ends.
    """
    client._socket.settimeout(seconds)
    try:
        return client._socket.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_a_drained_gateway_keeps_its_tunnels_and_gets_no_new_clients(
    fleet: Fleet, origins: Origins
) -> None:
    before, drained = fleet.served(), fleet.members[2]
    address = a_client_of(before, drained.name)
    with opened(fleet, address) as kept:
        draining = drained.command("drain", "--for", "2m")
        fleet.wait_until_up("gw-1", "gw-2")
        assert fleet.server_of(address) != drained.name
        assert still_open(kept)
        assert draining.poll() is None
    assert (
        draining.communicate(timeout=60)[0].splitlines()[-1]
        == "idle: no connection is open"
    )
    assert draining.returncode == 0
    drained.restart_squid()
    assert drained_since(drained.gateway.root / "run") is not None, (
        "a restart does not end it"
    )
    assert drained.run("drain", "--cancel") == "clients can come again\n"
    fleet.wait_until_up(*ALL)
    assert fleet.served() == before


def test_an_exporter_that_ends_costs_no_connection(
    fleet: Fleet, origins: Origins
) -> None:
    before, member = fleet.served(), fleet.members[0]
    with opened(fleet, a_client_of(before, member.name)) as kept:
        member.exporter.stop()
        fleet.wait_until_up("gw-2", "gw-3")
        assert member.name not in fleet.served().values()
        assert still_open(kept)
        with member.machine.entered():
            member.exporter.start()
        fleet.wait_until_up(*ALL)
        assert still_open(kept)
    assert fleet.served() == before


def test_an_upgrade_of_one_gateway_after_another_loses_nothing(
    fleet: Fleet, origins: Origins, ca: Path
) -> None:
    """As squid/OPERATING.md has it; the new version is one line of Squid's that needs a
    restart.
    """
    with load(fleet, CLIENTS[:6]) as running:
        for member in fleet.members:
            running.at_least(20)
            member.run("drain", "--for", "2m")
            member.gateway.local_conf("max_filedescriptors 8192")
            install(member.gateway.root, member.gateway.authority, "--ca-dir", str(ca))
            member.restart_squid()
            member.run("drain", "--cancel")
            fleet.wait_until_up(*ALL)
        running.at_least(20)
    assert running.wrongly_allowed == []
    assert running.lost == []


def test_haproxy_takes_a_new_gateway_without_ending_a_connection(
    fleet: Fleet, origins: Origins
) -> None:
    before, balancer = fleet.served(), fleet.balancer
    *stay, leaves = fleet.members
    with opened(fleet, a_client_of(before, leaves.name)) as kept:
        for members in (stay, fleet.members):
            balancer.gateways = [member.gateway for member in members]
            balancer.write([FRONT[0]])
            with fleet.front.entered():
                assert "reloaded: process" in balancer.set_up()
            fleet.wait_until_up(*(member.name for member in members))
            assert still_open(kept)
            after = fleet.served()
            moved = {address for address in before if after[address] != before[address]}
            assert moved == {
                address
                for address in before
                if before[address] == leaves.name and members is stay
            }
