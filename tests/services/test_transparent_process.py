"""The process of the transparent ports: what it counts and logs, and where it
listens.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.base.helper_metrics import TransparentResult
from squidkeeper.base.places import TRANSPARENT_FOLDER
from squidkeeper.cli import main
from squidkeeper.services.transparent import process
from squidkeeper.services.transparent.connection import KEPT_BYTES
from squidkeeper.services.transparent.process import Tally
from squidkeeper.serving.counters.layout import FOLDER
from squidkeeper.serving.counters.reader import read_counter_files
from tests.ports import free_port


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    (tmp_path / TRANSPARENT_FOLDER / FOLDER).mkdir(parents=True)
    return Tally(tmp_path)


def test_what_became_of_connections_is_counted_in_a_counter_file(
    tally: Tally, tmp_path: Path
) -> None:
    for result in (
        TransparentResult.OPENED,
        TransparentResult.OPENED,
        TransparentResult.NOT_TLS,
    ):
        tally.count(result, "192.0.2.1")
    assert tally.tick()
    tally.count(TransparentResult.ENDED, "192.0.2.1")
    tally.end()
    assert not tally.tick()
    tally.write()
    [file] = read_counter_files(tmp_path / TRANSPARENT_FOLDER / FOLDER)
    assert {labels["result"]: value for _, labels, value in file.samples} == {
        "opened": 2,
        "not_tls": 1,
        "ended": 1,
    }
    assert file.status is not None
    assert file.status.helper == "transparent"


def test_refusals_are_logged_by_client_with_a_bound_on_the_lines(
    tally: Tally, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def logged(seconds: float) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(time, "monotonic", lambda: seconds)
        tally.tick()
        return caplog.messages

    caplog.set_level(logging.INFO)
    for number in range(5000):
        tally.count(TransparentResult.NO_SERVER_NAME, f"192.0.2.{number}")
    for _ in range(3):
        tally.count(TransparentResult.TOO_MANY, "198.51.100.1")
    tally.count(TransparentResult.OPENED, "203.0.113.1")
    lines = logged(1000)
    assert (
        lines[0]
        == "other clients: connections refused: 4000, no-server-name (no host name as TLS server name)"
    )
    assert lines[1] == "other clients: connections refused: 3, too-many"
    assert lines[-1] == "others: connections refused: 992"
    assert len(lines) == 11
    tally.count(TransparentResult.NOT_TLS, "192.0.2.1")
    assert logged(1005) == []
    assert logged(1011) == ["192.0.2.1: connections refused: 1, not-tls"]
    assert logged(1030) == []


def test_what_the_kernel_keeps_for_all_connections_fits_the_memory_of_the_unit() -> (
    None
):
    unit = (
        Path(__file__).parents[2] / "squid/squidkeeper-transparent.service"
    ).read_text()
    descriptors, gigabytes = (
        int(unit.split(f"\n{name}=")[1].split()[0].rstrip("G"))
        for name in ("LimitNOFILE", "MemoryMax")
    )
    queues = descriptors * 2  # each connection has two sockets
    assert queues * 2 * KEPT_BYTES < gigabytes << 30


@pytest.mark.system
@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77"])
def test_it_listens_on_an_address_that_is_not_there_yet(address: str) -> None:
    with process._listener((address, free_port())) as listener:
        assert listener.getsockname()[0] == address


@pytest.mark.system
def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with process._listener(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [
            "transparent",
            "--listen",
            "127.0.0.1",
            "--tls-port",
            port,
            "--state",
            str(tmp_path),
        ]
        done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert (
        f"127.0.0.1 port {port}: Address already in use: stop what listens there or choose another"
        in done.output
    )


@pytest.mark.parametrize(
    "address", ["localhost", "192.0.2.1:443", "[::1]", "192.0.2.0/24", ""]
)
def test_an_address_is_what_it_listens_on(address: str) -> None:
    done = CliRunner().invoke(main, ["transparent", "--listen", address])
    assert (done.exit_code, "--listen" in done.output) == (2, True)
