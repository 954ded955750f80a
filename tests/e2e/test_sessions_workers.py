"""Sessions of a gateway with several workers: each worker knows them all, at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event

import pytest

from tests.waiting import wait_for

from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply
from .session_service import Service

pytestmark = pytest.mark.long
VM, OTHER = "127.0.0.13", "127.0.0.12"
POLICY = """
version: 1
session_networks: [127.0.0.8/29]
roles: {reader: {ttl: 1h}, writer: {ttl: 1h}}
rules:
  - {name: read, action: allow, clients: [reader, writer], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
"""
DOCS, UPLOAD = "http://docs.example/", "http://upload.example/"
# the kernel gives each to one of two workers
CONNECTIONS = 24
AT_WORK = 4


@pytest.fixture(scope="module")
def started(new_gateway: NewGateway) -> Iterator[Service]:
    gateway = new_gateway(POLICY, options=("--workers", "2"))
    service = Service(gateway)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, gateway.layout.sessions_run)
        stack.callback(service.kill)
        gateway.start()
        service.start()
        yield service


@pytest.fixture
def service(started: Service) -> Iterator[Service]:
    yield started
    started.call("PUT", "/v1/sessions", {"sessions": []})


def told(reply: Reply) -> object:
    return reply.rule or reply.status


def ask(gateway: Gateway, client: str, url: str) -> object:
    with Raw(gateway, client) as raw:
        return told(raw.get(url, url.split("/")[2]))


def ask_both(gateway: Gateway, url: str) -> list[object]:
    """Ask on so many connections that both workers are asked; the answers."""
    before = len(gateway.log())
    answers = [ask(gateway, VM, url) for _ in range(CONNECTIONS)]

    def asked() -> list[dict[str, object]]:
        return [line for line in gateway.log()[before:] if line["client"] == VM]

    wait_for(lambda: len(asked()) == CONNECTIONS, "each record")
    assert {line["worker"] for line in asked()} == {"1", "2"}
    return answers


@contextmanager
def at_work(gateway: Gateway) -> Iterator[None]:
    """Let another client ask all the time, by both workers."""
    ended = Event()

    def work() -> set[object]:
        answers = set[object]()
        while not ended.is_set():
            answers.add(ask(gateway, OTHER, DOCS))
        return answers

    with ThreadPoolExecutor(AT_WORK) as pool:
        working = [pool.submit(work) for _ in range(AT_WORK)]
        try:
            yield
        finally:
            ended.set()
        assert [worker.result() for worker in working] == [{200}] * AT_WORK


def test_a_session_holds_in_each_worker_at_the_answer_and_ends_in_each(
    service: Service, origins: Origins
) -> None:
    gateway = service.gateway
    service.put("other", "reader", address=OTHER)
    with at_work(gateway):
        wait_for(lambda: {*ask_both(gateway, DOCS)} == {"session-required"})
        service.put("first", "writer", address=VM)
        assert ask_both(gateway, UPLOAD) == [200] * CONNECTIONS
        service.delete("first")
        service.put("second", "reader", address=VM)
        assert ask_both(gateway, UPLOAD) == ["default"] * CONNECTIONS
        assert ask_both(gateway, DOCS) == [200] * CONNECTIONS
        service.delete("second")
        wait_for(lambda: ask(gateway, VM, DOCS) == "session-required")
        wait_for(lambda: {*ask_both(gateway, DOCS)} == {"session-required"})


def test_a_tunnel_of_either_worker_is_outdated_for_a_successor(
    service: Service, origins: Origins
) -> None:
    gateway = service.gateway
    with ExitStack() as stack:
        stack.enter_context(service.without_cut())
        service.put("first", "writer", address=VM)
        before = len(gateway.log())
        opened = [
            stack.enter_context(tunnel(gateway, "docs.example:443", client=VM))
            for _ in range(CONNECTIONS)
        ]
        for raw in opened:
            assert told(raw.get("/", "docs.example")) == 200
        workers = {line["worker"] for line in gateway.log()[before:]}
        assert workers == {"1", "2"}
        service.delete("first")
        service.put("second", "writer", address=VM)
        seen = len(origins.seen)
        answers = [told(raw.get("/", "docs.example")) for raw in opened]
        assert answers == ["tunnel-outdated"] * CONNECTIONS
        assert origins.seen[seen:] == []
