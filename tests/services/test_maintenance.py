"""`squidkeeper maintain`: its loop, and what it makes of resolv.conf. The rest is in tests/e2e/test_resolver.py."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.base.atomic_write import replace
from squidkeeper.cli import main
from squidkeeper.services.maintenance.process import MaintenanceStatus, TaskRunner, read_maintenance_status
from squidkeeper.services.maintenance.resolver import configuration, name_servers


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


def test_a_failing_task_is_logged_once_and_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counter = Counter()
    errors = (None, OSError("a"), OSError("a"), ValueError("b"), None, None)
    rounds = TaskRunner([Flaky(*errors), counter], tmp_path)
    for _ in range(6):
        rounds.check()
    assert [record.getMessage() for record in caplog.records] == ["flaky: a", "flaky: b", "flaky: works again"]
    assert counter.checks == 6


def test_each_round_gives_a_sign_of_life_with_what_fails(tmp_path: Path) -> None:
    assert read_maintenance_status(tmp_path, time.time()) == MaintenanceStatus(runs=False)
    rounds = TaskRunner([Flaky(OSError("disk full"), OSError("disk full"), None), Counter()], tmp_path)
    for failure in ("disk full", "disk full", ""):
        rounds.check()
        assert read_maintenance_status(tmp_path, time.time()) == MaintenanceStatus(
            runs=True, failures={"flaky": failure, "counter": ""}
        )
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
def test_a_report_that_is_none_is_no_sign_of_life(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "maintenance.json").write_bytes(content)
    assert read_maintenance_status(tmp_path, time.time()) == MaintenanceStatus(runs=False)


def test_a_sign_of_life_that_cannot_be_written_stops_no_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", ("192.0.2.1", "2001:db8::1")),
        ("# nameserver 192.0.2.9\n;nameserver 192.0.2.9\nsearch example\nnameserver\t192.0.2.1 # x\n", ("192.0.2.1",)),
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\n", ("127.0.0.53",)),
        ("nameserver 127.53.53.53\nnameserver 192.0.2.1\n", ("192.0.2.1",)),
        ("nameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver 192.0.2.1\n", ("fe80::1%eth0", "192.0.2.1")),
        ('nameserver ::1%a"b\nnameserver ::1%a#b\nnameserver ::1%a@5\nnameserver 192.0.2.1\n', ("192.0.2.1",)),
        ('nameserver\nnameserver dns.example\nnameserver 192.0.2.1"\n', ()),
        ("", ()),
    ],
)
def test_name_servers_are_those_of_resolv_conf_without_the_resolver_itself(text: str, servers: tuple[str, ...]) -> None:
    assert name_servers(text, own="127.53.53.53") == servers


def test_unbound_accepts_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "unbound.conf"
    servers = ("192.0.2.1", "2001:db8::1", "fe80::1%lo")
    file.write_text(configuration("127.53.53.53", servers, (("discard-timeout", "0"),)))
    done = subprocess.run(["unbound-checkconf", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for server in servers:
        assert f"    forward-addr: {server}\n" in file.read_text()


@pytest.mark.parametrize("address", ["192.0.2.1", "::1", "0.0.0.0", "localhost"])
def test_the_resolver_is_for_this_machine_alone(address: str) -> None:
    done = CliRunner().invoke(main, ["maintain", "--resolver", address])
    assert done.exit_code == 2
    assert f"'{address}' is not an address in 127.0.0.0/8" in done.output


# ── Files that others read ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_replaced_by_one_whose_content_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, synced = tmp_path / "own-addresses", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.stat(descriptor).st_ino))
    replace(file, b"203.0.113.7\n", 0o644)
    assert (file.read_text(), synced) == ("203.0.113.7\n", [file.stat().st_ino])
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]
