"""A gateway on a machine that boots: installed, killed, rebooted, upgraded, drained and
removed, in this order.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman import REPOSITORY, Podman
from tests.operate.test_install import base, source
from tests.waiting import wait_for

from .machine import PACKAGES, BootedMachine

__all__ = ["base", "source"]  # fixtures
pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(1800)]

# Debian 13 and Ubuntu 24.04: the version of their Python, and the components of the
# archive that have Squid.
SYSTEMS = {"trixie": ("3.13", "main"), "noble": ("3.12", "main,universe")}
BRIDGE = "192.168.137.1"
LATE_BRIDGE = f"""[Unit]
Description=a bridge that comes 15 s after the boot
[Service]
ExecStart=/bin/sleep 15
ExecStart=/usr/sbin/ip link add slicer0 type bridge
ExecStart=/usr/sbin/ip address add {BRIDGE}/24 dev slicer0
ExecStart=/usr/bin/touch /run/bridge
Type=oneshot
[Install]
WantedBy=multi-user.target
"""
# Kill Squid's master, and wait until another one listens.
KILL = """
killed=$(cat /run/squid.pid)
kill -KILL "$killed"
listens() { [ "$(cat /run/squid.pid || echo "$killed")" != "$killed" ] && (: </dev/tcp/127.0.0.1/3129); }
until listens 2>/dev/null; do sleep 0.02; done
"""
# Put a file into the policy, and wait until the origin on this machine is served.
EDIT = """
printf 'version: 1\\nrules:\\n  - {name: new, action: allow, hosts: [127.0.0.1], ports: [8000], private: true, %s}\\n' \
    "$1" >/etc/squidkeeper/policy/new.yaml
