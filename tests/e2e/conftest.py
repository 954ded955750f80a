"""One network, one set of origins, one DNS server, one program installed for the whole
run; gateways for the tests.
"""

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from tests.conftest import HUNTED, SHARED_FOLDER
from tests.leak_hunt import Hunt

from . import canaries, network, registries
from .clients import GO, Machine, machine_of
from .dns import PUBLIC, Names
from .gateway import NAMESERVER, Gateway, NewGateway, Site, install_prototype
from .network import run
from .observer import Exporter
from .origin import Origins
from .registries import GoServices, Service
from .transparent import Transparent

NO_SECRETS: Mapping[str, bytes | str] = {}


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """A folder that Squid's account can enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="squidkeeper-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def prototype(shared_folder: Path) -> Path:
    """A gateway installed as users do, from the package registries: once a run, on the
    machine's own network.
    """
    with (shared_folder / "prototype.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (
            shared_folder / "prototype/bin/squidkeeper"
        ).exists():  # no other process has installed it
            install_prototype(shared_folder / "prototype")
    return shared_folder / "prototype"


@pytest.fixture(scope="session")
def programs(shared_folder: Path) -> Path:
    """Clients from the registries of their languages: once a run, on the machine's own
    network.
    """
    folder = shared_folder / "clients"
    with (shared_folder / "clients.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            run("/usr/bin/python3", "-m", "venv", folder / "python")
            sdks = ("anthropic", "openai", "google-genai")
            install = (
                "env",
                "-u",
                "PIP_NO_INDEX",
                folder / "python/bin/pip",
                "install",
                "-q",
            )
            run(*install, "requests", "httpx", "aiohttp", "uv", *sdks)
            run("npm", "install", "--silent", "--prefix", folder / "node", "node@24")
            (folder / "get.go").write_text(GO)
            cache = f"GOCACHE={folder}/go-cache"
            run(
                "env",
                cache,
                "CGO_ENABLED=0",
                "go",
                "build",
                "-o",
                folder / "get",
                folder / "get.go",
            )
            (folder / "installed").touch()
    return folder


@pytest.fixture(scope="package")
def internet(prototype: Path) -> Iterator[None]:
    with network.internet():
        yield


@pytest.fixture(scope="package")
def all_origins(
    internet: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Origins]:
    origins = Origins(tmp_path_factory.mktemp("origins"))
    yield origins
    origins.stop()


@pytest.fixture
def origins(all_origins: Origins) -> Origins:
    """The origins, with nothing seen yet."""
    all_origins.forget()
    return all_origins


@pytest.fixture(scope="package")
def names(internet: None) -> Iterator[Names]:
    server = Names(NAMESERVER)
    yield server
    server.stop()


@pytest.fixture(scope="package")
def site(
    folder: Path, prototype: Path, all_origins: Origins, names: Names
) -> Iterator[Site]:
    """What the gateways share; when all have stopped, no file of theirs may hold a
    secret.
    """
    upstream_ca = folder / "upstream.crt"
    shutil.copy(all_origins.authority.certificate, upstream_ca)
    site = Site(folder, prototype, upstream_ca, {})
    yield site
    assert Hunt(site.secrets, canaries.PLACES).in_folder(folder) == []


@pytest.fixture(scope="package")
def ports() -> Iterator[int]:
    return count(3130)


@pytest.fixture(scope="module")
def gateways() -> Iterator[list[Gateway]]:
    """The gateways of this module, killed at its end."""
    made: list[Gateway] = []
    yield made
    for gateway in made:
        end(gateway)


def end(gateway: Gateway) -> None:
    """Kill a gateway; with --canaries, let it put each of them into a request first."""
    if canaries.asked_for() and gateway.runs:
        with (Path(os.environ[SHARED_FOLDER]) / HUNTED).open("a") as file:
            file.write(f"{canaries.send(gateway)}\n")
    gateway.kill()


@pytest.fixture(autouse=True)
def gateways_of_one_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kill at the end of a test what it has started itself: idle helpers of many
    gateways slow down the next tests.
    """
    made = (
        request.getfixturevalue("gateways")
        if "gateways" in request.fixturenames
        else []
    )
    before = len(made)
    yield
    for gateway in made[before:]:
        end(gateway)
    del made[before:]


