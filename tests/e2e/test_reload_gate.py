"""The reload gate under load: what it holds back and refuses changes no answer, whatever is killed meanwhile."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.waiting import pause, wait_for

from .curl import CurlFailed, curl
from .gateway import Gateway, NewGateway
from .load import Load, load
from .maintained import maintained
from .origin import Origins

GATED = "version: 1\ndefaults: {reload_gate: {since: 1h, denials: 2}}\nrules:\n"
ALWAYS = "  - {name: always, action: allow, hosts: [always.example]}\n"
OPENED = GATED + ALWAYS + "  - {name: toggled, action: allow, hosts: [toggled.example]}\n"
CLOSED = GATED + ALWAYS + "  - {name: toggled, action: deny, hosts: [toggled.example], reason: Closed.}\n"
USERS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")  # of the host that the edit closes
LOAD = (("http", "always.example"), ("https", "toggled.example"), ("http", "never.example"))


def reload(gateway: Gateway, *options: str) -> tuple[int, str]:
    """Run `squidkeeper reload` as root."""
    places = ("--policy", f"{gateway.policy_folder}", "--state", f"{gateway.root}/state")
    command = [f"{gateway.root}/bin/squidkeeper", "reload", *places, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def used(gateway: Gateway) -> Iterator[Load]:
    """Three clients have used the host that an edit would close; requests go on while the block runs."""
    for client in USERS:
        answers(gateway, "http://toggled.example/", 200, client)
    gateway.logged("http://toggled.example/")
    with load(gateway, *LOAD) as running:
        yield running


def told(gateway: Gateway, what: str) -> None:
    wait_for(lambda: what in gateway.cache_log(), f"{what!r} in cache.log")


def kill_helpers(gateway: Gateway) -> None:
    for pid in gateway.helpers("acl"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def answers(gateway: Gateway, url: str, status: int, client: str = "127.0.0.1") -> None:
    """Wait until this is the answer: Squid denies what it asked helpers that were killed, or before a reconfigure."""

    def is_answered() -> bool:
        with suppress(CurlFailed):  # a helper that is killed can take Squid's worker with it
            return curl(gateway, url, client=client).status == status
        return False

    wait_for(is_answered, f"{status} of {url}")


def judges(maintain: int) -> list[int]:
    children = Path(f"/proc/{maintain}/task/{maintain}/children").read_text().split()
    return [int(child) for child in children]


def test_an_edit_that_would_deny_what_clients_use_is_refused_until_root_accepts_it(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(OPENED).start()
    with maintained(gateway, "--policy", str(gateway.policy_folder)), used(gateway) as running:
        gateway.write("policy.yaml", CLOSED)
        told(gateway, "the reload gate refuses revision")
        running.at_least(30)
        kill_helpers(gateway)
        answers(gateway, "http://toggled.example/after", 200)  # helpers that start have the policy in force
        running.at_least(30)
        status, said = reload(gateway)
        assert status == 1, said
        named = [line.split(":")[0] for line in said.splitlines() if line.startswith("client ")]
        assert {f"client {user} would be denied toggled.example by toggled" for user in USERS} <= {*named}
        assert 403 not in running.statuses("toggled.example")
        assert reload(gateway, "--force")[0] == 0
        wait_for(lambda: curl(gateway, "http://toggled.example/x").rule == "toggled", "the accepted edit")
    assert {*running.statuses("never.example")} == {403}
    assert 403 not in [answer.status for answer in running.answers if "always" in answer.url]
    assert not [url for url in origins.urls() if "never.example" in url]


@pytest.mark.long
def test_an_edit_that_closes_what_one_client_uses_comes_in_force(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(OPENED).start()
    with maintained(gateway, "--policy", str(gateway.policy_folder)):
        answers(gateway, "http://toggled.example/", 200, USERS[0])
        gateway.logged("http://toggled.example/")
        gateway.write("policy.yaml", CLOSED)
        told(gateway, "the reload gate judges revision")
        wait_for(lambda: curl(gateway, "http://toggled.example/x").rule == "toggled", "the edit")
    assert "without a verdict" not in gateway.cache_log()


@pytest.mark.long
def test_without_a_judge_an_edit_comes_in_force_after_20_seconds(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(OPENED).start()
    with used(gateway) as running:
        gateway.write("policy.yaml", CLOSED)
        told(gateway, "the reload gate judges revision")
        since = time.monotonic()
        kill_helpers(gateway)
        answers(gateway, "http://toggled.example/after", 200)
        told(gateway, "is in force without a verdict of the reload gate")
        assert time.monotonic() - since > 15
        wait_for(lambda: curl(gateway, "http://toggled.example/x").rule == "toggled", "the edit")
    assert {*running.statuses("never.example")} == {403}


@pytest.mark.long
def test_a_judge_that_is_killed_again_and_again_opens_nothing(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(OPENED).start()
    with maintained(gateway, "--policy", str(gateway.policy_folder)) as said, used(gateway) as running:
        [maintain] = [int(pid) for pid in _processes(f"{gateway.root}/bin/squidkeeper maintain")]
        gateway.write("policy.yaml", CLOSED)
        killed = 0
        while killed < 5:
            for pid in judges(maintain):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            pause(0.05, "the pace of the killing")
        told(gateway, "the reload gate refuses revision")
        running.at_least(30)
        assert "ended with status -9" in said.read_text()
        wait_for(lambda: "reload-gate: works again" in said.read_text(), "the judge to work")
    assert 403 not in running.statuses("toggled.example")
    assert {*running.statuses("never.example")} == {403}


@pytest.mark.long
def test_edits_one_after_the_other_settle_on_the_last(new_gateway: NewGateway, origins: Origins) -> None:
    """Each that closes the host is refused or replaced; none changes an answer but the one that root accepts."""
    gateway = new_gateway(OPENED).start()
    with maintained(gateway, "--policy", str(gateway.policy_folder)), used(gateway) as running:
        for turn in range(20):
            text = (CLOSED, OPENED, OPENED + "  - [")[turn % 3]
            gateway.write("policy.yaml", text + f"# {turn}\n")
            kill_helpers(gateway)
            pause(0.5, "the pace of the edits")
        gateway.write("policy.yaml", CLOSED + "# last\n")
        told(gateway, "the reload gate refuses revision")
        running.at_least(30)
        assert not {"policy-unavailable", "ERR_ACCESS_DENIED"} & {one.rule for one in running.answers[-30:]}
        gateway.write("policy.yaml", OPENED + "  - {name: later, action: allow, hosts: [later.example]}\n")
        wait_for(lambda: curl(gateway, "http://later.example/").status == 200, "the last edit")
    assert "toggled" not in {one.rule for one in running.answers}
    assert {*running.statuses("never.example")} == {403}


def _processes(command: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if command in entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(entry.parent.name)
    return found
