"""Helpers killed under load: nothing is allowed that should not be, and Squid stays up."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest

from .curl import CurlFailed, curl
from .gateway import Gateway, NewGateway
from .load import load
from .network import wait_for
from .origin import Origins
from .raw import Raw
from .reply import Reply

KILLS = 20

# Squid 6 may choose a helper in the very instant that it learns of its death, and fails an assertion of its own:
# about once in a hundred kills. It is started again within a second; nothing gets through meanwhile.
SQUIDS_OWN = 'Write.cc:38: "fd_table[conn->fd].flags.open"'

POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: paths, action: allow, hosts: [paths.example], paths: [/open/**]}
  - {name: rewritten, action: allow, hosts: [rewritten.example]}
  - {name: injected, action: allow, hosts: [injected.example]}
rewrites:
  - {name: away, hosts: [rewritten.example], to: "https://target.example{path}"}
secrets:
  token: {file: secrets/token}
credentials:
  - {name: injected, hosts: [injected.example], bearer: token}
"""
TOKEN = "e2e-token-under-kills"
CLIENTS = [
    ("http", "open.example"),
    ("http", "closed.example"),
    ("http", "paths.example"),
    ("http", "rewritten.example"),
    ("https", "rewritten.example"),
    ("https", "injected.example"),
]
HELPERS = ["acl --scope host", "acl --scope request", "rewrite", "credential"]


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    gateway = new_gateway(POLICY)
    gateway.secret("token", TOKEN)
    return gateway.start()


@pytest.mark.parametrize("kind", HELPERS)
def test_a_helper_killed_twenty_times_lets_nothing_through(gateway: Gateway, origins: Origins, kind: str) -> None:
    squid, before = gateway.pid, len(gateway.fatal())
    with load(gateway, *CLIENTS) as running:
        for _ in range(KILLS):
            running.at_least(20)
            for pid in wait_for(lambda: gateway.helpers(kind), f"a helper: {kind}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        running.at_least(20)
        wait_for(lambda: curl(gateway, "http://open.example/after").status == 200, "service after the kills")
    fatal = gateway.fatal()[before:]
    assert [line for line in fatal if SQUIDS_OWN not in line] == []
    cut_off = {None} if fatal else set()
    assert fatal or gateway.pid == squid
    assert {200} <= set(running.statuses("open.example")) <= {200, 403} | cut_off
    assert {403} <= set(running.statuses("closed.example")) <= {403} | cut_off
    assert {403} <= set(running.statuses("paths.example")) <= {403} | cut_off
    only_what_may_arrive(origins)


def only_what_may_arrive(origins: Origins) -> None:
    assert {url.split("/")[2] for url in origins.urls()} <= {"open.example", "target.example", "injected.example"}
    assert {seen.port for seen in origins.seen if "target" in seen.url} <= {443}
    bare = [
        seen.url
        for seen in origins.seen
        if "injected" in seen.url and seen.values("Authorization") != [f"Bearer {TOKEN}"]
    ]
    assert bare == []
    assert [seen.url for seen in origins.seen if "injected" not in seen.url and seen.values("Authorization")] == []


@pytest.mark.parametrize("kind", HELPERS)
def test_a_stopped_helper_delays_and_lets_nothing_through(gateway: Gateway, origins: Origins, kind: str) -> None:
    expected = {"open": 200, "closed": 403, "paths": 403, "rewritten": 200}
    for host in ("open", "paths", "rewritten", "injected"):
        curl(gateway, f"https://{host}.example/open")  # so that every helper is there
    origins.forget()
    with ExitStack() as stack, stopped(gateway.helpers(kind)) as go_on:
        clients = {host: stack.enter_context(Raw(gateway)) for host in expected}
        for host, client in clients.items():
            client.send(f"GET http://{host}.example/stopped HTTP/1.1\r\nHost: {host}.example\r\n\r\n")
        wait_for(lambda: gateway.unread() == 0, "Squid to read every request")
        go_on()
        answers = {host: client.answer() for host, client in clients.items()}
    assert {host: answer.status for host, answer in answers.items() if answer} == expected
    only_what_may_arrive(origins)


@contextmanager
def stopped(pids: list[int]) -> Iterator[Callable[[], None]]:
    """Stop these processes until the block ends or the function it is given is called."""

    def go_on() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield go_on
    finally:
        go_on()


def test_a_page_of_a_missing_helper_says_so(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(POLICY)
    gateway.secret("token", TOKEN)
    program = gateway.root / "bin/squidkeeper"
    program.unlink()
    program.symlink_to("/bin/false")
    gateway.start()
    for url in ("http://open.example/", "https://open.example/"):
        reply = wait_for(partial(answer, gateway, url), "an answer, where Squid was not hit by its own assertion")
        assert (reply.status, reply.rule) == (403, "policy-unavailable"), reply.text
    assert origins.connections == []
    assert [line for line in gateway.fatal() if SQUIDS_OWN not in line] == []


def answer(gateway: Gateway, url: str) -> Reply | None:
    try:
        return curl(gateway, url)
    except CurlFailed:
        return None
