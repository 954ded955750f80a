"""Squid crashes: what it said, whom it served, and that the archive tells what has no
line.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from squidkeeper.record.archive.archiver import Archiver
from squidkeeper.record.chain.chain import read_chain
from squidkeeper.serving.squid_crashes import read_crashes
from tests.waiting import wait_for

from .curl import CurlFailed, answer, curl
from .gateway import Gateway, NewGateway
from .maintained import has_checked, maintained
from .observer import Exporter, fetch
from .origin import Origins
from .raw import Raw
from .test_hostile_origins import part

POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [.example]}
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Iterator[Gateway]:
    """Without the guard against the answer that ends Squid."""
    made = new_gateway(POLICY)
    made.edit("squidkeeper.conf", "icap_enable on", "icap_enable off")
    made.start()
    with maintained(made, "--squid", f"127.0.0.1:{made.address[1]}"):
        wait_for(
            (made.root / "state/own-addresses.told").exists, "the first reconfigure"
        )
        yield made


def serves(gateway: Gateway, client: str = "127.0.0.1") -> None:
    """Wait until Squid answers: it may have just started, or reads its
    configuration.
    """
    wait_for(
        lambda: answer(gateway, "http://docs.example/", client=client).status == 200,
        "Squid",
    )


@pytest.mark.one_worker("it ends the worker that holds the connection")
def test_after_a_crash_what_squid_said_and_whom_it_served_are_one_condition_one_page_and_an_entry(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    state, before = gateway.root / "state", len(read_crashes(gateway.root / "state"))
    host, client, told = "held.example", "127.0.0.31", "it was killed"
    serves(gateway, "127.0.0.40")
    with Raw(gateway, client) as connection:
        connection.send(
            f"POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\n"
        )
        has_checked(gateway)
        os.kill(gateway.pid, signal.SIGABRT)
        crash = wait_for(lambda: read_crashes(state)[before:], "the crash to be noted")[
            0
        ]
    assert (crash.told, crash.in_flight) == (told, 1)
    assert crash.origins[:2] == (f"{host}:80", "docs.example:80")
    assert crash.clients[:2] == (client, "127.0.0.40")
    with Exporter(gateway, 9131) as exporter:
        assert f"newest origins: {host}:80" in fetch(exporter.port, "/").text
    page = gateway.command("why", "--last", "1h", *gateway.places).stdout
    assert (
        f"Squid crashed ({told}), and what it served then has no line. Newest origins: {host}:80, "
        in page
    )
    archiver = Archiver(gateway.root / "log/access.log", tmp_path, state=state)
    archiver.run()
    reasons = [entry.reason for entry in read_chain(tmp_path).entries]
    assert reasons[before].endswith(f"({told}): up to 1 request in flight have no line")
    archiver.run()
    assert [entry.reason for entry in read_chain(tmp_path).entries] == reasons


def test_an_answer_that_ends_squid_names_its_origin(
    gateway: Gateway, origins: Origins
) -> None:
    state, before = gateway.root / "state", len(read_crashes(gateway.root / "state"))
    serves(gateway)
    has_checked(gateway)
    origins.fallback = part("plain")
    with pytest.raises(CurlFailed):
        curl(gateway, "http://far.example/", client="127.0.0.41")
    crash = wait_for(lambda: read_crashes(state)[before:], "the crash to be noted")[0]
    assert crash.told.startswith("assertion failed: ")
    assert (crash.origins[0], crash.clients[0]) == ("far.example:80", "127.0.0.41")


def test_a_squid_that_is_restarted_has_not_crashed(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(read_crashes(gateway.root / "state"))
    # a Squid that is ended while it starts says nothing, so its end counts as a crash
    serves(gateway)
    gateway.restart()
    serves(gateway)
    has_checked(gateway)
    assert read_crashes(gateway.root / "state")[before:] == ()


def test_a_worker_that_crashes_after_its_master_is_noted(
    gateway: Gateway, origins: Origins
) -> None:
    before, worker = len(read_crashes(gateway.root / "state")), gateway.pid
    serves(gateway)
    has_checked(gateway)
    os.kill(gateway.master, signal.SIGKILL)
    has_checked(gateway)
    os.kill(worker, signal.SIGKILL)
    wait_for(
        lambda: read_crashes(gateway.root / "state")[before:], "the crash to be noted"
    )
    gateway.kill()
    gateway.start()
    has_checked(gateway)
    assert len(read_crashes(gateway.root / "state")) == before + 1
