"""The file of the gateway's own addresses, with the addresses of a real network and a
real Squid that is told.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from squidkeeper.services.maintenance.own_addresses import (
    FILE,
    OwnAddresses,
    answers_at,
    prepare_own_addresses,
    reached_at,
)
from squidkeeper.services.maintenance.squid_process import RateLimit, SquidProcess
from tests.bare_squid import BareSquid, bare_squid
from tests.e2e.network import internet, run
from tests.waiting import wait_for

pytestmark = pytest.mark.system

FRAGMENT = Path(__file__).parents[2] / "squid/squidkeeper.conf"


@pytest.fixture
def network() -> Iterator[None]:
    """A network of this test's own: addresses are those that it adds."""
    with internet():
        yield


@pytest.fixture
def squid(network: None) -> Iterator[BareSquid]:
    with bare_squid() as squid:
        yield squid


def add(*addresses: str) -> None:
    for address in addresses:
        run("ip", "address", "add", address, "dev", "lo")


def remove(address: str) -> None:
    run("ip", "address", "del", address, "dev", "lo")


def closed(state: Path) -> list[str]:
    return [
        line
        for line in (state / FILE).read_text().splitlines()
        if not line.startswith("#")
    ]


def test_public_addresses_are_written_in_every_form_and_private_ones_are_not(
    network: None, tmp_path: Path
) -> None:
    add(
        "203.0.113.5/24",
        "10.1.2.3/8",
        "100.64.0.9/10",
        "2001:db8::5/64",
        "fd00::1/64",
        "fe80::9/64",
    )
    prepare_own_addresses(tmp_path)
    assert closed(tmp_path) == [
        "203.0.113.5/32",
        "64:ff9b::cb00:7105/128",
        "2001:db8::5/128",
        "2002:cb00:7105::/48",
    ]


def test_squid_is_reached_from_outside_at_the_public_addresses_where_it_listens(
    network: None,
) -> None:
    add(
        "8.8.4.4/32",
        "2606:4700::1111/128",
        "192.168.137.1/24",
        "100.64.0.1/32",
        "fd00::1/64",
    )
    reached = {
        "3129": ["2606:4700::1111", "8.8.4.4"],
        "[::]:3129": ["2606:4700::1111", "8.8.4.4"],
        "0.0.0.0:3129": ["8.8.4.4"],
        "8.8.4.4:3129": ["8.8.4.4"],
        "[2606:4700::1111]:3129": ["2606:4700::1111"],
        "192.168.137.1:3129": [],
        "[fd00::1]:3129": [],
    }
    assert {
        listen: [str(address) for address in reached_at(listen)] for listen in reached
    } == reached


