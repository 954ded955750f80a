"""The process that publishes the policy fails, and the gateway goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e.curl import curl
from tests.e2e.gateway import Gateway
from tests.e2e.observer import Exporter
from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .expect import POLICY


def publishers(gateway: Gateway) -> list[int]:
    """List the publishers of a gateway: each is a child of who has started it."""
    state = os.fsencode(gateway.root / "state")
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if b"publish" in words and state in words:
                found.append(int(pid))
    return found


@pytest.fixture
def one(gateway: Gateway, origins: Origins) -> Iterator[int]:
    """The publisher of the gateway."""
    wait_for(
        lambda: curl(gateway, "http://open.example/").status == 200,
        "the policy in force",
    )
    wait_for(lambda: len(publishers(gateway)) == 1, "one publisher")
    [pid] = publishers(gateway)
    yield pid
    gateway.write("policy.yaml", POLICY)


def another(gateway: Gateway, before: int) -> bool:
    return publishers(gateway) not in ([], [before])


def edit_comes_into_force(gateway: Gateway, exporter: Exporter) -> None:
    before = os.readlink(gateway.root / "state/revisions/in-force")
    gateway.write("policy.yaml", f"{POLICY}# {time.monotonic_ns()}\n")
    link = gateway.root / "state/revisions/in-force"
    wait_for(lambda: os.readlink(link) != before, "the edit to be in force")
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


def test_a_publisher_that_is_killed_is_replaced(
    gateway: Gateway, exporter: Exporter, one: int
) -> None:
    os.kill(one, signal.SIGKILL)
    wait_for(lambda: another(gateway, one), "another publisher")
    assert curl(gateway, "http://open.example/").status == 200
    edit_comes_into_force(gateway, exporter)


def test_a_publisher_that_is_stopped_is_ended_and_replaced(
    gateway: Gateway, exporter: Exporter, one: int
) -> None:
    os.kill(one, signal.SIGSTOP)
    wait_for(lambda: another(gateway, one), "the exporter to end it")
    edit_comes_into_force(gateway, exporter)


def test_a_publisher_ends_with_who_has_started_it(
    gateway: Gateway, exporter: Exporter, one: int
) -> None:
    with open(f"/proc/{one}/stat") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    if parent in gateway.helpers(""):
        os.kill(parent, signal.SIGKILL)
        wait_for(lambda: another(gateway, one), "another publisher")
        edit_comes_into_force(gateway, exporter)