@pytest.fixture(scope="module")
def new_gateway(
    site: Site,
    ports: Iterator[int],
    gateways: list[Gateway],
    request: pytest.FixtureRequest,
) -> NewGateway:
    """Make a gateway: `new_gateway("policy text")`.

    It is killed at the end of the test or module that made it.
    """

    def make(
        policy: str,
        *local_conf: str,
        files: Mapping[str, str] | None = None,
        at: str = "127.0.0.1",
        nameserver: str | None = NAMESERVER,
        installed: bool = False,
        throttled: bool = False,
        port: int = 0,
        options: tuple[str, ...] = (),
        secrets: Mapping[str, bytes | str] = NO_SECRETS,
    ) -> Gateway:
        port = port or next(ports)
        name = f"{request.module.__name__.rpartition('.')[2]}-{port}"
        gateway = Gateway(
            site,
            name,
            (at, port),
            nameserver,
            installed=installed,
            throttled=throttled,
            options=options,
        )
        gateways.append(gateway)
        gateway.local_conf(*local_conf)
        for name, text in {**(files or {}), "policy.yaml": policy}.items():
            gateway.write(name, text)
        for name, value in secrets.items():
            gateway.secret(name, value)
        if canaries.asked_for():
            canaries.plant(gateway)
        return gateway

    return make


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, request: pytest.FixtureRequest) -> Gateway:
    """The gateway of a module, started: with its POLICY, and with its LOCAL_CONF and
    SECRETS where it has these.
    """
    module = request.module
    secrets = getattr(module, "SECRETS", NO_SECRETS)
    return new_gateway(
        module.POLICY, *getattr(module, "LOCAL_CONF", ()), secrets=secrets
    ).start()


@pytest.fixture(scope="module")
def vm(
    internet: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[network.VirtualMachine]:
    vm = network.VirtualMachine(tmp_path_factory.mktemp("vm"))
    yield vm
    vm.stop()
    network.unfilter_vm()


@pytest.fixture(scope="module")
def transparent(
    new_gateway: NewGateway,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Transparent]:
    """A gateway with --transparent, by its POLICY, LOCAL_CONF and SECRETS as `gateway`.

    A VM asks its resolver.
    """
    module, address = request.module, network.VirtualMachine.gateway
    secrets, local_conf = (
        getattr(module, "SECRETS", NO_SECRETS),
        getattr(module, "LOCAL_CONF", ()),
    )
    options = ("--transparent", address, *getattr(module, "OPTIONS", ()))
    with ExitStack() as stack:
        vm = network.VirtualMachine(tmp_path_factory.mktemp("vm"), address)
        stack.callback(network.unfilter_vm)
        stack.callback(vm.stop)
        gateway = new_gateway(
            module.POLICY, *local_conf, at=address, options=options, secrets=secrets
        )
        vm.trust(gateway.ca)
        transparent = Transparent(gateway.start(), vm)
        stack.callback(transparent.stop)
        yield transparent.start()


@pytest.fixture(scope="module")
def machine(
    gateway: Gateway,
    vm: network.VirtualMachine,
    programs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Machine:
    """The VM as a client of the gateway of a module of tests."""
    return machine_of(vm, gateway, programs, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def go() -> GoServices:
    return registries.go()


@pytest.fixture(scope="module")
def services(
    go: GoServices, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Service]:
    return {
        "pypi@2": registries.pypi(),
        "npm@2": registries.npm(),
        "debian@2": registries.debian(tmp_path_factory.mktemp("debian")),
        "crates@2": registries.crates(),
        "go@2": go.service,
        "github-read@2": registries.github(tmp_path_factory.mktemp("github")),
        "anthropic@1": registries.anthropic(),
        "openai@1": registries.openai(),
    }


@pytest.fixture
def at(machine: Machine, go: GoServices, tmp_path: Path) -> Machine:
    """The machine, with the variables that keep a client's own files in this test's
    folder.
    """
    own = {
        "CARGO_HOME": str(tmp_path / "cargo"),
        "GOPATH": str(tmp_path / "go"),
        "GOCACHE": str(tmp_path / "go-cache"),
        "GOFLAGS": "-modcacherw",
        "GOSUMDB": go.sumdb,
        "GOTOOLCHAIN": "local",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    return Machine(machine.vm, {**machine.variables, **own})


@pytest.fixture(scope="module")
def exporter(gateway: Gateway) -> Iterator[Exporter]:
    with Exporter(gateway, 9129) as exporter:
        yield exporter


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@pytest.fixture(scope="module")
def echoing(all_origins: Origins) -> Iterator[Server]:
    """A server of WebSockets, which offers HTTP/2 too (by ALPN alone)."""
    context = all_origins.authority.context("chat.example", "ports.example")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with serve(echo, PUBLIC, 9443, ssl=context) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
