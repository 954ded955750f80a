"""Every client of squid/CLIENTS.md, in a VM, at a gateway with each kind of CA and each
generator of certificates.
"""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from squidkeeper.operate.client_kit.probe_table import PROGRAMS

from .clients import (
    GENERATORS,
    IN_EVERY_RUN,
    ON_REQUEST,
    RULES,
    Case,
    Client,
    Machine,
    ask,
    clients_table,
    trust_in_java,
)
from .gateway import Gateway, NewGateway
from .network import VirtualMachine, run
from .origin import Origins

DOCUMENT = Path(__file__).parents[2] / "squid/CLIENTS.md"
POLICY = f"version: 1\nclients: {{agents: {{networks: [192.168.137.0/24]}}}}\nrules:\n{RULES}"


def test_the_document_has_the_table() -> None:
    table = clients_table()
    assert table in DOCUMENT.read_text(), table


KINDS = {
    "own CA": (),
    "RSA-2048, intermediate": ("--ca", "intermediate"),
    "RSA-2048, direct": ("--ca", "direct"),
}


@pytest.fixture(
    scope="module",
    params=[(kind, generator) for kind in KINDS for generator in GENERATORS],
    ids=": ".join,
)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The kind of CA, and the generator of certificates."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def vm(
    kind: tuple[str, str], internet: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VirtualMachine]:
    """A VM for each gateway: roots of one name in one trust store would stand for each
    other.
    """
    vm = VirtualMachine(tmp_path_factory.mktemp("vm"))
    yield vm
    vm.stop()


def rsa_ca(folder: Path) -> Path:
    """A CA as slicer may make it: RSA-2048."""
    folder.mkdir()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=agents",
    ]
    extensions = [
        "basicConstraints=critical,CA:TRUE",
        "keyUsage=critical,keyCertSign,cRLSign",
    ]
    added = [part for extension in extensions for part in ("-addext", extension)]
    run(*command, *added, "-keyout", folder / "ca.key", "-out", folder / "ca.crt")
    return folder


@pytest.fixture(scope="module")
def gateway(
    kind: tuple[str, str],
    programs: Path,
    new_gateway: NewGateway,
    vm: VirtualMachine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Gateway:
    ca, generator = kind
    given = KINDS[ca] and (
        "--ca-dir",
        str(rsa_ca(tmp_path_factory.mktemp("ca") / "agents")),
        *KINDS[ca],
    )
    gateway = new_gateway(
        POLICY, at=vm.gateway, options=(*given, "--certificates", generator)
    )
    vm.trust(gateway.ca)
    trust_in_java(vm, gateway.ca, tmp_path_factory.mktemp("java") / "cacerts")
    return gateway.start()


@pytest.mark.clients
@pytest.mark.parametrize(
    "client", [*IN_EVERY_RUN, *ON_REQUEST], ids=lambda client: client.name
)
def test_a_client_shows_what_the_table_says(
    client: Client,
    kind: tuple[str, str],
    machine: Machine,
    origins: Origins,
    tmp_path: Path,
) -> None:
    _, generator = kind
    shown = {case: ask(machine, client, case, origins, tmp_path) for case in Case}
    assert shown == {case: client.shows(case, generator=generator) for case in Case}


@pytest.mark.clients
def test_nodes_fetch_reaches_https_urls_only(
    machine: Machine, origins: Origins, tmp_path: Path
) -> None:
    commands = {program.name: program.command for program in PROGRAMS}
    for name, reached in (("node", False), ("curl", True)):
        token = f"{name}-{uuid4().hex}"
        own = tmp_path / name
        own.mkdir()
        machine.run(commands[name], f"http://open.example/{token}/", own)
        assert any(token in seen.target for seen in origins.seen) == reached
