"""The policy directory as it should not be, under load; edits that are merely bad are in tests/e2e/test_reload.py."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

import pytest

from squidkeeper.policy.policy_store.revisions import revision_in_force
from tests.e2e.curl import curl
from tests.e2e.gateway import Gateway
from tests.e2e.maintained import maintained
from tests.e2e.observer import Exporter, fetch
from tests.e2e.origin import Origins
from tests.waiting import wait_for

from .expect import HARMLESS, HELPERS, POLICY, Fault, answers, under_load
from .hanging import opening_hangs

SQUIDS_OWN = "Squid may fail an assertion of its own when a helper ends"
Break = Callable[[Gateway], AbstractContextManager[None]]


@contextmanager
def unreadable(gateway: Gateway) -> Iterator[None]:
    file = gateway.policy_folder / "policy.yaml"
    file.chmod(0o600)  # root's alone
    yield
    file.chmod(0o644)


@contextmanager
def directory_unreadable(gateway: Gateway) -> Iterator[None]:
    gateway.policy_folder.chmod(0o700)
    yield
    gateway.policy_folder.chmod(0o755)


@contextmanager
def file_removed(gateway: Gateway) -> Iterator[None]:
    (gateway.policy_folder / "policy.yaml").unlink()
    yield
    gateway.write("policy.yaml", POLICY)


@contextmanager
def file_emptied(gateway: Gateway) -> Iterator[None]:
    (gateway.policy_folder / "policy.yaml").write_text("")
    yield
    gateway.write("policy.yaml", POLICY)


@contextmanager
def file_torn(gateway: Gateway) -> Iterator[None]:
    (gateway.policy_folder / "policy.yaml").write_text(POLICY[:-20])
    yield
    gateway.write("policy.yaml", POLICY)


@contextmanager
def a_pipe(gateway: Gateway) -> Iterator[None]:
    file = gateway.policy_folder / "policy.yaml"
    file.unlink()
    os.mkfifo(file)
    yield
    gateway.write("policy.yaml", POLICY)


@contextmanager
def directory_removed(gateway: Gateway) -> Iterator[None]:
    away = gateway.policy_folder.with_name("policy-away")
    gateway.policy_folder.rename(away)
    yield
    away.rename(gateway.policy_folder)


@contextmanager
def directory_replaced(gateway: Gateway) -> Iterator[None]:
    away = gateway.policy_folder.with_name("policy-away")
    gateway.policy_folder.rename(away)
    gateway.policy_folder.mkdir()
    (gateway.policy_folder / "policy.yaml").write_text("version: 1\nrulez: []\n")
    yield
    (gateway.policy_folder / "policy.yaml").unlink()
    gateway.policy_folder.rmdir()
    away.rename(gateway.policy_folder)


# Secrets are read when they are used, and these lie in the directory.
WITH_SECRETS = Fault(denied="the credential cannot be read", only={"injected.example"})
BREAKS: dict[Break, Fault] = {
    unreadable: HARMLESS,
    directory_unreadable: WITH_SECRETS,
    file_removed: HARMLESS,
    file_emptied: HARMLESS,
    file_torn: HARMLESS,
    a_pipe: HARMLESS,
    directory_removed: WITH_SECRETS,
    directory_replaced: WITH_SECRETS,
}


# The others take as long, and show the same.
IN_EVERY_RUN = {unreadable, a_pipe, directory_removed}
CASES = [
    pytest.param(broken, id=broken.__name__, marks=() if broken in IN_EVERY_RUN else pytest.mark.long)
    for broken in BREAKS
]


@pytest.mark.parametrize("broken", CASES)
def test_a_policy_that_is_unavailable_leaves_the_last_good_one_in_force(
    gateway: Gateway, exporter: Exporter, origins: Origins, broken: Break
) -> None:
    with under_load(gateway, origins, BREAKS[broken]) as load:
        with broken(gateway):
            wait_for(lambda: "policy-not-loaded" in exporter.health()[1], "the operator to be told")
            load.at_least(30)
        wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


@pytest.mark.long
def test_an_edit_that_the_reload_gate_refuses_is_told_and_costs_nothing(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    gated = POLICY.replace("version: 1\n", "version: 1\ndefaults: {reload_gate: {since: 1h, denials: 2}}\n")
    gateway.write("policy.yaml", gated)
    wait_for(lambda: getattr(revision_in_force(gateway.root / "state/revisions"), "gated", False), "the gate")
    with maintained(gateway, "--policy", str(gateway.policy_folder)):
        for client in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            answered = partial(curl, gateway, "http://open.example/", client=client)
            wait_for(lambda: answered().status == 200, f"an answer for {client}")  # noqa: B023 - it ends in this round
        with under_load(gateway, origins, HARMLESS) as load:
            gateway.write("policy.yaml", gated.replace("{name: open, action: allow", "{name: open, action: deny"))
            told = "The reload gate refuses an edit of the policy"
            wait_for(lambda: told in fetch(exporter.port, "/").text, "the operator to be told")
            page = fetch(exporter.port, "/").text
            assert "does not load" not in page
            assert exporter.health() == (200, {})
            assert "squidkeeper_policy_reload_gated 1" in fetch(exporter.port, "/metrics").text
            assert "client 127.0.0.2 would be denied open.example by open" in page
            load.at_least(30)
            gateway.write("policy.yaml", gated)
            wait_for(lambda: told not in fetch(exporter.port, "/").text, "the end of it")
    gateway.write("policy.yaml", POLICY)


def test_helpers_that_start_while_the_policy_is_bad_deny_everything(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins, Fault(denied="no policy", lost=SQUIDS_OWN)) as load:
        gateway.write("policy.yaml", "version: 1\nrules: [\n")
        wait_for(lambda: "policy-not-loaded" in exporter.health()[1], "the operator to be told")
        for kind in HELPERS:
            for pid in gateway.helpers(kind):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        answers(gateway, "http://open.example/none", "policy-unavailable")
        load.at_least(30)
        gateway.write("policy.yaml", POLICY)
        answers(gateway, "http://open.example/some", 200)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")


def test_a_rewriter_that_starts_while_the_policy_is_bad_passes_nothing_unrewritten(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    """It alone has no policy: the other helpers go on with theirs, and would let the request through as it is."""
    # A second credential helper that the load starts meanwhile has no policy either.
    fault = Fault(denied="the rewriter has no policy", lost=SQUIDS_OWN, only={"rewritten.example", "injected.example"})
    with under_load(gateway, origins, fault) as load:
        gateway.write("policy.yaml", "version: 1\nrules: [\n")
        wait_for(lambda: "policy-not-loaded" in exporter.health()[1], "the operator to be told")
        for pid in gateway.helpers("rewrite"):
            os.kill(pid, signal.SIGKILL)
        answers(gateway, "https://rewritten.example/", "ERR_ACCESS_DENIED")
        load.at_least(30)
        gateway.write("policy.yaml", POLICY)
        answers(gateway, "https://rewritten.example/", 200)


@pytest.mark.long
def test_a_policy_whose_file_system_hangs(gateway: Gateway, exporter: Exporter, origins: Origins) -> None:
    """Helpers go on with what they have; one that starts denies what it is asked, and nobody waits for ever."""
    file = gateway.policy_folder / "policy.yaml"
    with under_load(gateway, origins, Fault(denied="no policy", lost=SQUIDS_OWN)) as load:
        with opening_hangs(file):
            os.utime(file)  # so that it is read again
            load.at_least(100)
            assert curl(gateway, "http://open.example/goes-on").status == 200
            for kind in HELPERS:
                for pid in gateway.helpers(kind):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            answers(gateway, "http://open.example/denied", "policy-unavailable")
            assert "not read after 8 s" in gateway.cache_log()
        answers(gateway, "http://open.example/again", 200)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")