def test_squid_reads_the_file_beside_the_private_networks_without_a_warning(
    network: None, tmp_path: Path
) -> None:
    """It warns where one network is within another, and fails on what it
    cannot parse.
    """
    add(
        "203.0.113.4/32",
        "203.0.113.5/32",
        "2001:db8::4/128",
        "2001:db8::5/128",
        "2002:cb00:7104::1/128",
    )
    prepare_own_addresses(tmp_path)
    lines = [
        line
        for line in FRAGMENT.read_text().splitlines()
        if line.startswith("acl sk_ask_private ")
    ]
    text = "\n".join(lines).replace("/var/lib/squidkeeper", str(tmp_path))
    (tmp_path / "squid.conf").write_text(
        f"http_port 3128\n{text}\nhttp_access deny sk_ask_private\n"
    )
    command = ["squid", "-k", "parse", "-f", str(tmp_path / "squid.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f'acl sk_ask_private dst "{tmp_path}/own-addresses"' in done.stderr
    assert [
        line
        for line in done.stderr.splitlines()
        if "WARNING" in line or "ERROR" in line
    ] == []


def test_without_a_public_address_the_file_is_there_and_empty(
    network: None, tmp_path: Path
) -> None:
    prepare_own_addresses(tmp_path)
    assert closed(tmp_path) == []
    assert oct((tmp_path / FILE).stat().st_mode & 0o777) == "0o644"


def test_squid_is_told_once_about_each_address_that_is_new(
    squid: BareSquid, tmp_path: Path
) -> None:
    OwnAddresses(tmp_path, SquidProcess(tmp_path / "no squid yet")).check()
    task = OwnAddresses(tmp_path, SquidProcess(squid.pid_file))
    task.check()
    add("203.0.113.5/32")
    for _ in range(3):
        task.check()
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure")
    add("2001:db8::5/128")
    task.check()
    wait_for(lambda: squid.reconfigured(2), "Squid to reconfigure again")
    task.check()
    assert squid.reconfigured(2)
    assert len(closed(tmp_path)) == 4


def test_an_address_that_is_removed_stays_closed_and_squid_is_not_told(
    squid: BareSquid, tmp_path: Path
) -> None:
    add("203.0.113.5/32")
    task = OwnAddresses(tmp_path, SquidProcess(squid.pid_file))
    task.check()
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure")
    before = closed(tmp_path)
    remove("203.0.113.5/32")
    task.check()
    add("203.0.113.5/32")
    task.check()
    assert closed(tmp_path) == before
    remove("203.0.113.5/32")
    add("203.0.113.6/32")
    task.check()
    assert closed(tmp_path)[0] == "203.0.113.6/32"
    wait_for(lambda: squid.reconfigured(2), "Squid to reconfigure again")


def test_addresses_that_change_all_the_time_reconfigure_squid_no_more_often_than_the_pace_allows(
    squid: BareSquid, tmp_path: Path
) -> None:
    now = 0.0
    task = OwnAddresses(
        tmp_path, SquidProcess(squid.pid_file), RateLimit((10.0, 1), clock=lambda: now)
    )
    for number in range(1, 6):
        add(f"203.0.113.{number}/32")
        task.check()
    assert closed(tmp_path)[:3] == [
        "203.0.113.1/32",
        "203.0.113.2/31",
        "203.0.113.4/31",
    ], "for a Squid that starts now"
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure")
    now = 10.0
    task.check()
    wait_for(lambda: squid.reconfigured(2), "Squid to reconfigure again")


def test_a_successor_tells_squid_what_the_process_before_it_could_not(
    squid: BareSquid, tmp_path: Path
) -> None:
    add("203.0.113.5/32")
    OwnAddresses(tmp_path, SquidProcess(squid.pid_file), RateLimit((10.0, 0))).check()
    for _ in range(2):
        OwnAddresses(tmp_path, SquidProcess(squid.pid_file)).check()
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure, once")


def test_a_file_that_was_removed_is_written_again(
    squid: BareSquid, tmp_path: Path
) -> None:
    add("203.0.113.5/32")
    task = OwnAddresses(tmp_path, SquidProcess(squid.pid_file))
    task.check()
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure")
    (tmp_path / FILE).unlink()
    task.check()
    wait_for(lambda: squid.reconfigured(2), "Squid to reconfigure again")
    assert closed(tmp_path)[0] == "203.0.113.5/32"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 64, b"\xff\xfe garbage\n"],
    ids=["empty", "zeros", "not text"],
)
def test_files_that_a_crash_has_torn_are_written_again(
    squid: BareSquid, tmp_path: Path, content: bytes
) -> None:
    """Squid would leave own addresses open, or not start."""
    add("203.0.113.5/32")
    OwnAddresses(tmp_path, SquidProcess(squid.pid_file)).check()
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure")
    (tmp_path / FILE).write_bytes(content)
    task = OwnAddresses(tmp_path, SquidProcess(squid.pid_file))
    task.check()
    assert closed(tmp_path)[0] == "203.0.113.5/32"
    wait_for(lambda: squid.reconfigured(2), "Squid to reconfigure again")
    for name in (FILE, f"{FILE}.told"):
        (tmp_path / name).write_bytes(content)
    prepare_own_addresses(tmp_path)
    OwnAddresses(tmp_path, SquidProcess(tmp_path / "no squid yet")).check()
    assert closed(tmp_path)[0] == "203.0.113.5/32"


def test_a_state_folder_that_cannot_be_written_is_an_error_and_followed_when_it_can(
    squid: BareSquid, tmp_path: Path
) -> None:
    add("203.0.113.5/32")
    state = tmp_path / "state"
    task = OwnAddresses(state, SquidProcess(squid.pid_file))
    with pytest.raises(FileNotFoundError):
        task.check()
    assert squid.reconfigured(0)
    state.mkdir()
    task.check()
    wait_for(lambda: squid.reconfigured(1), "Squid to reconfigure")


def test_what_listens_is_reached_at_its_address_or_at_each_of_this_machine() -> None:
    assert {str(answer) for answer in answers_at("127.0.0.7:3129")} == {"127.0.0.7"}
    assert "127.0.0.1" in {str(answer) for answer in answers_at("3129")}
    assert {answer.version for answer in answers_at("0.0.0.0:3129")} == {4}
