"""Whether clients without proxy settings get through, as the maintenance process asks
on a network of its own.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from squidkeeper.base.errors import TransparentFailed
from squidkeeper.services.maintenance import resolver, transparent
from squidkeeper.services.maintenance.transparent import TransparentPorts
from squidkeeper.serving.counters.layout import HelperStatus
from squidkeeper.serving.counters.reader import CounterFile
from tests.e2e.network import internet, run
from tests.waiting import wait_for

pytestmark = pytest.mark.system

FOUR, SIX = "192.168.137.1", "fd00:137::1"
NO_PROCESS = "squidkeeper transparent does not run, is stuck, or cannot write to the state folder"

NewPorts = Callable[..., TransparentPorts]


def silent(address: str) -> str:
    return f"unbound does not answer on {address} port 53 (its process: ss -lunp src {address})"


def add(address: str) -> None:
    run(
        "ip",
        "address",
        "add",
        address,
        "dev",
        "lo",
        *(["nodad"] if ":" in address else []),
    )


def remove(address: str) -> None:
    run("ip", "address", "del", f"{address}/32", "dev", "lo")


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network of this test's own, with both addresses and a process that takes
    connections.
    """
    monkeypatch.setattr(resolver, "_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(transparent, "_START_SECONDS", 0.3)
    beats(monkeypatch, ago=1)
    with internet():
        add(FOUR)
        add(SIX)
        yield


def beats(monkeypatch: pytest.MonkeyPatch, ago: float, *, running: bool = True) -> None:
    """Have the process give its last sign of life so many seconds ago."""
    at = time.time() - ago
    file = CounterFile(0, running, status=HelperStatus("transparent", 1, at, at))
    monkeypatch.setattr(transparent, "read_counter_files", lambda _: [file])


@contextmanager
def answering(address: str, addresses: int = 1) -> Iterator[list[bytes]]:
    """Answer questions on port 53 with so many addresses; gives the questions."""
    asked: list[bytes] = []
    server = socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    )
    server.bind((address, 53))

    def serve() -> None:
        while (received := server.recvfrom(512))[0]:
            asked.append(received[0])
            server.sendto(
                received[0][:6] + addresses.to_bytes(2) + received[0][8:], received[1]
            )

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        with socket.socket(server.family, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (address, 53))
        thread.join()
        server.close()


@pytest.fixture
def ports_of(tmp_path: Path) -> Iterator[NewPorts]:
    with ExitStack() as at_the_end:

        def make(*addresses: str) -> TransparentPorts:
            ports = TransparentPorts(addresses, tmp_path)
            at_the_end.callback(ports.stop)
            return ports

        yield make


def failure(ports: TransparentPorts) -> str:
    try:
        ports.check()
    except TransparentFailed as error:
        return str(error)
    return ""


def fails_with(ports: TransparentPorts, expected: str) -> None:
    wait_for(
        lambda: failure(ports) == expected,
        lambda: f"{expected!r}, not {failure(ports)!r}",
        seconds=10,
    )


def test_all_is_well_where_each_address_answers_and_the_process_runs(
    ports_of: NewPorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_SILENCE_SECONDS", 20)
    ports = ports_of(FOUR, SIX)
    with answering(FOUR) as four, answering(SIX) as six:
        assert failure(ports) == ""
        wait_for(
            lambda: failure(ports) or min(len(four), len(six)) > 5, "questions to both"
        )
        assert failure(ports) == ""
    assert {*four} == {
        bytes.fromhex("5354 0100 0001 0000 0000 0000")
        + b"\x0bsquidkeeper\x07example\0\0\1\0\1"
    }
    assert {*six} == {
        bytes.fromhex("5354 0100 0001 0000 0000 0000")
        + b"\x0bsquidkeeper\x07example\0\0\x1c\0\1"
    }


def test_a_resolver_that_does_not_answer_or_is_another_one_is_named(
    ports_of: NewPorts,
) -> None:
    ports = ports_of(FOUR, SIX)
    with answering(SIX):
        fails_with(ports, silent(FOUR))
        with answering(
            FOUR, addresses=0
        ):  # as any other resolver, which does not know the name
            fails_with(ports, silent(FOUR))
        with answering(FOUR):
            fails_with(ports, "")


def test_an_address_that_is_missing_is_named_and_not_asked_until_it_is_there(
    ports_of: NewPorts,
) -> None:
    ports = ports_of(FOUR)
    with answering(FOUR) as asked:
        fails_with(ports, "")
        remove(FOUR)
        assert failure(ports) == f"{FOUR} is not on this machine"
        before = len(asked)
        assert failure(ports) == f"{FOUR} is not on this machine"
        assert len(asked) == before
        add(FOUR)
        assert failure(ports) == "", (
            "the resolver has as long to answer as at the start"
        )


@pytest.mark.parametrize(
    ("ago", "running"), [(11, True), (1, False)], ids=["stuck", "ended"]
)
def test_a_process_that_takes_no_connections_is_named(
    ports_of: NewPorts, monkeypatch: pytest.MonkeyPatch, ago: float, running: bool
) -> None:
    beats(monkeypatch, ago, running=running)
    ports = ports_of(FOUR)
    with answering(FOUR):
        assert failure(ports) == "", "it may start after this one"
        fails_with(ports, NO_PROCESS)
