"""The walkthrough from inside a VM: only the gateway reachable, no DNS, the CA in the
trust store, plain clients.
"""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from squidkeeper.operate.client_kit.probe import ProbeForm

from .clients import (
    IN_EVERY_RUN,
    OURS,
    RULES,
    Case,
    Client,
    Machine,
    ask,
    gateway_variables,
)
from .gateway import Gateway, NewGateway
from .network import VirtualMachine, filter_vm, run, unfilter_vm
from .network import inside as run_inside
from .origin import Answer, Origins
from .reply import Reply

POLICY = (
    """
version: 1
clients:
  agents: {networks: [192.168.137.0/24]}
rules:
  - {name: no-wikipedia, action: deny, hosts: [.wikipedia.org], reason: Wikipedia is closed to sandboxes.}
  - {name: no-push, action: deny, hosts: [git.example], paths: ["/**/git-receive-pack"]}
  - {name: agents, action: allow, clients: [agents], hosts: [example.com, git.example, api.example]}
"""
    + RULES.lstrip("\n")
    + """
secrets:
  token: {file: secrets/token}
credentials:
  - {name: api, clients: [agents], hosts: [api.example], header: X-Api-Key, value: "{token}"}
"""
)
TOKEN = "e2e-token-that-no-vm-holds"


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, vm: VirtualMachine) -> Gateway:
    gateway = new_gateway(POLICY, at=vm.gateway, secrets={"token": TOKEN})
    vm.trust(gateway.ca)
    filter_vm(gateway.address[1])
    return gateway.start()


def inside(
    vm: VirtualMachine, gateway: Gateway, *command: str | Path, **environment: str
) -> Reply:
    return run_inside(vm, f"http://{gateway.authority}", *command, **environment)


CURL = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n")


def test_the_walkthroughs_two_requests(
    vm: VirtualMachine, gateway: Gateway, origins: Origins
) -> None:
    assert inside(vm, gateway, *CURL, "https://example.com/").text == "200\n"
    assert inside(vm, gateway, *CURL, "https://en.wikipedia.org/").text == "403\n"
    assert origins.urls() == ["https://example.com/"]
    line = gateway.logged("https://example.com/")
    assert (line["client"], line["status"], line["rule"]) == (vm.address, 200, "agents")
    assert gateway.logged("https://en.wikipedia.org/")["status"] == 403


@pytest.mark.parametrize(
    "address", ["203.0.113.10", "127.0.0.53", "10.0.0.5", "169.254.169.254"]
)
def test_nothing_but_the_gateway_is_reachable(
    vm: VirtualMachine, gateway: Gateway, origins: Origins, address: str
) -> None:
    direct = (
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--connect-timeout",
        "1",
        f"http://{address}/",
    )
    assert inside(vm, gateway, *direct).status != 0
    assert origins.connections == []


