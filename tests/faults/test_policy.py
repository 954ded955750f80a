"""The policy directory as it should not be, under load; edits that are merely bad are
in tests/e2e/test_reload.py.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from squidkeeper.policy.policy_store.revisions import revision_in_force
from tests.e2e.curl import curl
from tests.e2e.gateway import Gateway
from tests.e2e.maintained import maintained
from tests.e2e.network import run
from tests.e2e.observer import Exporter, fetch
from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .expect import HARMLESS, POLICY, Fault, answers, under_load
from .hanging import opening_hangs

SQUIDS_OWN = "Squid may fail an assertion of its own when a helper ends"


@contextmanager
def broken(folder: Path, how: Callable[[Path], object]) -> Iterator[None]:
    """Break the policy's folder meanwhile; then it is as it was."""
    kept = folder.with_name("policy-kept")
    run("cp", "--archive", folder, kept)
    how(folder)
    yield
    if (folder / "secrets").exists():  # which are there all the time
        (kept / "policy.yaml").rename(folder / "policy.yaml")
        folder.chmod(0o755)
        shutil.rmtree(kept)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        kept.rename(folder)


def a_pipe(folder: Path) -> None:
    (folder / "policy.yaml").unlink()
    os.mkfifo(folder / "policy.yaml")


def replaced(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "policy.yaml").write_text("version: 1\nrulez: []\n")


# Secrets are read when they are used, and these lie in the directory.
WITH_SECRETS = Fault(denied="the credential cannot be read", only={"injected.example"})
BREAKS: dict[str, tuple[Callable[[Path], object], Fault]] = {
    "file unreadable": (
        lambda folder: (folder / "policy.yaml").chmod(0o600),
        HARMLESS,
    ),  # root's alone
    "a pipe": (a_pipe, HARMLESS),
    "folder removed": (shutil.rmtree, WITH_SECRETS),
    # The others take as long, and show the same.
    "folder unreadable": (lambda folder: folder.chmod(0o700), WITH_SECRETS),
    "file removed": (lambda folder: (folder / "policy.yaml").unlink(), HARMLESS),
    "file emptied": (lambda folder: (folder / "policy.yaml").write_text(""), HARMLESS),
    "file torn": (
        lambda folder: (folder / "policy.yaml").write_text(POLICY[:-20]),
        HARMLESS,
    ),
    "folder replaced": (replaced, WITH_SECRETS),
}
IN_EVERY_RUN = 3


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=() if at < IN_EVERY_RUN else pytest.mark.long)
        for at, how in enumerate(BREAKS)
    ],
)
def test_a_policy_that_is_unavailable_leaves_the_last_good_one_in_force(
    gateway: Gateway, exporter: Exporter, origins: Origins, how: str
) -> None:
    break_it, fault = BREAKS[how]
    with under_load(gateway, origins, fault) as load:
        with broken(gateway.policy_folder, break_it):
            wait_for(
                lambda: "policy-not-loaded" in exporter.conditions(),
                "the operator to be told",
            )
            load.at_least(30)
            assert exporter.health() == (200, {}), "the last good policy serves"
            exporter.end()
            exporter.start()
            assert exporter.health() == (200, {}), "an exporter without a policy"
            assert "policy-not-loaded" in exporter.conditions()
        wait_for(
            lambda: "policy-not-loaded" not in exporter.conditions(), "the good policy"
        )


@pytest.mark.long
def test_an_edit_that_the_reload_gate_refuses_is_told_and_costs_nothing(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    gated = POLICY.replace(
        "version: 1\n", "version: 1\ndefaults: {reload_gate: {since: 1h, denials: 2}}\n"
    )
    gateway.write("policy.yaml", gated)
    wait_for(
        lambda: getattr(
            revision_in_force(gateway.root / "state/revisions"), "gated", False
        ),
        "the gate",
    )
    with maintained(gateway, "--policy", str(gateway.policy_folder)):
        for client in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            answered = partial(curl, gateway, "http://open.example/", client=client)
            wait_for(lambda: answered().status == 200, f"an answer for {client}")  # noqa: B023 - it ends in this round
        with under_load(gateway, origins, HARMLESS) as load:
            gateway.write(
                "policy.yaml",
                gated.replace(
                    "{name: open, action: allow", "{name: open, action: deny"
                ),
            )
            told = "The reload gate refuses an edit of the policy"
            wait_for(
                lambda: told in fetch(exporter.port, "/").text,
                "the operator to be told",
            )
            page = fetch(exporter.port, "/").text
            assert "does not load" not in page
            assert exporter.health() == (200, {})
            assert (
                "squidkeeper_policy_reload_gated 1"
                in fetch(exporter.port, "/metrics").text
            )
            assert "client 127.0.0.2 would be denied open.example by open" in page
            load.at_least(30)
            gateway.write("policy.yaml", gated)
            wait_for(
                lambda: told not in fetch(exporter.port, "/").text, "the end of it"
            )
    gateway.write("policy.yaml", POLICY)


def test_helpers_that_start_while_the_policy_is_bad_go_on_with_the_one_in_force(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(
        gateway, origins, Fault(denied="helpers were killed", lost=SQUIDS_OWN)
    ) as load:
        gateway.write("policy.yaml", "version: 1\nrules: [\n")
        wait_for(
            lambda: "policy-not-loaded" in exporter.conditions(),
            "the operator to be told",
        )
        gateway.kill_helpers()
        answers(gateway, "http://open.example/some", 200)
        answers(gateway, "https://rewritten.example/", 200)
        load.at_least(30)
        gateway.write("policy.yaml", POLICY)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


@pytest.mark.long
def test_a_policy_whose_file_system_hangs(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    """Helpers have what is in force, also those that start."""
    file = gateway.policy_folder / "policy.yaml"
    with under_load(
        gateway, origins, Fault(denied="helpers were killed", lost=SQUIDS_OWN)
    ) as load:
        with opening_hangs(file):
            os.utime(file)  # so that it is read again
            load.at_least(100)
            assert curl(gateway, "http://open.example/goes-on").status == 200
            gateway.kill_helpers()
            answers(gateway, "http://open.example/started", 200)
        answers(gateway, "http://open.example/again", 200)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")