ask() { curl -s -m 20 -o /dev/null -w '%{http_code}' --proxy http://127.0.0.1:3129 http://127.0.0.1:8000/; }
until [ "$(ask)" = 200 ]; do sleep 0.1; done
"""
# Note the status of a request that the example policy denies, ten times a second, until
# /run/enough is there. A Squid that is reconfigured closes its port for a moment.
ASK = """
until [ -e /run/enough ]; do
    curl -s -m 20 --retry 2 --retry-connrefused -o /dev/null -w '%{http_code}\\n' --proxy http://127.0.0.1:3129 http://en.wikipedia.org/
    sleep 0.1
done >/run/answers
"""


@pytest.fixture(scope="module", params=SYSTEMS)
def machine(request: pytest.FixtureRequest, source: Path) -> Iterator[BootedMachine]:
    suite = request.param
    python, components = SYSTEMS[suite]
    wheels = source.with_name(f"wheels-{suite}")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--python-version",
        python,
    ]
    command += ["--only-binary", ":all:", "--dest", str(wheels), ".", "hatchling"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    with Podman.opened() as podman:
        podman.import_suite(suite, f"machine:{suite}", *PACKAGES, components=components)
        with BootedMachine(podman, f"squidkeeper-{suite}").made(
            f"machine:{suite}", source.parent
        ) as machine:
            machine.boot()
            machine.succeed(
                source / "install.sh", "--wheels", wheels, "--listen", "127.0.0.1:3129"
            )
            yield machine


def answer(machine: BootedMachine, address: str = "127.0.0.1") -> str:
    """The status of a request over TLS that the example policy denies."""
    code = (
        "--silent",
        "--max-time",
        "20",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
    )
    ca = ("--cacert", "/etc/squidkeeper/ca/ca.crt")
    return machine.run(
        "curl",
        *code,
        *ca,
        "--proxy",
        f"http://{address}:3129",
        "https://en.wikipedia.org/",
    ).stdout


def test_squid_is_supervised_and_confined(machine: BootedMachine) -> None:
    assert answer(machine) == "403"
    told = {
        name: machine.property_of("squid", name)
        for name in ("Restart", "RestartUSec", "OOMPolicy", "UnitFileState")
    }
    assert told == {
        "Restart": "always",
        "RestartUSec": "1s",
        "OOMPolicy": "continue",
        "UnitFileState": "enabled",
    }
    # 98 without the drop-in
    rated = machine.run(
        "systemd-analyze", "security", "--no-pager", "--threshold=35", "squid"
    )
    assert rated.returncode == 0, rated.stdout
    worker = machine.succeed("pgrep", "--full", r"^\(squid-1\)").strip()
    inside = ("nsenter", "--mount", "--target", worker, "cat")
    assert "CERTIFICATE" in machine.succeed(*inside, "/etc/squid/slicer-ca.crt")
    for hidden in ("/etc/squidkeeper/ca/ca.key", "/etc/squidkeeper/archive.key"):
        assert machine.run("test", "-s", hidden).returncode == 0
        assert "PRIVATE KEY" not in machine.run(*inside, hidden).stdout
    assert not re.search(
        "not permitted|Permission denied|FATAL",
        machine.succeed("cat", "/var/log/squid/cache.log"),
    )


def test_a_master_that_is_killed_twenty_times_is_back_each_time(
    machine: BootedMachine,
) -> None:
    for _ in range(20):
        machine.succeed("timeout", "60", "bash", "-c", KILL)
    assert answer(machine) == "403"


def check_an_edit(machine: BootedMachine, part: str, adds: str) -> None:
    """Without install.sh: by squidkeeper-render.path."""
    there = ("grep", "-qE", f"in-force .*,{part}[, ]", "/etc/squid/squidkeeper.conf")
    machine.succeed(
        "systemd-run",
        "--quiet",
        "--unit",
        f"origin-{part}",
        "python3",
        "-m",
        "http.server",
        "8000",
    )
    assert machine.run(*there).returncode == 1
    machine.succeed("timeout", "60", "bash", "-c", EDIT, "edit", adds)
    machine.succeed(*there)
    machine.succeed("rm", "/etc/squidkeeper/policy/new.yaml")
    machine.succeed("systemctl", "stop", f"origin-{part}")


def test_an_edit_that_needs_a_new_part_is_in_force_within_seconds(
    machine: BootedMachine,
) -> None:
    check_an_edit(machine, "strip", "strip: [X-Debug]")


def test_it_serves_after_a_reboot(machine: BootedMachine) -> None:
    machine.reboot()
    wait_for(lambda: answer(machine) == "403", "the gateway to serve")
    for service in ("maintenance", "exporter"):
        assert machine.property_of(f"squidkeeper-{service}", "ActiveState") == "active"


def test_an_edit_after_a_reboot_is_in_force_within_seconds_too(
    machine: BootedMachine,
) -> None:
    check_an_edit(machine, "single", "connections: single")


def test_an_upgrade_loses_no_request(machine: BootedMachine, source: Path) -> None:
    asking = machine.podman.start(
        "exec", machine.name, "bash", "-c", ASK, program="podman"
    )
    with (
        (source / "squid/squidkeeper.conf").open("a") as fragment,
        (source / "helpers/README.md").open("a") as program,
    ):
        fragment.write("# a newer release\n")
        program.write("\nA newer release.\n")
    done = machine.succeed(
        source / "install.sh",
        "--wheels",
        source.with_name(f"wheels-{suite_of(machine)}"),
    )
    assert "squid         reconfigured" in done
    machine.succeed("touch", "/run/enough")
    asking.wait(60)
    answers = machine.succeed("cat", "/run/answers").split()
    assert len(answers) > 50
    assert set(answers) == {"403"}


def suite_of(machine: BootedMachine) -> str:
    return machine.name.rpartition("-")[2]


def test_a_drained_gateway_stays_stopped_until_it_is_started(
    machine: BootedMachine,
) -> None:
    assert "Squid is stopped\n" in machine.succeed(
        "squidkeeper", "drain", "--for", "20s", "--stop"
    )
    machine.succeed("sleep", "3")  # it would be started again after one
    assert machine.property_of("squid", "ActiveState") == "inactive"
    machine.succeed("systemctl", "start", "squid")
    assert "clients can come again" in machine.succeed(
        "squidkeeper", "drain", "--cancel"
    )
    assert answer(machine) == "403"


def test_a_bridge_that_comes_after_the_boot_is_waited_for(
    machine: BootedMachine, source: Path, tmp_path: Path
) -> None:
    """By Squid, and by the exporter that listens there too, and shows its page there to
    whom it is told.
    """
    (tmp_path / "late-bridge.service").write_text(LATE_BRIDGE)
    machine.podman.run(
        "cp", tmp_path / "late-bridge.service", f"{machine.name}:/etc/systemd/system/"
    )
    machine.succeed("systemctl", "enable", "--now", "late-bridge")
    wait_for(lambda: machine.run("cat", "/run/bridge").returncode == 0, "the bridge")
    listen = (
        "--listen",
        f"{BRIDGE}:3129",
        "--exporter-listen",
        f"{BRIDGE}:9129",
        "--status-from",
        f"{BRIDGE}/32",
    )
    machine.succeed(
        source / "install.sh",
        *listen,
        "--wheels",
        source.with_name(f"wheels-{suite_of(machine)}"),
    )
    machine.reboot()
    wait_for(lambda: answer(machine, BRIDGE) == "403", "Squid to listen on the bridge")
    assert int(machine.property_of("squid", "NRestarts")) > 1
    for address in (BRIDGE, "127.0.0.1"):
        page = (
            "curl",
            "--silent",
            "--fail",
            "--output",
            "/dev/null",
            f"http://{address}:9129/",
        )
        wait_for(
            lambda page=page: machine.run(*page).returncode == 0,  # type: ignore[misc]
            f"the status page on {address}",
        )


def test_nothing_of_it_is_left_once_it_is_removed(
    machine: BootedMachine, source: Path
) -> None:
    machine.succeed(source / "install.sh", "--uninstall")
    assert machine.property_of("squid", "Restart") == "no"
    # with the squid.conf that was there before
    assert machine.property_of("squid", "ActiveState") == "active"
    assert (
        machine.succeed(
            "find",
            "/etc/systemd",
            "/opt",
            "/usr/local",
            "/run",
            "-name",
            "*squidkeeper*",
        )
        == ""
    )
