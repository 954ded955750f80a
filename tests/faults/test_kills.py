"""Helpers killed under load: nothing is allowed that should not be, and Squid
stays up.
"""

import os
import signal
from contextlib import ExitStack
from functools import partial

import pytest

from tests.e2e.curl import CurlFailed, answer, curl
from tests.e2e.gateway import Gateway, NewGateway
from tests.e2e.load import load
from tests.e2e.origin import Origins
from tests.e2e.raw import Raw
from tests.waiting import wait_for

from .conftest import prepared
from .expect import EXPECTED, HELPERS, POLICY, SQUIDS_ASSERTION, only_what_may_arrive

KILLS = 8


@pytest.mark.parametrize("kind", HELPERS)
def test_a_helper_killed_again_and_again_lets_nothing_through(
    gateway: Gateway, origins: Origins, kind: str
) -> None:
    squid, before = gateway.pid, len(gateway.fatal())
    with load(gateway, *EXPECTED, ("http", "rewritten.example")) as running:
        for _ in range(KILLS):
            running.at_least(20)
            wait_for(lambda: gateway.kill_helpers(kind), f"a helper: {kind}")
        running.at_least(20)
        wait_for(
            lambda: answer(gateway, "http://open.example/after").status == 200,
            "service after the kills",
        )
    fatal = gateway.fatal()[before:]
    assert [line for line in fatal if SQUIDS_ASSERTION not in line] == []
    cut_off = {None} if fatal else set()
    assert fatal or gateway.pid == squid
    assert {200} <= set(running.statuses("open.example")) <= {200, 403} | cut_off
    assert {403} <= set(running.statuses("closed.example")) <= {403} | cut_off
    assert {403} <= set(running.statuses("paths.example")) <= {403} | cut_off
    only_what_may_arrive(origins)


@pytest.mark.parametrize("kind", HELPERS)
def test_a_stopped_helper_delays_and_lets_nothing_through(
    gateway: Gateway, origins: Origins, kind: str
) -> None:
    expected = {"open": 200, "closed": 403, "paths": 403, "rewritten": 200}
    for host in ("open", "paths", "rewritten", "injected"):
        wait_for(
            partial(answer, gateway, f"https://{host}.example/open"), "every helper"
        )
    origins.forget()
    with ExitStack() as stack:
        clients = {host: stack.enter_context(Raw(gateway)) for host in expected}
        with gateway.stopped_helpers(kind):
            for host, client in clients.items():
                client.send(
                    f"GET http://{host}.example/stopped HTTP/1.1\r\nHost: {host}.example\r\n\r\n"
                )
            wait_for(lambda: gateway.unread() == 0, "Squid to read every request")
        assert {
            host: client.answer().status for host, client in clients.items()
        } == expected
    only_what_may_arrive(origins)


def test_a_page_of_a_missing_helper_says_so(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = prepared(new_gateway(POLICY))
    program = gateway.root / "bin/squidkeeper"
    program.unlink()
    program.symlink_to("/bin/false")
    gateway.start()
    reply = wait_for(
        partial(answer, gateway, "http://open.example/"),
        "an answer, where Squid was not hit by its own assertion",
    )
    assert (reply.status, reply.denial) == (403, "ERR_ACCESS_DENIED"), reply.text
    assert "rule policy-unavailable: a helper failed" in (reply.reason or "")
    assert {line["rule"] for line in gateway.log() if line["status"] == 403} == {
        "policy-unavailable"
    }
    with pytest.raises(CurlFailed):
        curl(gateway, "https://open.example/")
    assert origins.connections == []
    assert [line for line in gateway.fatal() if SQUIDS_ASSERTION not in line] == []


@pytest.mark.one_worker("Squid goes on while one worker runs")
def test_without_the_program_squid_ends_once_its_worker_starts_anew(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = prepared(new_gateway(POLICY)).start()
    program = gateway.root / "bin/squidkeeper"
    away = program.rename(program.with_name("away"))
    os.kill(gateway.pid, signal.SIGKILL)
    wait_for(lambda: not gateway.runs, "Squid to end")
    with pytest.raises(CurlFailed):
        curl(gateway, "http://open.example/")
    assert origins.connections == []
    away.rename(program)
    gateway.start()
    assert curl(gateway, "http://open.example/").status == 200
