"""Every client of squid/CLIENTS.md, in a VM, with a token in the URL of its proxy: when
does it send that?
"""

from pathlib import Path

import pytest

from squidkeeper.policy.language.model import Token

from .clients import (
    IN_EVERY_RUN,
    ON_REQUEST,
    Client,
    Machine,
    log_in,
    logins_table,
    machine_of,
)
from .gateway import Gateway, NewGateway
from .network import VirtualMachine
from .origin import Origins

DOCUMENT = Path(__file__).parents[2] / "squid/CLIENTS.md"
TOKEN = "sqk_token-of-the-clients-in-a-vm"
POLICY = f"""
version: 1
clients: {{agents: {{token_sha256: {Token.of(TOKEN).sha256}}}}}
rules:
  - {{name: anybody, action: allow, hosts: [anybody.example]}}
  - {{name: of-agents, action: allow, clients: [agents], hosts: [open.example]}}
"""


def test_the_document_has_the_table() -> None:
    table = logins_table()
    assert table in DOCUMENT.read_text(), table


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, vm: VirtualMachine) -> Gateway:
    gateway = new_gateway(POLICY, at=vm.gateway)
    gateway.remember(TOKEN)
    vm.trust(gateway.ca)
    return gateway.start()


@pytest.fixture(scope="module")
def machine(
    gateway: Gateway,
    programs: Path,
    vm: VirtualMachine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Machine:
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text(f"{TOKEN}\n")
    return machine_of(vm, gateway, programs, home, "--token-file", home / "token")


@pytest.mark.clients
@pytest.mark.parametrize(
    "client", [*IN_EVERY_RUN, *ON_REQUEST], ids=lambda client: client.name
)
def test_a_client_sends_its_login_when_the_table_says(
    client: Client, gateway: Gateway, machine: Machine, origins: Origins, tmp_path: Path
) -> None:
    assert log_in(machine, client, gateway, origins, tmp_path) is client.login
