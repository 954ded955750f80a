"""The reload gate under load: what it holds back and refuses changes no answer,
whatever is killed meanwhile.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.waiting import pause, wait_for

from .curl import answer, curl
from .gateway import Gateway, NewGateway
from .load import Load, load
from .origin import Origins

GATED = "version: 1\ndefaults: {reload_gate: {since: 1h, denials: 2}}\nrules:\n"
ALWAYS = "  - {name: always, action: allow, hosts: [always.example]}\n"
OPENED = (
    GATED + ALWAYS + "  - {name: toggled, action: allow, hosts: [toggled.example]}\n"
)
CLOSED = (
    GATED
    + ALWAYS
    + "  - {name: toggled, action: deny, hosts: [toggled.example], reason: Closed.}\n"
)
USERS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")  # of the host that the edit closes
LOAD = (
    ("http", "always.example"),
    ("https", "toggled.example"),
    ("http", "never.example"),
)


def reload(gateway: Gateway, *options: str) -> tuple[int, str]:
    """Run `squidkeeper reload` as root."""
    done = gateway.command("reload", *gateway.places[:-1], *options)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def used(gateway: Gateway) -> Iterator[Load]:
    """Three clients have used the host that an edit would close; requests go on while
    the block runs.
    """
    for client in USERS:
        answers(gateway, "http://toggled.example/", 200, client)
    gateway.logged("http://toggled.example/")
    with load(gateway, *LOAD) as running:
        yield running


def told(gateway: Gateway, what: str) -> None:
    wait_for(lambda: what in gateway.cache_log(), f"{what!r} in cache.log")


def answers(gateway: Gateway, url: str, status: int, client: str = "127.0.0.1") -> None:
    """Wait until this is the answer: Squid denies what it asked helpers that were
    killed, or before a reconfigure.
    """

    wait_for(
        lambda: answer(gateway, url, client=client).status == status,
        f"{status} of {url}",
    )


def denied_always(gateway: Gateway, running: Load) -> None:
    # a helper that is killed can take Squid's worker with it
    cut_off = {None} if gateway.fatal() else set()
    assert {403} <= {*running.statuses("never.example")} <= {403} | cut_off


def denied_nothing_else(running: Load) -> None:
    """Squid itself denies what it asked a helper that was killed."""
    found = {
        (answer.url.split("/")[2], answer.rule)
        for answer in running.answers
        if answer.status == 403
    }
    assert {(host, rule) for host, rule in found if rule != "ERR_ACCESS_DENIED"} == {
        ("never.example", "default")
    }


def judges(gateway: Gateway) -> list[int]:
    """List the processes that judge an edit of a gateway."""
    state = os.fsencode(gateway.root / "state")
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"--judge" in words and state in words:
                found.append(int(entry.parent.name))
    return found


def test_an_edit_that_would_deny_what_clients_use_is_refused_until_root_accepts_it(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(OPENED).start()
    with used(gateway) as running:
        gateway.write("policy.yaml", CLOSED)
        told(gateway, "the reload gate refuses revision")
        running.at_least(30)
        gateway.kill_helpers("acl")
        # helpers that start have the policy in force
        answers(gateway, "http://toggled.example/after", 200)
        running.at_least(30)
        status, said = reload(gateway)
        assert status == 1, said
        named = [
            line.split(":")[0]
            for line in said.splitlines()
            if line.startswith("client ")
        ]
        assert {
            f"client {user} would be denied toggled.example by toggled"
            for user in USERS
        } <= {*named}
        denied_nothing_else(running)
        assert reload(gateway, "--force")[0] == 0
        wait_for(
            lambda: curl(gateway, "http://toggled.example/x").rule == "toggled",
            "the accepted edit",
        )
    denied_always(gateway, running)
    assert not [
        answer
        for answer in running.answers
        if "always" in answer.url and answer.rule == "default"
    ]
    assert not [url for url in origins.urls() if "never.example" in url]


@pytest.mark.long
def test_without_a_verdict_an_edit_comes_in_force_after_20_seconds(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(OPENED).start()
    with used(gateway) as running:
        gateway.write("policy.yaml", CLOSED)
        [stopped] = wait_for(lambda: judges(gateway), "the judge")
        os.kill(stopped, signal.SIGSTOP)
        running.at_least(10)
        assert "without a verdict" not in gateway.cache_log()
        answers(gateway, "http://toggled.example/after", 200)
        told(gateway, "is in force without a verdict of the reload gate")
        wait_for(
            lambda: curl(gateway, "http://toggled.example/x").rule == "toggled",
            "the edit",
        )
    denied_always(gateway, running)


@pytest.mark.long
def test_a_judge_that_is_killed_again_and_again_opens_nothing(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(OPENED).start()
    with used(gateway) as running:
        gateway.write("policy.yaml", CLOSED)
        killed = 0
        while killed < 5:
            for pid in judges(gateway):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            pause(0.05, "the pace of the killing")
        told(gateway, "the reload gate refuses revision")
        running.at_least(30)
        assert "ended with status -9" in gateway.cache_log()
    assert 403 not in running.statuses("toggled.example")
    denied_always(gateway, running)
