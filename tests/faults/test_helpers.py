"""Helpers that die, stop, get stuck, or run out of memory or descriptors,
under load.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.gateway import Gateway, NewGateway
from tests.e2e.network import run
from tests.e2e.observer import AS_SQUID, Exporter
from tests.e2e.origin import Origins
from tests.e2e.raw import Raw
from tests.waiting import wait_for

from .conftest import prepared
from .expect import (
    HELPERS,
    POLICY,
    Fault,
    answers,
    metric,
    only_what_may_arrive,
    under_load,
)
from .hanging import opening_hangs

DIED = Fault(
    denied="what a helper had been asked when it ended",
    lost="Squid may fail an assertion of its own when a helper dies, and is started again",
)


def running(gateway: Gateway, kinds: tuple[str, ...] = HELPERS) -> list[int]:
    return [pid for kind in kinds for pid in gateway.helpers(kind)]


def rules(gateway: Gateway) -> set[tuple[str, str]]:
    return {(line["url"], line["rule"]) for line in gateway.log()}


def settled(gateway: Gateway, exporter: Exporter) -> list[int]:
    """The helpers, when each has its slot: none is just starting."""

    def found() -> list[int]:
        pids = running(gateway)
        return (
            pids
            if metric(exporter, "squidkeeper_helper_processes") == len(pids)
            else []
        )

    return wait_for(found, "each helper to have a slot")


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def said(exporter: Exporter) -> str:
    return (exporter.gateway.root / "log/exporter.txt").read_text()


def test_all_helpers_killed(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins, DIED) as load:
        for _ in range(3):
            wait_for(gateway.kill_helpers, "helpers")
            load.at_least(30)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


def test_all_helpers_stopped_are_ended_by_the_exporter(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    before = said(exporter).count("was stopped")
    with under_load(gateway, origins, DIED) as load:
        stopped = settled(gateway, exporter)
        send(stopped, signal.SIGSTOP)
        wait_for(lambda: gone(stopped), "the exporter to end all that were stopped")
        load.at_least(30)
    assert said(exporter).count("was stopped") - before == len(stopped)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


@pytest.mark.long
@pytest.mark.parametrize("kind", HELPERS)
def test_one_helper_stopped_is_ended_by_the_exporter(
    gateway: Gateway, exporter: Exporter, origins: Origins, kind: str
) -> None:
    with under_load(gateway, origins, DIED) as load:
        stopped = wait_for(lambda: gateway.helpers(kind), f"a helper: {kind}")[:1]
        send(stopped, signal.SIGSTOP)
        wait_for(lambda: gone(stopped), "the exporter to end it")
        load.at_least(30)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


@pytest.mark.long
def test_without_an_exporter_a_stopped_helper_keeps_clients_waiting(
    new_gateway: NewGateway, origins: Origins
) -> None:
    alone = prepared(new_gateway(POLICY)).start()
    with under_load(alone, origins):
        pass
    with alone.stopped_helpers("acl --scope host") as stopped:
        with Raw(alone) as client, pytest.raises(TimeoutError):
            client.send(
                "GET http://new.closed.example/ HTTP/1.1\r\nHost: new.closed.example\r\n\r\n"
            ).answer()
        assert not gone(stopped)
    answers(alone, "http://open.example/after", 200)
    only_what_may_arrive(origins)


# --- a secret's source that hangs -----------------------------------------------------


@pytest.mark.long
def test_a_secret_whose_file_system_hangs(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    file = gateway.policy_folder / "secrets/token"
    with under_load(gateway, origins, DIED) as load, opening_hangs(file):
        os.utime(file)  # so that it is read again
        stuck = wait_for(lambda: gateway.helpers("credential"), "the helper")
        wait_for(lambda: gone(stuck), "the helper to end itself")
        load.at_least(10)
    assert "stuck for 10 s; exiting" in gateway.cache_log()
    answers(gateway, "https://injected.example/after", 200)


def test_a_secret_that_is_a_pipe_nobody_writes_to(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    file = gateway.policy_folder / "secrets/token"
    kept = file.with_name("kept")
    with under_load(gateway, origins, Fault(denied="the credential is unavailable")):
        file.rename(kept)
        os.mkfifo(file)
        try:
            answers(gateway, "https://injected.example/", "credential-unavailable")
        finally:
            kept.rename(file)
        answers(gateway, "https://injected.example/", 200)


# --- limits ---------------------------------------------------------------------------


def limit(pids: list[int], what: str) -> None:
    """Set a limit of those processes that still run, as their own account may."""
    for pid in pids:
        run(*AS_SQUID[:-2], "prlimit", f"--pid={pid}", what, check=not gone([pid]))


def test_helpers_without_a_descriptor_to_spare_keep_the_last_good_policy(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    fault = Fault(
        denied="a secret that was not read yet cannot be opened",
        only={"injected.example"},
    )
    with under_load(gateway, origins, fault) as load:
        pids = running(gateway)
        limit(pids, "--nofile=1:")
        try:
            gateway.write("policy.yaml", POLICY + "# edited\n")
            wait_for(
                lambda: "too many open files" in gateway.cache_log().lower(),
                "the fault in cache.log",
            )
            wait_for(
                lambda: "helper-outdated" in exporter.conditions(),
                "the operator to be told",
            )
            load.at_least(30)
        finally:
            limit(pids, "--nofile=1024:")
            gateway.write("policy.yaml", POLICY)
        wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


def test_helpers_without_the_memory_to_start(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    program = gateway.root / "bin/squidkeeper"
    true = program.with_name("squidkeeper-true")
    with under_load(gateway, origins, DIED) as load:
        program.rename(true)
        try:
            program.write_text(f'#!/bin/sh\nulimit -v 40000\nexec {true} "$@"\n')
            program.chmod(0o755)
            gateway.kill_helpers()
            answers(gateway, "http://open.example/none", "ERR_ACCESS_DENIED")
            wait_for(
                lambda: (
                    ("http://open.example/none", "policy-unavailable") in rules(gateway)
                ),
                "the logged rule",
            )
            load.at_least(10)
        finally:
            true.rename(program)
        answers(gateway, "http://open.example/some", 200)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")
