"""A real Squid is told by signals, and no other process is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGHUP, SIGUSR1
from typing import cast

import psutil
import pytest

from squidkeeper.operate.setup.sockets import has_ended
from squidkeeper.services.maintenance.squid_process import (
    GivenUpWorkers,
    RateLimit,
    SquidProcess,
    SquidRun,
    coordinator_alone,
)
from squidkeeper.services.maintenance.squid_watch import SquidCrashes
from squidkeeper.serving.squid_crashes import read_crashes
from tests.bare_squid import bare_squid
from tests.waiting import pause, wait_for


@pytest.mark.system
@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_is_told(workers: int) -> None:
    with bare_squid(workers) as real:
        squid = SquidProcess(real.pid_file)
        assert squid.runs()
        run = squid.run()
        kids = workers if workers == 1 else workers + 1  # and the coordinator
        assert squid.signal(SIGHUP)
        wait_for(lambda: real.reconfigured(1, kids), "each process to reconfigure")
        wait_for(lambda: real.listens_again(2 * workers), "each worker to listen again")
        real.access_log.rename(real.folder / "access.log.1")
        assert squid.signal(SIGUSR1)
        wait_for(real.access_log.exists, "the new log")
        real.ask("after.example")
        assert "after.example" in real.access_log.read_text()
        assert run is not None
        assert squid.run() == run
        worker = max(psutil.Process(int(real.pid_file.read_text())).children(), key=lambda kid: kid.pid)
        worker.kill()
        wait_for(lambda: squid.run() not in (run, None), "another run, which counts from zero")
    assert not squid.runs()
    assert squid.run() is None


@pytest.mark.system
def test_a_squid_whose_workers_have_all_given_up_is_ended() -> None:
    """Its master would stay, with a coordinator that serves nobody, and nothing start it again."""
    with bare_squid(2) as real:
        squid = SquidProcess(real.pid_file)
        master = squid.master()
        assert master is not None
        task = GivenUpWorkers(squid)
        task.check()
        assert coordinator_alone(master.pid) is None
        wait_for(lambda: kill_workers(master), "the workers to give up")
        for _ in range(3):
            assert squid.runs()
            task.check()
        wait_for(lambda: has_ended(master.pid), "Squid to end")


def kill_workers(master: psutil.Process) -> bool:
    """Kill the workers that are there; tell whether none comes any more."""
    with suppress(psutil.Error):
        for kid in master.children():
            if kid.cmdline()[:1] not in ([], ["(squid-coord-3)"]):
                kid.kill()
    pause(0.3, "Squid's master starts another worker")
    return coordinator_alone(master.pid) is not None


@contextmanager
def process_named(name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = Path(shutil.copy("/bin/sleep", folder / name))
    with subprocess.Popen([program, "60"]) as process:
        (folder / "squid.pid").write_text(f"{process.pid}\n")
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == f"{name}\n", "the program")
        yield process
        process.kill()


def test_a_squid_that_does_not_handle_the_signal_yet_is_left_alone(tmp_path: Path) -> None:
    """It would end by it."""
    with process_named("squid", tmp_path) as process:
        assert not SquidProcess(tmp_path / "squid.pid").signal(SIGHUP)
        assert process.poll() is None


def test_another_process_with_the_number_of_a_squid_that_has_ended_is_left_alone(tmp_path: Path) -> None:
    with process_named("other", tmp_path) as process:
        squid = SquidProcess(tmp_path / "squid.pid")
        assert not squid.runs()
        assert squid.signal(SIGHUP), "there is nobody to tell"
        assert process.poll() is None


@pytest.mark.parametrize("text", [None, "", "no number", "4194304000", "-1"])
def test_without_a_squid_nobody_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "squid.pid").write_text(text)
    squid = SquidProcess(tmp_path / "squid.pid")
    assert not squid.runs()
    assert squid.signal(SIGHUP)


def test_a_pace_allows_so_many_events_within_so_many_seconds() -> None:
    now = 0.0
    pace = RateLimit((10.0, 2), (100.0, 3), clock=lambda: now)
    seen = []
    for now in (0.0, 1.0, 2.0, 9.0, 10.0, 20.0, 99.0, 100.0):  # noqa: B007 - the clock reads it
        seen.append(pace.allows())
        if seen[-1]:
            pace.count()
    assert seen == [True, True, False, False, True, False, False, True]


class Runs:
    """A Squid of which a test says what runs."""

    def __init__(self) -> None:
        self.now: SquidRun | None = None

    def run(self) -> SquidRun | None:
        return self.now

    def start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(["sleep", "60"])
        ticks = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[19]
        self.now = SquidRun(frozenset({f"{worker.pid}@{ticks}"}), 0.0)
        return worker


def test_each_of_two_crashes_within_two_checks_is_noted(tmp_path: Path) -> None:
    squid = Runs()
    crashes = SquidCrashes(tmp_path, tmp_path / "cache.log", cast("SquidProcess", squid), 3128)
    worker = squid.start()
    for _ in range(2):
        crashes.check()
        worker.kill()
        worker.wait()
        worker = squid.start()
    crashes.check()
    crashes.check()
    assert [one.told for one in read_crashes(tmp_path)] == ["it was killed"] * 2
    crashes.check()
    assert len(read_crashes(tmp_path)) == 2
    worker.kill()
    worker.wait()


def test_a_worker_that_exits_soon_after_another_one_has_crashed_has_not(tmp_path: Path) -> None:
    squid, log = Runs(), tmp_path / "cache.log"
    crashes = SquidCrashes(tmp_path, log, cast("SquidProcess", squid), 3128)
    worker = squid.start()
    text = f"2026/11/30 11:00:00 kid2| Process ID {worker.pid}\n" + "".join(
        f"2026/11/30 11:00:00 kid1| line {number}\n" for number in range(50)
    )
    log.write_text(text)
    for _ in range(12):
        crashes.check()
    log.write_text(
        text + "2026/11/30 11:00:01 kid1| assertion failed: stmem.cc\n"
        "2026/11/30 11:00:02 kid1| Starting Squid Cache version 6.13\n"
        "2026/11/30 11:00:03 kid2| Squid Cache (Version 6.13): Exiting normally.\n"
    )
    worker.kill()
    worker.wait()
    squid.now = None
    crashes.check()
    crashes.check()
    assert read_crashes(tmp_path) == ()
