"""`squidkeeper maintain`: its loop, and what it makes of resolv.conf. The rest is in tests/e2e/test_resolver.py."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.maintenance.process import Upkeep
from squidkeeper.maintenance.resolver import configuration, name_servers


class Flaky:
    """A task that fails with each of these errors in turn; None is a success."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = list(errors)

    def check(self) -> None:
        error = self._errors.pop(0)
        if error:
            raise error


class Counter:
    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


def test_a_failing_task_is_logged_once_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counter = Counter()
    upkeep = Upkeep([Flaky(None, OSError("a"), OSError("a"), ValueError("b"), None, None), counter])
    for _ in range(6):
        upkeep.check()
    assert [record.getMessage() for record in caplog.records] == ["Flaky: a", "Flaky: b", "Flaky: works again"]
    assert counter.checks == 6


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
