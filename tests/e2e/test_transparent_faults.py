"""The transparent ports while something fails: what clients get, beside those with
proxy settings, and who is told.
"""

import json
import logging
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from squidkeeper.operate.setup.processes import InstalledService
from tests.ports import free_port
from tests.waiting import wait_for

from .gateway import NAMESERVER, Gateway
from .load import Load, by_proxy, load
from .network import run
from .observer import Exporter, Maintenance, fetch
from .origin import Origins
from .raw import Raw
from .transparent import OPTIONS as ADDED
from .transparent import PORTS, Transparent

POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
"""
CLIENTS = (
    ("https", "open.example"),
    ("http", "open.example"),
    ("https", "closed.example"),
)
EXPECTED = {"open.example": 200, "closed.example": 403}
BACK_SECONDS = 4  # supervise starts again what has ended a second ago
CURL = ("curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}")
TIMED_OUT = 28  # an exit status of curl
# the gateway's kernel tells a VM once a second that nothing listens
NOT_RESOLVED = (
    6,
    TIMED_OUT,
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Port:
    """A transparent port, as a client connects to it."""

    address: tuple[str, int]
    ca: Path


def without_settings(gateway: Gateway, scheme: str, host: str) -> tuple[Raw, str]:
    """Open a connection as a client without proxy settings does, to the address that
    its resolver gives.
    """
    tls, http = PORTS["transparent"]
    connection = Raw(
        Port((gateway.address[0], tls if scheme == "https" else http), gateway.ca)
    )
    try:
        return (connection.tls(host) if scheme == "https" else connection), ""
    except BaseException:
        connection.close()
        raise


@contextmanager
def supervised(transparent: Transparent, name: str) -> Iterator[Callable[[], int]]:
    """Have `supervise` run a service; gives what finds its process, 0 between one and
    the next.
    """
    layout = transparent.gateway.layout
    unit = layout.service(name).unit
    before = unit.read_text()
    transparent.stop(name)
    unit.write_text(
        re.sub(
            r"^(ExecStart=.*)",
            rf"\1 {' '.join(ADDED[name])}",
            before,
            flags=re.MULTILINE,
        )
    )
    owner = (
        layout.user_without_systemd(name),
        transparent.gateway.root.joinpath("state").stat().st_gid,
    )
    service = InstalledService(name, layout, systemd=False, owner=owner)
    service.start()
    try:
        pid = partial(listening, transparent.vm.gateway, *PORTS[name])
        wait_for(pid, f"{name}; {service.log_tail()}")
        yield pid
    finally:
        service.stop()
        unit.write_text(before)
        transparent.start(name)


def listening(address: str, *ports: int) -> int:
    found = [
        re.search(
            r"pid=(\d+)", run("ss", "-Hltnp", f"src {address} and sport = :{port}")
        )
        for port in ports
    ]
    return int(found[0][1]) if found[0] and all(found) else 0


@pytest.fixture(scope="module")
def watched(transparent: Transparent) -> Iterator[Exporter]:
    """The exporter and the maintenance process beside the ports."""
    gateway = transparent.gateway
    maintenance = Maintenance(gateway, gateway.root / "resolv.conf")
    maintenance.use(NAMESERVER)
    maintenance.start()
    try:
        with Exporter(gateway, free_port()) as exporter:
            yield exporter
    finally:
        maintenance.stop()


def failure(transparent: Transparent) -> str:
    return str(
        json.loads((transparent.gateway.root / "state/maintenance.json").read_text())[
            "transparent"
        ]
    )


def conditions(exporter: Exporter) -> set[str]:
    return {
        condition["code"]
        for condition in fetch(exporter.port, "/healthz").json["conditions"]
    }


def wait_for_health(exporter: Exporter) -> None:
    wait_for(
        lambda: exporter.health() == (200, {}),
        lambda: f"a healthy gateway: {exporter.health()}",
    )


def nothing_wrongly_allowed(load: Load, origins: Origins) -> None:
    assert {request.url.split("/")[2] for request in origins.seen} <= {"open.example"}
    wrong = {answer.status for answer in load.answers} - {200, 403, None}
    assert {*load.statuses("closed.example")} <= {403, None}
    assert wrong <= {502, 503}, wrong


def lost(load: Load) -> Counter[str]:
    """Count what clients did not get: connections without an answer, and other answers
    than expected.
    """
    found: Counter[str] = Counter()
    for answer in load.answers:
        expected = EXPECTED[answer.url.split("/")[2]]
        if answer.status != expected:
            found[str(answer.status or "lost")] += 1
    return found


# ── The process that takes connections ────────────────────────────────────────────────


def test_one_that_is_killed_costs_its_connections_and_is_back_within_seconds(
    transparent: Transparent, origins: Origins
) -> None:
    gateway = transparent.gateway
    with (
        supervised(transparent, "transparent") as pid,
        load(gateway, *CLIENTS, opened=without_settings) as without,
        load(gateway, *CLIENTS) as beside,
    ):
        held, _ = without_settings(gateway, "https", "open.example")
        with held:
            assert held.get("/before", "open.example").status == 200
            killed, at = pid(), time.monotonic()
            os.kill(killed, signal.SIGKILL)
            assert not held.get("/after", "open.example")
        wait_for(lambda: pid() not in (0, killed), "another one")
        took = time.monotonic() - at
        without.at_least(30)
    nothing_wrongly_allowed(without, origins)
    _log.info(
        "killed: back after %.1f s; without settings: %s; with: %s",
        took,
        lost(without),
        lost(beside),
    )
    assert took < BACK_SECONDS
    late = [
        answer
        for answer in without.answers
        if answer.status is None and answer.asked > at + BACK_SECONDS
    ]
    assert (late, lost(beside)) == ([], Counter())


def test_one_that_hangs_keeps_its_clients_waiting_and_is_told(
    transparent: Transparent, watched: Exporter, origins: Origins
) -> None:
    gateway = transparent.gateway
    with (
        supervised(transparent, "transparent") as pid,
        load(gateway, *CLIENTS) as beside,
    ):
        wait_for_health(watched)
        held, _ = without_settings(gateway, "https", "open.example")
        with held:
            os.kill(pid(), signal.SIGSTOP)
            assert (
                transparent.inside(*CURL, "https://open.example/").status == TIMED_OUT
            )
            wait_for(
                lambda: {"transparent-failing", "helper-stuck"} <= conditions(watched),
                "the exporter to tell",
            )
            assert failure(transparent).startswith(
                "squidkeeper transparent does not run, is stuck"
            )
            os.kill(pid(), signal.SIGCONT)
            assert held.get("/continued", "open.example").status == 200
        wait_for_health(watched)
        hanging = pid()
        os.kill(hanging, signal.SIGSTOP)
        os.kill(hanging, signal.SIGKILL)
        wait_for(lambda: pid() not in (0, hanging), "another one")
        beside.at_least(10)
    assert lost(beside) == Counter()


@pytest.mark.long
def test_a_full_disk_for_its_counts_costs_no_client_and_is_told(
    transparent: Transparent, watched: Exporter, origins: Origins
) -> None:
    gateway = transparent.gateway
    folder = gateway.root / "state/transparent/helpers"
    wait_for_health(watched)
    with load(gateway, *CLIENTS, opened=without_settings) as without:
        run("mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "tmpfs", folder)
        try:
            (folder / "ballast").write_bytes(bytes(64 * 1024))
            wait_for(
                lambda: "transparent-failing" in conditions(watched),
                "the exporter to tell",
            )
            without.at_least(30)
        finally:
            run("umount", folder)
        wait_for_health(watched)
    assert lost(without) == Counter()


# ── The resolver ──────────────────────────────────────────────────────────────────────


def test_a_resolver_that_is_killed_is_back_within_seconds_and_costs_no_connection(
    transparent: Transparent, origins: Origins
) -> None:
    with (
        supervised(transparent, "dns") as pid,
        load(transparent.gateway, *CLIENTS, opened=without_settings) as without,
    ):
        killed, at = pid(), time.monotonic()
        os.kill(killed, signal.SIGKILL)
        assert (
            transparent.inside(*CURL, "--max-time", "1", "https://open.example/").status
            in NOT_RESOLVED
        )
        wait_for(lambda: pid() not in (0, killed), "another one")
        took = time.monotonic() - at
        assert transparent.inside(*CURL, "https://open.example/").text == "200"
    _log.info("resolver killed: back after %.1f s", took)
    assert took < BACK_SECONDS
    assert lost(without) == Counter()


def test_a_resolver_that_hangs_is_told_and_replaced_when_it_is_killed(
    transparent: Transparent, watched: Exporter, origins: Origins
) -> None:
    with supervised(transparent, "dns") as pid:
        wait_for_health(watched)
        hanging = pid()
        os.kill(hanging, signal.SIGSTOP)
        assert transparent.inside(*CURL, "https://open.example/").status in NOT_RESOLVED
        wait_for(
            lambda: "transparent-failing" in conditions(watched), "the exporter to tell"
        )
        assert failure(transparent).startswith(
            f"unbound does not answer on {transparent.vm.gateway} port 53"
        )
        os.kill(hanging, signal.SIGKILL)
        wait_for(lambda: pid() not in (0, hanging), "another one")
        assert transparent.inside(*CURL, "https://open.example/").text == "200"
        wait_for_health(watched)


def test_an_address_that_is_gone_is_told_and_one_that_comes_back_needs_no_restart(
    transparent: Transparent, watched: Exporter, origins: Origins
) -> None:
    address = f"{transparent.vm.gateway}/24"
    wait_for_health(watched)
    run("ip", "addr", "del", address, "dev", "bragents0")
    try:
        wait_for(
            lambda: "transparent-failing" in conditions(watched), "the exporter to tell"
        )
        assert (
            failure(transparent) == f"{transparent.vm.gateway} is not on this machine"
        )
    finally:
        run("ip", "addr", "add", address, "dev", "bragents0")
    assert transparent.inside(*CURL, "https://open.example/").text == "200"
    wait_for_health(watched)


# ── Squid ─────────────────────────────────────────────────────────────────────────────


def test_a_squid_that_stays_down_ends_connections_after_five_seconds(
    transparent: Transparent, origins: Origins
) -> None:
    transparent.gateway.stop()
    try:
        for url, told in (
            ("https://open.example/", "alert internal error"),
            ("http://open.example/", "does not answer"),
        ):
            began = time.monotonic()
            assert told in transparent.inside("curl", "-sS", url).text
            assert 4 < time.monotonic() - began < 10
    finally:
        transparent.gateway.start()
    assert transparent.inside(*CURL, "https://open.example/").text == "200"


@pytest.mark.parametrize(
    "how", [Gateway.restart, Gateway.reconfigure], ids=["restarted", "reconfigured"]
)
def test_a_squid_that_is_restarted_costs_what_is_under_way_and_new_connections_wait(
    transparent: Transparent, origins: Origins, how: Callable[[Gateway], object]
) -> None:
    gateway = transparent.gateway
    with (
        load(gateway, *CLIENTS, opened=without_settings) as without,
        load(gateway, *CLIENTS, opened=by_proxy) as beside,
    ):
        for _ in range(3):
            how(gateway)
            without.at_least(20)
            beside.at_least(20)
    nothing_wrongly_allowed(without, origins)
    nothing_wrongly_allowed(beside, origins)
    told = [
        (sum(lost(one).values()), len(one.answers), dict(lost(one)))
        for one in (without, beside)
    ]
    _log.info("%s three times: without settings %s, with %s", how.__name__, *told)
    assert lost(without).total() <= 3 * 2 * len(CLIENTS), (
        "more than what is under way three times"
    )


# ── Refusals ──────────────────────────────────────────────────────────────────────────


def test_a_client_that_names_no_server_gets_an_alert_and_is_counted_and_named(
    transparent: Transparent, watched: Exporter
) -> None:
    gateway, asked = (
        transparent.gateway,
        'squidkeeper_transparent_connections_total{result="no_server_name"}',
    )
    told = transparent.inside(
        "openssl",
        "s_client",
        "-connect",
        f"{transparent.vm.gateway}:443",
        "-noservername",
    )
    assert "SSL alert number 112" in told.text
    wait_for(
        lambda: f"{asked} 1.0" in fetch(watched.port, "/metrics").text,
        "the exporter to count it",
    )
    assert "1 × no server name" in fetch(watched.port, "/").text
    line = f"{transparent.vm.address}: connections refused: 1, no-server-name"
    wait_for(
        lambda: line in (gateway.root / "log/transparent.txt").read_text(),
        "the line in the log",
    )
