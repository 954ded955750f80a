"""Several gateways on one machine: none takes the processes of another for its own."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from squidkeeper.services.exporter.stopped_watchdog import helper_processes
from tests.e2e.gateway import Gateway, NewGateway, kill_tree
from tests.e2e.network import run
from tests.e2e.observer import Exporter
from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .conftest import prepared
from .expect import POLICY, answers

ANOTHER_PORT = 13777


@pytest.fixture
def in_a_container(gateway: Gateway, tmp_path: Path) -> Iterator[list[int]]:
    """The helpers of another gateway, with the same paths and command lines in a mount
    namespace of its own.
    """
    copy = tmp_path / "another"
    run("cp", "--archive", gateway.root, copy)
    tmp_path.parent.chmod(0o755)
    for name in ("squid.conf", "local.conf"):
        file = copy / "etc/generations/current" / name
        text = file.read_text()
        file.write_text(text.replace(f":{gateway.address[1]}", f":{ANOTHER_PORT}"))
    host = gateway.address[0]
    root = gateway.root
    start = (
        f"mount --bind {copy} {root} && rm {root}/run/squid.pid"
        f" && exec squid --foreground -YC -n another{os.getpid()} -f {root}/etc/squid.conf"
    )
    with subprocess.Popen(
        ["unshare", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c", start],
        stdin=subprocess.DEVNULL,
    ) as squid:
        try:
            wait_for(
                lambda: run("ss", "-Hltn", f"sport = :{ANOTHER_PORT}"),
                "the other Squid",
            )
            run(
                *("curl", "-sS", "-o", "/dev/null", "http://open.example/"),
                *("--proxy", f"http://{host}:{ANOTHER_PORT}"),
            )
            yield wait_for(
                lambda: [
                    child.pid
                    for child in psutil.Process(squid.pid).children(recursive=True)
                    if b"\0acl\0" in Path(f"/proc/{child.pid}/cmdline").read_bytes()
                ],
                "a helper of the other Squid",
            )
        finally:
            kill_tree(squid)


def test_helpers_of_other_gateways_are_not_ones_own(
    gateway: Gateway,
    exporter: Exporter,
    new_gateway: NewGateway,
    origins: Origins,
    in_a_container: list[int],
) -> None:
    beside = prepared(new_gateway(POLICY)).start()
    for one in (gateway, beside):
        answers(one, "http://open.example/", 200)
    [own] = gateway.helpers("acl --scope host")
    others = [*in_a_container, *beside.helpers("acl --scope host")]
    assert len(others) > 1

    account = Path(f"/proc/{own}").stat().st_uid
    found = {*helper_processes(gateway.layout.state, account)}
    assert own in found
    assert not found & {*others}

    for pid in (*others, own):
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not Path(f"/proc/{own}").exists(), "the exporter to end its own")
    assert {psutil.Process(pid).status() for pid in others} == {psutil.STATUS_STOPPED}
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")
