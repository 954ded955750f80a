"""Squid reconfigured, restarted, killed, with two workers, without descriptors; its log
rotated and removed.
"""

import os
import re
import shutil
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.gateway import Gateway, NewGateway
from tests.e2e.maintained import maintained
from tests.e2e.network import run
from tests.e2e.observer import Exporter
from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .conftest import prepared
from .expect import POLICY, Fault, answers, metric, recorded, under_load

SQUIDS_OWN = "Squid may fail an assertion of its own when a helper ends"
RESTART = Fault(
    denied="what helpers had been asked",
    lost="Squid ends its connections",
    failed="Squid is about to end",
)


def counted_once(gateway: Gateway, exporter: Exporter) -> None:
    """Each line of the logs is counted; Squid writes the last ones after
    their answers.
    """

    def difference() -> float:
        files = {
            file.stat().st_ino: file for file in gateway.root.glob("log*/access.log*")
        }
        written = sum(file.read_bytes().count(b"\n") for file in files.values())
        return recorded(exporter) - written

    wait_for(lambda: difference() == 0, "every record to be counted once")


@pytest.mark.long
def test_squid_reconfigured(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins, RESTART) as load:
        for _ in range(2):
            gateway.reconfigure()
            load.at_least(30)
        answers(gateway, "http://open.example/after", 200)