def test_nothing_on_the_gateway_but_the_proxys_port_is_reachable(
    vm: VirtualMachine, gateway: Gateway
) -> None:
    """By the nftables rules of the installation page. Without them both arrive."""
    with (
        socket.create_server((vm.gateway, 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind((vm.gateway, 0))
        udp.settimeout(1)
        probe = (
            sys.executable,
            "-c",
            PROBE,
            vm.gateway,
            str(tcp.getsockname()[1]),
            str(udp.getsockname()[1]),
        )
        assert inside(vm, gateway, *probe).status != 0
        with pytest.raises(TimeoutError):
            udp.recv(10)
        unfilter_vm()
        try:
            assert inside(vm, gateway, *probe).status == 0
            assert udp.recv(10) == b"sent"
        finally:
            filter_vm(gateway.address[1])


PROBE = """
import socket, sys
address, tcp, udp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"sent", (address, udp))
socket.create_connection((address, tcp), timeout=1)
"""


def test_no_name_resolves_inside(vm: VirtualMachine, gateway: Gateway) -> None:
    assert inside(vm, gateway, "getent", "ahosts", "example.com").status != 0


@pytest.fixture(scope="module")
def machine(
    gateway: Gateway, vm: VirtualMachine, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    """The VM with the variables that `squidkeeper env` prints, and the system's
    programs alone.
    """
    home = str(tmp_path_factory.mktemp("home"))
    return Machine(
        vm,
        {
            **gateway_variables(gateway),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": home,
        },
    )


@pytest.mark.parametrize("client", IN_EVERY_RUN, ids=lambda client: client.name)
def test_a_client_shows_what_the_table_of_clients_says(
    client: Client, machine: Machine, origins: Origins, tmp_path: Path
) -> None:
    shown = {case: ask(machine, client, case, origins, tmp_path) for case in Case}
    assert shown == {case: client.shows(case, generator=OURS) for case in Case}


@pytest.mark.parametrize(
    "form", [ProbeForm.PYTHON, pytest.param(ProbeForm.SH, marks=pytest.mark.long)]
)
def test_the_probe_finds_nothing_to_fix_in_the_vm(
    form: ProbeForm,
    vm: VirtualMachine,
    gateway: Gateway,
    machine: Machine,
    origins: Origins,
    tmp_path: Path,
) -> None:
    tools = tmp_path / "tools"  # without the programs that take long
    tools.mkdir()
    for name in PROGRAMS_OF_THE_PROBE:
        (tools / name).symlink_to(f"/usr/bin/{name}")
    program = f"{gateway.root}/bin/squidkeeper"
    urls = (
        "--allowed",
        "https://example.com/probe",
        "--denied",
        "https://closed.example/",
    )
    arguments = (
        "--root",
        gateway.root,
        "--client",
        "agents",
        "--ca-path",
        gateway.ca,
        *urls,
        "--format",
        form,
    )
    script = tmp_path / "probe"
    script.write_text(run(program, "probe", *arguments))
    command = {
        ProbeForm.PYTHON: f"/usr/bin/python3 {script} --direct 1.1.1.1:443 --resolver 1.1.1.1",
        ProbeForm.SH: f"DIRECT=1.1.1.1:443 /usr/bin/dash {script}",
    }[form]
    shown = machine.run(f"export PATH={tools}; {command}; echo exit $?", "", tmp_path)
    assert re.findall(r"^(curl|python|git) +(\w+)", shown, re.MULTILINE) == [
        (name, result)
        for name in ("curl", "python", "git")
        for result in ("allowed", "denied")
    ]
    assert "OPEN" not in shown
    assert "direct     closed: 1.1.1.1:443" in shown
    assert "Nothing to fix." in shown, shown
    assert shown.endswith("exit 0\n")


PROGRAMS_OF_THE_PROBE = (
    *(
        "sh",
        "grep",
        "sed",
        "head",
        "tail",
        "cut",
        "mktemp",
        "mkdir",
        "rm",
        "tee",
        "cat",
        "timeout",
        "getent",
    ),
    *("curl", "python3", "git"),
)


def test_git_clones_over_https_and_cannot_push(
    vm: VirtualMachine, gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    repository = tmp_path / "served"
    script = f"""
    git init -q -b main {repository} && cd {repository} && echo hello > file && git add file &&
    git -c user.name=T -c user.email=t@t.example commit -qm first && git update-server-info"""
    subprocess.run(["sh", "-ec", script], check=True)
    for file in (repository / ".git").rglob("*"):
        if file.is_file():
            origins.answers[
                f"git.example/app.git/{file.relative_to(repository / '.git')}"
            ] = Answer(body=file.read_bytes())
    origins.fallback = Answer(404)
    clone = ("git", "clone", "-q", "https://git.example/app.git", tmp_path / "clone")
    done = inside(
        vm, gateway, *clone, HTTPS_PROXY="", https_proxy=f"http://{gateway.authority}"
    )
    assert done.status == 0, done.text
    assert (tmp_path / "clone/file").read_text() == "hello\n"
    push = inside(
        vm,
        gateway,
        "git",
        "-C",
        tmp_path / "clone",
        "push",
        "-q",
        "https://git.example/app.git",
        "HEAD:x",
    )
    assert push.status != 0
    assert not [seen for seen in origins.seen if seen.method == "POST"]


def test_a_credential_is_added_that_the_vm_never_sees(
    vm: VirtualMachine, gateway: Gateway, origins: Origins
) -> None:
    origins.answers["api.example/v1"] = Answer(body=b"done")
    done = inside(vm, gateway, "curl", "-sS", "-i", "https://api.example/v1")
    assert "done" in done.text
    assert TOKEN not in done.text
    assert origins.seen[0].values("X-Api-Key") == [TOKEN]
