"""The internet, origins and program of tests/e2e, and a fleet on it that the tests of a
module share.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from squidkeeper.serving.certificates.authority import make_ca
from tests.e2e.balancer import Balancer
from tests.e2e.conftest import (
    all_origins,
    folder,
    internet,
    names,
    origins,
    prototype,
    site,
)
from tests.e2e.dns import Names
from tests.e2e.gateway import Gateway, Site, install
from tests.e2e.observer import Exporter, Prometheus
from tests.pull_servers import Repository, make_key, serving
from tests.valkey_server import ValkeyServer

from .cost import HEAD
from .fleet import CLIENTS, FRONT, FRONT_IPV6, POLICY, Fleet, Member
from .network import ROUTER, Machine, bridge
from .whole import GIT, STORE, WITNESS, Pull, Whole, policy, set_up_counts, set_up_pull

__all__ = ["all_origins", "folder", "internet", "names", "origins", "prototype", "site"]
IPV6_CLIENTS = ("fd99:0:0:a::1", "fd99:0:0:a::2", "fd99:0:0:b::1")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Path:
    """The folder of the CA that all gateways are installed with."""
    path, made = folder / "ca", make_ca(datetime.now(UTC))
    if not path.exists():
        path.mkdir()
        (path / "ca.crt").write_bytes(made.certificate)
        (path / "ca.key").write_bytes(made.key)
    return path


@pytest.fixture(scope="module")
def module_site(site: Site, request: pytest.FixtureRequest) -> Site:
    """A folder for the gateways of this module: they have the same names in each."""
    folder = site.folder / request.module.__name__.rpartition(".")[2]
    folder.mkdir()
    return replace(site, folder=folder)


@pytest.fixture(scope="module")
def fleet(module_site: Site, ca: Path) -> Iterator[Fleet]:
    """Three gateways behind HAProxy, all healthy."""
    with ExitStack() as stack:
        stack.enter_context(network())
        members = tuple(member(stack, module_site, ca, number) for number in (1, 2, 3))
        yield behind_haproxy(stack, module_site, members)


@contextmanager
def network() -> Iterator[None]:
    """A bridge for the machines of a fleet, and its name server."""
    with bridge():
        nameserver = Names(ROUTER)
        try:
            yield
        finally:
            nameserver.stop()


def behind_haproxy(stack: ExitStack, site: Site, members: tuple[Member, ...]) -> Fleet:
    """Start the gateways, and HAProxy before them."""
    front = on(stack, Machine("front", FRONT[0], FRONT_IPV6[0]))
    clients = on(stack, Machine("clients", *CLIENTS, *IPV6_CLIENTS))
    for gateway in members:
        gateway.start()
    balancer = Balancer(
        site.folder / "balancer",
        FRONT,
        [FRONT[0], FRONT_IPV6[0]],
        [one.gateway for one in members],
        f"{FRONT[1]}",
    )
    stack.callback(balancer.stop)
    with front.entered():
        balancer.start()
    fleet = Fleet(members, balancer, front, clients)
    fleet.wait_until_up(*(member.name for member in members))
    return fleet


@pytest.fixture(scope="module")
def whole(module_site: Site, ca: Path) -> Iterator[Whole]:
    """The same with a git server that the gateways pull their policy from, Valkey and
    Prometheus.
    """
    folder = module_site.folder
    with ExitStack() as stack:
        stack.enter_context(network())
        git, store = on(stack, Machine("git", GIT)), on(stack, Machine("store", STORE))
        with git.entered():
            server = stack.enter_context(serving(folder / "git/served", GIT))
        key = make_key(folder / "git/key")
        repository = Repository.make(
            folder / "git/work", key, server.root / "policies.git"
        )
        repository.write("policy.yaml", policy(edited_is_open=False))
        repository.commit()
        valkey = ValkeyServer(folder / "valkey", saves=True, address=STORE)
        stack.callback(valkey.kill)
        with store.entered():
            valkey.start()
        members, pulls = [], []
        for number in (1, 2, 3):
            plain = member(stack, module_site, ca, number)
            set_up_pull(plain.gateway, server, key)
            set_up_counts(plain, valkey, "deny")
            install(plain.gateway.root, plain.gateway.authority, "--ca-dir", str(ca))
            pulls.append(Pull(plain))
            stack.callback(pulls[-1].stop)
            pulls[-1].start()
            exporter = Exporter(
                plain.gateway,
                9129,
                *exporter_options(plain.gateway),
                "--listen",
                "0.0.0.0:9129",
            )
            stack.callback(exporter.stop)
            members.append(replace(plain, exporter=exporter))
        fleet = behind_haproxy(stack, module_site, tuple(members))
        witness = on(stack, Machine("witness", WITNESS))
        rules = (members[0].gateway.root / "etc/observe/alerts.yaml").read_text()
        with witness.entered():
            scraped = [
                (member.name, f"{member.machine.address}:9129") for member in members
            ]
            prometheus = Prometheus(folder / "prometheus", 9090, *scraped, rules=rules)
        stack.callback(prometheus.stop)
        yield Whole(
            fleet,
            tuple(pulls),
            repository,
            git,
            server,
            valkey,
            store,
            prometheus,
            witness,
        )


def on(stack: ExitStack, machine: Machine) -> Machine:
    stack.callback(machine.stop)
    return machine


def member(stack: ExitStack, site: Site, ca: Path, number: int) -> Member:
    """Install a gateway as documented, and do not start it."""
    name, address = f"gw-{number}", f"10.99.1.{number}"
    machine = on(stack, Machine(name, address))
    options = ("--behind", FRONT[0], "--gateway", name, "--ca-dir", str(ca))
    gateway = Gateway(site, name, (address, 3130 + number), ROUTER, options=options)
    gateway.local_conf("shutdown_lifetime 0 seconds")
    gateway.write("policy.yaml", POLICY)
    stack.callback(gateway.kill)
    exporter = Exporter(gateway, 9129, *exporter_options(gateway))
    stack.callback(exporter.stop)
    return Member(machine, gateway, exporter)


def exporter_options(gateway: Gateway) -> list[str]:
    """What the exporter's unit says besides what `Exporter` does."""
    unit = (gateway.root / "etc/squidkeeper-exporter.service").read_text()
    return unit[unit.index(" --proxy-header") :].splitlines()[0].split()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of what each fault has cost, and some of the requests that were
    lost.
    """
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.getreports(kind)
    ]
    told = [
        pair
        for report in reports
        if report.when == "call"
        for pair in report.user_properties
    ]
    rows, lost = (
        [str(text) for name, text in told if name == kind] for kind in ("row", "lost")
    )
    if rows:
        terminalreporter.section("what faults cost")
        terminalreporter.write_line("\n".join((HEAD, *rows, "", *lost)))