def test_the_log_rotated(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    """Renamed, then Squid told, as logrotate does: no record is lost, and none is
    counted twice.
    """
    log = gateway.root / "log/access.log"
    with under_load(
        gateway, origins, Fault(denied="what helpers had been asked", lost=SQUIDS_OWN)
    ) as load:
        for _ in range(2):
            for old, new in (
                ("access.log.1", "access.log.2"),
                ("access.log", "access.log.1"),
            ):
                with suppress(FileNotFoundError):
                    log.with_name(old).rename(log.with_name(new))
            gateway.rotate()
            wait_for(log.exists, "the new log")
            load.at_least(30)
    counted_once(gateway, exporter)
    assert metric(exporter, "squidkeeper_record_lost_total") == 0


def test_the_logs_too_long(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    """Rotated by size, and the oldest deleted: records are counted once each, and the
    folder keeps within its bound.
    """
    log = gateway.root / "log"
    kept = gateway.root / "log-kept"  # other names for what is deleted
    kept.mkdir()
    with under_load(
        gateway, origins, Fault(denied="what helpers had been asked", lost=SQUIDS_OWN)
    ) as load:
        before = bytes_of(log)
        with maintained(gateway, "--log-bytes", str(3 * before)):
            wait_for(lambda: list(log.glob("access.log-*")), "the log to be rotated")
            load.at_least(30)
        for file in log.glob("access.log*"):
            (kept / file.name).hardlink_to(file)
        limit = bytes_of(log) - 1
        with maintained(gateway, "--log-bytes", str(limit)) as said:
            wait_for(lambda: bytes_of(log) <= limit, "the oldest to be deleted")
            load.at_least(30)
        assert f"deleted {log}/access.log" in said.read_text()
    counted_once(gateway, exporter)
    assert metric(exporter, "squidkeeper_record_lost_total") == 0
    shutil.rmtree(kept)


def bytes_of(folder: Path) -> int:
    total = 0
    for file in folder.glob("access.log*"):
        with suppress(FileNotFoundError):  # it was deleted since
            total += file.stat().st_size
    return total


def test_the_log_removed(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    """Squid goes on writing to what has no name any more, and the exporter counts on
    there; then to a new one.
    """
    log = gateway.root / "log/access.log"
    with under_load(
        gateway, origins, Fault(denied="what helpers had been asked", lost=SQUIDS_OWN)
    ) as load:
        log.unlink()
        load.at_least(30)
        assert not log.exists()
        before = recorded(exporter)
        wait_for(
            lambda: recorded(exporter) > before, "requests counted that have no file"
        )
        assert metric(exporter, "squidkeeper_record_readable") == 0
        assert "access-log-unreadable" in exporter.conditions()
        gateway.rotate()
        wait_for(log.exists, "the new log")
        load.at_least(30)
        wait_for(
            lambda: "access-log-unreadable" not in exporter.conditions(),
            "the log to be read",
        )


@pytest.mark.long
def test_squid_restarted(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins, RESTART) as load:
        load.at_least(10)
        gateway.restart()
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


def test_squid_killed_is_started_again_by_its_master(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins, RESTART) as load:
        killed = gateway.pid
        os.kill(killed, signal.SIGKILL)
        load.at_least(30)
    assert gateway.pid != killed
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


def descendants(pid: int) -> list[int]:
    try:
        children = [
            int(child)
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []
    return [process for child in children for process in (child, *descendants(child))]


def helpers_of(pid: int) -> list[int]:
    return [
        child
        for child in descendants(pid)
        if b"squidkeeper\0" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def settled(gateway: Gateway, exporter: Exporter) -> list[int]:
    assert gateway._squid
    pids = helpers_of(gateway._squid.pid)
    return pids if metric(exporter, "squidkeeper_helper_processes") == len(pids) else []


@pytest.mark.long
def test_two_workers(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = prepared(new_gateway(POLICY, options=("--workers", "2"))).start()
    with Exporter(gateway, 9130) as exporter:
        assert gateway._squid
        fault = Fault(
            denied="what helpers had been asked",
            lost="a worker is started again",
            failed="so is another",
        )
        with under_load(gateway, origins, fault) as load:
            for pid in helpers_of(gateway._squid.pid):
                os.kill(pid, signal.SIGKILL)
            load.at_least(30)
            gateway.reconfigure()
            load.at_least(30)
            stopped = wait_for(
                lambda: settled(gateway, exporter), "each helper to have a slot"
            )
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            wait_for(
                lambda: not any(Path(f"/proc/{pid}").exists() for pid in stopped),
                "the exporter to end them",
            )
            load.at_least(30)
        wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")
        counted_once(gateway, exporter)
        assert metric(exporter, "squidkeeper_record_invalid_lines_total") == 0
        assert {line["worker"] for line in gateway.log()} == {"1", "2"}


@pytest.mark.long
def test_a_worker_that_is_killed_and_its_coordinator_serve_again(
    new_gateway: NewGateway, origins: Origins
) -> None:
    """In either order.

    Without a queue of its own, a worker that starts after the coordinator listens no
    more.
    """
    gateway = prepared(new_gateway(POLICY, options=("--workers", "2"))).start()
    assert gateway._squid
    with under_load(
        gateway, origins, replace(RESTART, denied="a worker starts with new helpers")
    ) as load:
        for _ in range(2):
            for name in ("(squid-coord-", "(squid-1)"):
                kill_kid(gateway._squid.pid, name)
            load.at_least(30)
        wait_for(
            lambda: listening(gateway) == {*gateway.workers}, "each worker to listen"
        )


def kill_kid(master: int, name: str) -> None:
    [killed] = kids(master, name)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: set(kids(master, name)) - {killed}, f"another {name}")


def kids(master: int, name: str) -> list[int]:
    children = map(
        int, Path(f"/proc/{master}/task/{master}/children").read_text().split()
    )
    return [
        pid
        for pid in children
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name.encode())
    ]


def listening(gateway: Gateway) -> set[int]:
    return {
        int(pid)
        for pid in re.findall(
            r"pid=(\d+)", run("ss", "-Hltnp", f"sport = :{gateway.address[1]}")
        )
    }


@pytest.mark.long
def test_squid_without_descriptors(new_gateway: NewGateway, origins: Origins) -> None:
    """Idle connections take all there are: others wait, and are served when
    those end.
    """
    gateway = prepared(new_gateway(POLICY, "max_filedescriptors 128")).start()
    fault = Fault(
        denied="no helper can be started",
        lost="no connection is taken",
        failed="no origin can be reached",
    )
    with under_load(gateway, origins, fault) as load:
        with ExitStack() as idle:
            with pytest.raises(TimeoutError):  # noqa: PT012 - one of many is not taken
                for _ in range(400):
                    idle.enter_context(socket.create_connection(gateway.address, 1))
            # a slow Squid has yet to take those that wait
            wait_for(
                lambda: "running out of filedescriptors" in gateway.cache_log(),
                "Squid to be without descriptors",
            )
        load.at_least(30)
    answers(gateway, "http://open.example/after", 200)
    assert "no-descriptors" in gateway.command("why", *gateway.places).stdout
