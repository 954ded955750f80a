"""Each preset with its clients, in a VM, at a gateway that has this preset alone."""

from pathlib import Path

import pytest

from squidkeeper.change.learning.uses import newest_presets
from squidkeeper.policy.policy_store.sources import read_sources
from tests.waiting import wait_for

from .clients import Machine, cargo_folder, gateway_variables
from .curl import curl
from .gateway import Gateway, NewGateway
from .network import VirtualMachine
from .origin import Origins
from .preset_clients import CLIENTS, PresetClient, tried_table
from .registries import Registries, Service

DOCUMENT = Path(__file__).parents[2] / "policy/PRESETS.md"
POLICY = "version: 1\nclients: {agents: {networks: [192.168.137.0/24]}}\n"


def test_each_preset_has_a_client() -> None:
    assert {client.preset for client in CLIENTS} == set(newest_presets())


def test_the_document_has_the_table() -> None:
    table = tried_table()
    assert table in DOCUMENT.read_text(), table


@pytest.fixture(
    scope="module", params=CLIENTS, ids=lambda client: f"{client.preset}: {client.name}"
)
def client(request: pytest.FixtureRequest) -> PresetClient:
    found: PresetClient = request.param
    return found


@pytest.fixture(scope="module")
def preset(client: PresetClient) -> str:
    return client.preset


@pytest.fixture(scope="module")
def one_gateway(new_gateway: NewGateway, vm: VirtualMachine, programs: Path) -> Gateway:
    gateway = new_gateway(POLICY, at=vm.gateway)
    vm.trust(gateway.ca)
    return gateway


@pytest.fixture(scope="module")
def gateway(one_gateway: Gateway, preset: str) -> Gateway:
    """The gateway, started again where the preset is another one."""
    policy = f"{POLICY}presets: [{{preset: {preset}, clients: [agents]}}]\n"
    if (
        one_gateway.runs
        and (one_gateway.policy_folder / "policy.yaml").read_text() == policy
    ):
        return one_gateway
    one_gateway.kill()
    one_gateway.write("policy.yaml", policy)
    one_gateway.start()
    # Squid starts a helper when it needs one
    curl(one_gateway, "http://nowhere.example/")
    in_force = (
        f"revision {read_sources(one_gateway.policy_folder).revision} is in force"
    )
    # which waits until a new file rests
    wait_for(lambda: in_force in one_gateway.cache_log(), in_force)
    return one_gateway


@pytest.fixture(scope="module")
def machine(
    one_gateway: Gateway,
    programs: Path,
    vm: VirtualMachine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Machine:
    path = f"{programs}/node/node_modules/.bin:{programs}/python/bin:{cargo_folder()}:/usr/sbin:/usr/bin:/sbin:/bin"
    return Machine(
        vm,
        {
            **gateway_variables(one_gateway),
            "PATH": path,
            "HOME": str(tmp_path_factory.mktemp("home")),
        },
    )


def decided(gateway: Gateway, before: int) -> set[tuple[str, str, str]]:
    """The requests that were logged since, CONNECTs aside: method and URL, verdict,
    rule.
    """
    lines = [line for line in gateway.log()[before:] if line["method"] != "CONNECT"]
    return {
        (f"{line['method']} {line['url']}", line["verdict"], line["rule"])
        for line in lines
    }


def refused(gateway: Gateway, before: int) -> set[tuple[str, str, str]]:
    return {told for told in decided(gateway, before) if told[1] == "deny"}


@pytest.mark.clients
def test_a_client_fetches_through_the_preset_alone(
    client: PresetClient,
    gateway: Gateway,
    at: Machine,
    services: dict[str, Service],
    origins: Origins,
    tmp_path: Path,
) -> None:
    origins.fallback = Registries(services[client.preset])
    before = len(gateway.log())
    output = at.run(client.fetch, "", tmp_path)
    assert client.shows in output, output
    rules = {f"{client.preset}/{rule}" for rule in client.rules}
    wait_for(
        lambda: {rule for _, _, rule in decided(gateway, before)} >= rules,
        f"the rules {rules}",
    )
    assert refused(gateway, before) == set()


@pytest.mark.clients
def test_a_client_cannot_upload(
    client: PresetClient,
    gateway: Gateway,
    at: Machine,
    services: dict[str, Service],
    origins: Origins,
    tmp_path: Path,
) -> None:
    origins.fallback = Registries(services[client.preset])
    before = len(gateway.log())
    output = at.run(client.upload, "", tmp_path)
    assert "denied" in output.lower() or "403" in output, output
    denied = {(request, "deny", "default") for request in client.denied}
    wait_for(
        lambda: len(refused(gateway, before)) >= len(denied),
        f"the denials; the client printed:\n{output}",
    )
    assert refused(gateway, before) == denied
    assert not {f"{seen.method} {seen.url}" for seen in origins.seen} & client.denied
