"""`install.sh --transparent` with its services, in the network of a VM: switched on,
kept, supervised, taken back.
"""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from squidkeeper.base.errors import DemoFailed
from tests.waiting import wait_for

from .gateway import REPOSITORY
from .network import VirtualMachine

pytestmark = pytest.mark.long
OF_THIS_MACHINE = ("disk-space-low", "squid-outdated")
STATUS = ("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}")

LISTENER = 'LISTEN 0 5 127.0.0.1:80 0.0.0.0:* users:(("python3"'


class Installation:
    """A gateway that is installed in the VM, with the environment that was built
    before.
    """

    def __init__(self, vm: VirtualMachine, root: Path) -> None:
        self.vm = vm
        self.root = root

    def install(self, *options: str) -> str:
        return self.vm.run(REPOSITORY / "install.sh", "--root", self.root, *options)

    def listening(self, port: int) -> set[int]:
        """The processes that listen on a port of the VM's address."""
        return {
            int(pid)
            for pid in re.findall(
                r"pid=(\d+)",
                self.vm.run("ss", "-Hltnp", f"src {self.vm.address}:{port}"),
            )
        }

    def doctors_findings(self) -> list[str]:
        """What `squidkeeper doctor` finds."""
        command = self.vm.command(self.root / "bin/squidkeeper", "doctor", "--json")
        found = subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout
        findings = json.loads(found)["findings"]
        return [
            finding["detail"]
            for finding in findings
            if finding["code"] not in OF_THIS_MACHINE
        ]

    def files(self) -> set[str]:
        """What is there of the ports, but for logs and the manual."""
        found = (
            path
            for path in self.root.rglob("*")
            if "venv-" not in str(path) and path.suffix not in {".log", ".1"}
        )
        return {str(path) for path in found if re.search("transparent|dns", path.name)}


@pytest.fixture(scope="module")
def installation(
    vm: VirtualMachine, prototype: Path, folder: Path
) -> Iterator[Installation]:
    made = Installation(vm, folder / "transparent-setup")
    made.root.mkdir()
    for venv in prototype.glob("venv-*"):
        (made.root / venv.name).symlink_to(venv)
    made.install(
        "--listen", "127.0.0.1:3129", "--extras", "aws,oauth2,otlp,sealed,valkey"
    )
    yield made
    made.install("--uninstall")
    assert made.files() == set()


def test_the_ports_come_stay_are_supervised_and_go(installation: Installation) -> None:
    vm, address, options = (
        installation.vm,
        installation.vm.address,
        f"{installation.vm.address},fd00:137::10",
    )
    assert installation.files() == set()
    started = installation.install("--transparent", options)
    assert "squidkeeper transparent does not run" not in started, (
        "doctor, which runs last"
    )
    assert {"transparent", "dns"} <= {
        *re.findall(r"^(\w+) +started$", started, re.MULTILINE)
    }
    assert (
        f"ports 53, 80 and 443 of {address}, fd00:137::10, for clients without proxy settings"
        in started
    )
    assert f"needs the name server {address} and fd00:137::10, and what `" in started
    again = installation.install()
    assert again.count("runs, unchanged") == 8, again
    wait_for(
        lambda: (
            installation.doctors_findings() == ["fd00:137::10 is not on this machine"]
        ),
        "what is wrong",
    )
    for port in (53, 80, 443):
        [process] = installation.listening(port)
        os.kill(process, signal.SIGKILL)
        wait_for(
            lambda port=port, process=process: installation.listening(port) - {process},  # type: ignore[misc]
            f"port {port} again",
        )
    for name in ("transparent", "dns"):
        os.kill(
            int((installation.root / f"run/{name}.pid").read_text()), signal.SIGTERM
        )
    wait_for(lambda: len(installation.doctors_findings()) > 1, "what is wrong")
    repaired = installation.install()
    assert re.findall(
        "^    (?:.*: )?(.*not on this machine.*)", repaired, re.MULTILINE
    ) == ["fd00:137::10 is not on this machine"]
    for port, scheme in ((443, "https"), (80, "http")):
        where = (
            "--resolve",
            f"en.wikipedia.org:{port}:{address}",
            "--cacert",
            installation.root / "etc/ca/ca.crt",
        )
        assert vm.run(*STATUS, *where, f"{scheme}://en.wikipedia.org/") == "403"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(DNSRecord.question("any.example").pack(), (address, 53))
        assert str(DNSRecord.parse(client.recv(512)).a.rdata) == address
    taken_back = installation.install("--transparent", "none")
    assert "reconfigured" in taken_back
    assert "taken back: no ports 53, 80 and 443" in taken_back
    assert installation.files() == set()
    assert [installation.listening(port) for port in (53, 80, 443)] == [
        set(),
        set(),
        set(),
    ]


def test_a_port_that_is_taken_and_addresses_that_cannot_be_meant_change_nothing(
    installation: Installation,
) -> None:
    refused = {
        f"{installation.vm.address},10.0.0.1": "expected one of IPv4, one of IPv6, or both",
        "gateway.example": "'gateway.example' is no address, expected one such as 10.0.0.5",
        "0.0.0.0": "an address of this one, which clients can reach",
        "::": "an address of this one, which clients can reach",
        "127.0.0.1": f"something else listens on 127.0.0.1:80 already: {LISTENER}",
    }
    taken = installation.vm.command(
        "python3", "-m", "http.server", "--bind", "127.0.0.1", "80"
    )
    with subprocess.Popen(
        taken, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as server:
        wait_for(
            lambda: installation.vm.run("ss", "-Hltn", "src 127.0.0.1:80"), "the server"
        )
        try:
            for address, message in refused.items():
                with pytest.raises(DemoFailed, match=re.escape(message)):
                    installation.install("--transparent", address)
        finally:
            server.kill()
    assert installation.files() == set()


HOLDS_UDP = "import signal, socket, sys; s = socket.socket(type=2); s.bind((sys.argv[1], 53)); signal.pause()"


def test_a_resolver_that_cannot_start_leaves_all_as_it_was(
    installation: Installation,
) -> None:
    vm = installation.vm
    with subprocess.Popen(
        vm.command("/usr/bin/python3", "-c", HOLDS_UDP, vm.address)
    ) as holder:
        wait_for(
            lambda: vm.run("ss", "-Hlun", f"src {vm.address}:53"),
            "the port to be taken",
        )
        try:
            with pytest.raises(
                DemoFailed, match="the service dns does not listen on port 53"
            ):
                installation.install("--transparent", vm.address)
        finally:
            holder.kill()
    assert installation.files() == set()
    assert [installation.listening(port) for port in (53, 80, 443)] == [
        set(),
        set(),
        set(),
    ]
    proxy = (
        "--proxy",
        "http://127.0.0.1:3129",
        "--cacert",
        installation.root / "etc/ca/ca.crt",
    )
    assert vm.run(*STATUS, *proxy, "https://en.wikipedia.org/") == "403"
