"""The gateway's own public addresses are closed to clients, and followed when they
change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_for

from .curl import answer, curl
from .dns import Names
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .maintained import maintained
from .network import run
from .origin import Origins
from .raw import Raw

POLICY = """
version: 1
rules:
  - {name: opened, action: allow, hosts: [opened.example, 203.0.113.72], private: true}
  - {name: open, action: allow, hosts: [.own.example, 203.0.113.0/24, "2001:db8:7::/48", "64:ff9b::/96", "2002::/16"]}
"""
FIRST, SECOND, THIRD = "203.0.113.71", "203.0.113.72", "203.0.113.73"
SIX = "2001:db8:7::71"


@contextmanager
def address(text: str) -> Iterator[None]:
    """Add an address to this machine, on an interface."""
    run("ip", "address", "add", text, "dev", "lo")
    try:
        yield
    finally:
        run("ip", "address", "del", text, "dev", "lo")


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Iterator[Gateway]:
    """A gateway with two public addresses of its own, of which Squid has not read, and
    its maintenance process.
    """
    gateway = new_gateway(POLICY).start()
    with address(f"{FIRST}/32"), address(f"{SIX}/128"), maintained(gateway) as said:
        wait_for(
            lambda: "closed addresses of this machine" in said.read_text(),
            "the addresses to be closed",
        )
        wait_for(
            lambda: "Reconfiguring Squid" in gateway.cache_log(), "Squid to reconfigure"
        )
        wait_for(
            lambda: _is_closed(gateway, f"http://{FIRST}/first"),
            "Squid to close the address",
        )
        yield gateway


def _is_closed(gateway: Gateway, url: str) -> bool:
    return answer(gateway, url).rule == "private-address"


def own_addresses(gateway: Gateway) -> Path:
    return gateway.root / "state/own-addresses"


def test_the_installer_writes_the_file_that_squid_reads(
    new_gateway: NewGateway,
) -> None:
    gateway = new_gateway(POLICY, installed=True)
    assert (
        own_addresses(gateway)
        .read_text()
        .startswith("# The public addresses of this gateway")
    )
    assert own_addresses(gateway).owner() == "proxy"


def test_squid_starts_without_the_file_and_reads_it_when_it_is_written(
    new_gateway: NewGateway,
) -> None:
    gateway = new_gateway(POLICY)
    own_addresses(gateway).unlink()
    gateway.start()
    assert curl(gateway, "http://closed.example/").rule == "default"
    assert (
        f"ERROR: Can not open file {own_addresses(gateway)} for reading"
        in gateway.cache_log()
    )
    with address("203.0.113.74/32"), maintained(gateway):
        wait_for(
            lambda: _is_closed(gateway, "http://203.0.113.74/"),
            "the address to be closed",
        )


@pytest.mark.parametrize(
    "host",
    [
        FIRST,
        "3405803847",
        f"[::ffff:{FIRST}]",
        "[64:ff9b::cb00:7147]",
        "[2002:cb00:7147::9]",
        f"[{SIX}]",
    ],
)
def test_an_own_address_is_denied_in_every_notation(
    gateway: Gateway, origins: Origins, host: str
) -> None:
    with Raw(gateway) as client:
        reply = client.get(f"http://{host}/x", host)
    assert (reply.status, reply.rule) == (403, "private-address")
    assert origins.connections == []


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("own", [FIRST, SIX])
def test_a_name_that_leads_to_an_own_address_is_denied(
    gateway: Gateway, origins: Origins, names: Names, scheme: str, own: str
) -> None:
    host = f"{scheme}{len(own)}.own.example"
    names.set(host, [own, "203.0.113.10"])
    denied(gateway, origins, f"{scheme}://{host}/", "private-address")


def test_other_public_addresses_stay_open(gateway: Gateway, origins: Origins) -> None:
    for host in ("203.0.113.70", THIRD, "[2001:db8:7::72]"):
        allowed(gateway, origins, f"http://{host}/other", "open")


def test_a_rule_opens_an_own_address(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    names.set("opened.example", [FIRST])
    allowed(gateway, origins, "http://opened.example/", "opened")


def test_an_address_that_is_added_is_closed_within_seconds(
    gateway: Gateway, origins: Origins
) -> None:
    allowed(gateway, origins, f"http://{THIRD}/before", "open")
    with address(f"{THIRD}/32"):
        wait_for(
            lambda: _is_closed(gateway, f"http://{THIRD}/added"),
            "the address to be closed",
        )
        assert _is_closed(gateway, f"http://{FIRST}/still")
    assert _is_closed(gateway, f"http://{THIRD}/removed"), "until another one is added"
