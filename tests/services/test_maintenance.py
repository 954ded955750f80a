"""`squidkeeper maintain`: its loop, resolv.conf, and a real Squid that is told by
signals.

See e2e/test_resolver.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGHUP, SIGUSR1
from typing import cast

import psutil
import pytest
from click.testing import CliRunner

from squidkeeper.base.atomic_write import replace
from squidkeeper.cli import main
from squidkeeper.operate.setup.sockets import has_ended
from squidkeeper.services.maintenance.process import (
    MaintenanceStatus,
    TaskRunner,
    read_maintenance_status,
)
from squidkeeper.services.maintenance.resolver import configuration, name_servers
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


class Flaky:
    """A task that fails with each of these errors in turn; None is a success."""

    name = "flaky"

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = list(errors)

    def check(self) -> None:
        error = self._errors.pop(0)
        if error:
            raise error


class Counter:
    name = "counter"

    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


def test_a_failing_task_is_logged_once_and_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counter = Counter()
    errors = (None, OSError("a"), OSError("a"), ValueError("b"), None, None)
    rounds = TaskRunner([Flaky(*errors), counter], tmp_path)
    for _ in range(6):
        rounds.check()
    assert [record.getMessage() for record in caplog.records] == [
        "flaky: a",
        "flaky: b",
        "flaky: works again",
    ]
    assert counter.checks == 6


def test_each_round_gives_a_sign_of_life_with_what_fails(tmp_path: Path) -> None:
    assert read_maintenance_status(tmp_path, time.time()) == MaintenanceStatus(
        runs=False
    )
    rounds = TaskRunner(
        [Flaky(OSError("disk full"), OSError("disk full"), None), Counter()], tmp_path
    )
    for failure in ("disk full", "disk full", ""):
        rounds.check()
        assert read_maintenance_status(tmp_path, time.time()) == MaintenanceStatus(
            runs=True, failures={"flaky": failure, "counter": ""}
        )
        assert read_maintenance_status(tmp_path, time.time()).works is not bool(failure)
        assert not read_maintenance_status(tmp_path, time.time() + 11).runs


def test_a_second_round_without_news_renews_the_sign_of_life(tmp_path: Path) -> None:
    rounds = TaskRunner([Counter()], tmp_path)
    for _ in range(2):
        rounds.check()
        os.utime(tmp_path / "maintenance.json", (0, 0))
        assert not read_maintenance_status(tmp_path, time.time()).runs
    rounds.check()
    assert read_maintenance_status(tmp_path, time.time()).runs


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff"])
def test_a_report_that_is_none_is_no_sign_of_life(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "maintenance.json").write_bytes(content)
    assert read_maintenance_status(tmp_path, time.time()) == MaintenanceStatus(
        runs=False
    )


def test_a_sign_of_life_that_cannot_be_written_stops_no_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = Counter()
    rounds = TaskRunner([counter], tmp_path / "missing")
    rounds.check()
    rounds.check()
    assert counter.checks == 2
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("heartbeat: [Errno 2] No such file or directory")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        (
            "nameserver 192.0.2.1\nnameserver 2001:db8::1\n",
            ("192.0.2.1", "2001:db8::1"),
        ),
        (
            "# nameserver 192.0.2.9\n;nameserver 192.0.2.9\nsearch example\nnameserver\t192.0.2.1 # x\n",
            ("192.0.2.1",),
        ),
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\n", ("127.0.0.53",)),
        ("nameserver 127.53.53.53\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
        (
            "nameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver 192.0.2.1\n",
            ("fe80::1%eth0", "192.0.2.1"),
        ),
        (
            'nameserver ::1%a"b\nnameserver ::1%a#b\nnameserver ::1%a@5\nnameserver 192.0.2.1\n',
            ("192.0.2.1",),
        ),
        ('nameserver\nnameserver dns.example\nnameserver 192.0.2.1"\n', ()),
        ("", ()),
    ],
)
def test_name_servers_are_those_of_resolv_conf_without_the_resolver_itself(
    text: str, servers: tuple[str, ...]
) -> None:
    assert name_servers(text, own="127.53.53.53") == servers


@pytest.mark.system
def test_unbound_accepts_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "unbound.conf"
    servers = ("192.0.2.1", "2001:db8::1", "fe80::1%lo")
    file.write_text(configuration("127.53.53.53", servers, (("discard-timeout", "0"),)))
    done = subprocess.run(
        ["unbound-checkconf", file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for server in servers:
        assert f"    forward-addr: {server}\n" in file.read_text()


@pytest.mark.parametrize("address", ["192.0.2.1", "::1", "0.0.0.0", "localhost"])
def test_the_resolver_is_for_this_machine_alone(address: str) -> None:
    done = CliRunner().invoke(main, ["maintain", "--resolver", address])
    assert done.exit_code == 2
    assert f"'{address}' is not an address in 127.0.0.0/8" in done.output


# ── Files that others read ────────────────────────────────────────────────────────────


def test_a_file_is_replaced_by_one_whose_content_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "own-addresses", []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(os.stat(descriptor).st_ino)
    )
    replace(file, b"203.0.113.7\n", 0o644)
    assert (file.read_text(), synced) == ("203.0.113.7\n", [file.stat().st_ino])
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


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
        worker = max(
            psutil.Process(int(real.pid_file.read_text())).children(),
            key=lambda kid: kid.pid,
        )
        worker.kill()
        wait_for(
            lambda: squid.run() not in (run, None),
            "another run, which counts from zero",
        )
    assert not squid.runs()
    assert squid.run() is None


@pytest.mark.system
def test_a_squid_whose_workers_have_all_given_up_is_ended() -> None:
    """Its master would stay, with a coordinator that serves nobody, and nothing start
    it again.
    """
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
def process_named(
    name: str, folder: Path, script: str = "read forever"
) -> Iterator[subprocess.Popen[bytes]]:
    """A shell of this name. `$0` in its script is the shell itself."""
    program = Path(shutil.copy("/bin/sh", folder / name))
    with subprocess.Popen(
        [program, "-c", script, program], stdin=subprocess.PIPE
    ) as process:
        (folder / "squid.pid").write_text(f"{process.pid}\n")
        wait_for(
            lambda: Path(f"/proc/{process.pid}/comm").read_text() == f"{name}\n",
            "the program",
        )
        yield process
        process.kill()


@pytest.mark.system
def test_a_squid_that_does_not_handle_the_signal_yet_is_left_alone(
    tmp_path: Path,
) -> None:
    """It would end by it."""
    with process_named("squid", tmp_path, '"$0" -c "read forever"; true') as master:
        squid = SquidProcess(tmp_path / "squid.pid")
        run = wait_for(squid.run, "the kid")
        assert not squid.signal(SIGHUP)
        assert (run.ended(), master.poll()) == (0, None)


@pytest.mark.system
def test_a_master_without_kids_is_no_run(tmp_path: Path) -> None:
    """Otherwise a check between the end of the kids and that of the master takes the
    latter for a crash.
    """
    with process_named("squid", tmp_path):
        squid = SquidProcess(tmp_path / "squid.pid")
        assert (squid.run(), squid.runs()) == (None, False)


@pytest.mark.system
def test_another_process_with_the_number_of_a_squid_that_has_ended_is_left_alone(
    tmp_path: Path,
) -> None:
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
        ticks = (
            Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[19]
        )
        self.now = SquidRun(frozenset({f"{worker.pid}@{ticks}"}), 0.0)
        return worker


@pytest.mark.system
def test_each_of_two_crashes_within_two_checks_is_noted(tmp_path: Path) -> None:
    squid = Runs()
    crashes = SquidCrashes(
        tmp_path, tmp_path / "cache.log", cast("SquidProcess", squid), 3128
    )
    worker = squid.start()
    for _ in range(2):
        crashes.check()
        worker.kill()
        worker.wait()
        worker = squid.start()
    crashes.check()
    crashes.check()
    assert [crash.told for crash in read_crashes(tmp_path)] == ["it was killed"] * 2
    crashes.check()
    assert len(read_crashes(tmp_path)) == 2
    worker.kill()
    worker.wait()


@pytest.mark.system
def test_a_worker_that_exits_soon_after_another_one_has_crashed_has_not(
    tmp_path: Path,
) -> None:
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
