"""Every client of squid/CLIENTS.md and of each preset, in a VM that has variables of
the CA and none of a proxy.
"""

from pathlib import Path
from uuid import uuid4

import pytest

from squidkeeper.operate.client_kit.probe import ProbeForm

from .clients import (
    IN_EVERY_RUN,
    ON_REQUEST,
    OURS,
    RULES,
    Case,
    Client,
    Machine,
    ask,
    machine_of,
    trust_in_java,
    what_is_shown,
)
from .network import run
from .origin import Origins
from .preset_clients import CLIENTS, PresetClient
from .registries import Registries, Service
from .transparent import Transparent

PRESETS = ", ".join(sorted({client.preset for client in CLIENTS}))
POLICY = f"""
version: 1
clients: {{agents: {{networks: [192.168.137.0/24]}}}}
presets: [{PRESETS}]
rules:
{RULES}"""
# which wants --trusted-host
BY_HTTP = [client for client in (*IN_EVERY_RUN, *ON_REQUEST) if client.name != "pip"]

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def machine(
    transparent: Transparent, programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    folder = tmp_path_factory.mktemp("home")
    trust_in_java(transparent.vm, transparent.gateway.ca, folder / "cacerts")
    machine = machine_of(
        transparent.vm, transparent.gateway, programs, folder, "--transparent"
    )
    assert "proxy" not in str(machine.variables).lower()
    return machine


@pytest.mark.parametrize(
    "client", [*IN_EVERY_RUN, *ON_REQUEST], ids=lambda client: client.name
)
def test_a_client_shows_what_the_table_says(
    client: Client, machine: Machine, origins: Origins, tmp_path: Path
) -> None:
    shown = {case: ask(machine, client, case, origins, tmp_path) for case in Case}
    assert shown == {case: client.shows(case, generator=OURS) for case in Case}


@pytest.mark.parametrize("client", BY_HTTP, ids=lambda client: client.name)
def test_a_client_reaches_http_urls(
    client: Client, machine: Machine, origins: Origins, tmp_path: Path
) -> None:
    shown = []
    for host in ("open.example", "closed.example"):
        own = tmp_path / (token := uuid4().hex)
        own.mkdir()
        output = machine.run(client.command, f"http://{host}/{token}/", own)
        shown.append(
            what_is_shown(
                output, reached=any(token in seen.target for seen in origins.seen)
            )
        )
    assert shown == [client.shows(Case.ALLOWED, generator=OURS), client.denial]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_of_a_preset_fetches(
    client: PresetClient,
    at: Machine,
    services: dict[str, Service],
    origins: Origins,
    tmp_path: Path,
) -> None:
    origins.fallback = Registries(services[client.preset])
    output = at.run(client.fetch, "", tmp_path)
    assert client.shows in output, output


def write_probe(transparent: Transparent, form: ProbeForm, script: Path) -> Path:
    gateway = transparent.gateway
    urls = (
        "--allowed",
        "https://open.example/probe",
        "--denied",
        "https://closed.example/",
    )
    arguments = (
        "--root",
        gateway.root,
        "--transparent",
        "--client",
        "agents",
        "--ca-path",
        gateway.ca,
        *urls,
    )
    script.write_text(
        run(gateway.root / "bin/squidkeeper", "probe", *arguments, "--format", form)
    )
    return script


@pytest.mark.parametrize(
    ("form", "command"),
    [
        (
            ProbeForm.PYTHON,
            "/usr/bin/python3 PROBE --direct 1.1.1.1:443 --resolver 1.1.1.1 --resolver GATEWAY",
        ),
        (ProbeForm.SH, "DIRECT=1.1.1.1:443 /usr/bin/dash PROBE"),
    ],
)
def test_the_probe_finds_nothing_to_fix(
    form: ProbeForm,
    command: str,
    transparent: Transparent,
    machine: Machine,
    origins: Origins,
    tmp_path: Path,
) -> None:
    script, address = (
        write_probe(transparent, form, tmp_path / "probe"),
        transparent.vm.gateway,
    )
    command = command.replace("PROBE", str(script)).replace("GATEWAY", address)
    shown = machine.run(command, "", tmp_path, seconds=240)
    assert shown.endswith("\nNothing to fix.\n"), shown
    assert f"DNS        of the gateway: every name is {address}\n" in shown


def test_the_probe_tells_that_the_resolver_does_not_answer(
    transparent: Transparent, machine: Machine, tmp_path: Path
) -> None:
    script = write_probe(transparent, ProbeForm.PYTHON, tmp_path / "probe")
    transparent.stop("dns")
    # no program: each would wait
    shown = machine.run(f"PATH=/nowhere; /usr/bin/python3 {script}", "", tmp_path)
    transparent.start("dns")
    assert "DNS        not of the gateway: example.com is unknown\n" in shown
    assert "  - let the gateway resolve names: " in shown
