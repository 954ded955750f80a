"""The processes that inspect bodies: restarted and killed under load, and what is told
when none runs.
"""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException

import pytest

from tests.ports import free_port
from tests.waiting import wait_for

from .gateway import Gateway, NewGateway
from .observer import Exporter, fetch
from .origin import Origins
from .reply import Reply
from .test_bodies_faults import post

POLICY = """
version: 1
rules:
  - {name: chat, action: allow, hosts: [llm.example], methods: [POST], body: {json: {/model: [small]}}}
"""
CLIENTS = 4


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY).start()


@pytest.fixture(autouse=True)
def two_processes(gateway: Gateway) -> None:
    gateway.start_bodies(2 - len(gateway.bodies))


class Load:
    """Clients that send an allowed and a denied body in turn, without a pause."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ends = threading.Event()
        self.statuses: dict[str, list[int]] = {"small": [], "large": []}

    def client(self) -> None:
        while not self._ends.is_set():
            for model, statuses in self.statuses.items():
                statuses.append(self._asked(model))

    def _asked(self, model: str) -> int:
        host, port = self._gateway.address
        connection = HTTPConnection(host, port, timeout=60)
        try:
            body = json.dumps({"model": model, "text": "x" * 5000})
            connection.request(
                "POST",
                f"http://llm.example/{model}",
                body,
                {"Content-Type": "application/json"},
            )
            return connection.getresponse().status
        except (OSError, HTTPException):
            return 0
        finally:
            connection.close()

    def at_least(self, more: int) -> None:
        goal = len(self.statuses["large"]) + more
        wait_for(lambda: len(self.statuses["large"]) >= goal, f"{more} more answers")

    def end(self) -> None:
        self._ends.set()


@contextmanager
def under_load(gateway: Gateway) -> Iterator[Load]:
    load = Load(gateway)
    threads = [threading.Thread(target=load.client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        load.at_least(20)
        yield load
        load.at_least(20)
    finally:
        load.end()
        for thread in threads:
            thread.join()


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(30)


def replace_each(gateway: Gateway, load: Load, number: signal.Signals) -> None:
    """End one process after the other by a signal, as an upgrade does, and start
    another in its place.
    """
    for process in [*gateway.bodies]:
        end(process, number)
        load.at_least(10)
        gateway.bodies.remove(process)
        gateway.start_bodies(1)


def test_a_restart_of_one_process_after_the_other_loses_no_request(
    gateway: Gateway, origins: Origins
) -> None:
    with under_load(gateway) as load:
        for _ in range(3):
            replace_each(gateway, load, signal.SIGTERM)
    assert {*load.statuses["small"]} == {200}
    assert {*load.statuses["large"]} == {403}


def test_processes_that_are_killed_let_nothing_through(
    gateway: Gateway, origins: Origins
) -> None:
    origins.forget()
    with under_load(gateway) as load:
        for _ in range(3):
            replace_each(gateway, load, signal.SIGKILL)
    assert {*load.statuses["small"]} <= {200, 500}
    assert {*load.statuses["large"]} <= {403, 500}
    assert load.statuses["small"].count(500) <= 3 * 2 * CLIENTS, (
        "more than a killed process was asked about"
    )
    assert {seen.url for seen in origins.seen} == {"http://llm.example/small"}


def test_without_any_process_requests_are_denied_and_the_operator_is_told(
    gateway: Gateway, origins: Origins
) -> None:
    assert answer_of(gateway, "before").status == 200
    with Exporter(
        gateway, free_port(), "--fragment", gateway.layout.fragment
    ) as exporter:
        wait_for(
            lambda: "bodies-down" not in conditions(exporter),
            "the exporter to see the processes",
        )
        gateway.kill_bodies()
        origins.forget()
        reply = answer_of(gateway, "denied")
        assert reply.status == 500
        assert (
            b"could not inspect the body of the request, and sent nothing" in reply.body
        )
        wait_for(
            lambda: "bodies-down" in conditions(exporter), "the exporter to miss them"
        )
    assert origins.seen == []
    line = gateway.logged("https://llm.example/denied")
    told = gateway.command(
        "why", str(line["request_id"]), "--run", gateway.root / "run", *gateway.places
    ).stdout
    assert "`squidkeeper bodies` did not answer" in told
    gateway.start_bodies(2)
    assert answer_of(gateway, "after").status == 200


def conditions(exporter: Exporter) -> set[str]:
    return {
        condition["code"]
        for condition in fetch(exporter.port, "/healthz").json["conditions"]
    }


def answer_of(gateway: Gateway, name: str) -> Reply:
    return post(gateway, f"https://llm.example/{name}")
