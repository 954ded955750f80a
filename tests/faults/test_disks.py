"""The state folder and the log on disks that are full, read-only or gone,
under load.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.curl import answer, curl
from tests.e2e.gateway import Gateway, NewGateway
from tests.e2e.network import run
from tests.e2e.observer import Exporter
from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .conftest import prepared
from .expect import POLICY, Fault, answers, metric, under_load


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Put a folder on a disk of its own, with what it holds."""
    before = folder.with_name(f"{folder.name}-before")
    run("cp", "-a", folder, before)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder)
    try:
        run("cp", "-a", f"{before}/.", folder)  # the folder's own owner and mode too
        yield
    finally:
        run("umount", "--lazy", folder)
        shutil.rmtree(before)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Take all the room that is left."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield
    ballast.unlink()


@contextmanager
def exported(gateway: Gateway, port: int) -> Iterator[Exporter]:
    try:
        with Exporter(gateway, port) as exporter:
            yield exporter
    finally:
        gateway.stop()


@pytest.mark.long
def test_the_state_folder_full(new_gateway: NewGateway, origins: Origins) -> None:
    """The publisher speaks in the log of who has started it: Squid's or the
    exporter's.
    """
    gateway = prepared(new_gateway(POLICY))
    state = gateway.root / "state"
    log = gateway.root / "log/exporter.txt"
    edit = POLICY + "# edited: a revision to keep\n"
    keeps_out = {"disk-full", "policy-not-published"}
    with (
        small_disk(state, 8),
        exported(gateway.start(), 9131) as exporter,
        under_load(gateway, origins) as load,
    ):
        with full(state):
            before = os.readlink(state / "revisions/in-force")
            gateway.write("policy.yaml", edit)
            wait_for(
                lambda: "cannot be published" in gateway.cache_log() + log.read_text(),
                "the operator to be told",
            )
            wait_for(lambda: keeps_out <= exporter.conditions(), "the conditions")
            load.at_least(60)
            assert os.readlink(state / "revisions/in-force") == before
        wait_for(
            lambda: os.readlink(state / "revisions/in-force") != before, "the edit"
        )
        wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


@pytest.mark.long
def test_the_state_folder_read_only(new_gateway: NewGateway, origins: Origins) -> None:
    """Helpers and the record go on; certificates for new hosts cannot be kept."""
    gateway = prepared(new_gateway(POLICY)).start()
    with under_load(gateway, origins):
        pass
    gateway.stop()
    state = gateway.root / "state"
    run("mount", "--bind", state, state)
    run("mount", "-o", "remount,bind,ro", state)
    try:
        gateway.start()
        assert curl(gateway, "http://open.example/").status == 200
        assert curl(gateway, "http://closed.example/").rule == "default"
        assert curl(gateway, "https://injected.example/").status == 200
        wait_for(
            lambda: "metrics of this helper cannot be written" in gateway.cache_log(),
            "the operator to be told",
        )
    finally:
        gateway.stop()
        run("umount", "--lazy", state)


def test_the_state_folder_gone(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    state = gateway.root / "state"
    with under_load(gateway, origins) as load:
        state.rename(state.with_name("state-away"))
        load.at_least(100)
        state.with_name("state-away").rename(state)
        wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


@pytest.mark.one_worker("Squid's master stays with the coordinator of several")
@pytest.mark.long
def test_the_disk_of_the_log_full(new_gateway: NewGateway, origins: Origins) -> None:
    """Squid ends rather than serve what it cannot log, and its master gives up; it has
    to be started.
    """
    gateway = prepared(new_gateway(POLICY))
    log = gateway.root / "log"
    fault = Fault(
        denied="what helpers had been asked",
        lost="Squid has ended",
        failed="Squid is about to end",
    )
    with (
        small_disk(log, 2),
        exported(gateway.start(), 9132) as exporter,
        under_load(gateway, origins, fault),
    ):
        with full(log):
            wait_for(
                lambda: gateway._squid and gateway._squid.poll(),
                "Squid's master to give up",
                seconds=60,
            )
            assert not answer(gateway, "http://open.example/")
            assert metric(exporter, "squid_up") == 0
        gateway.restart()
        answers(gateway, "http://open.example/", 200)
