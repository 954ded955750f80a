"""Sessions behind HAProxy: each client has its own session by its address, in each
connection from the beginning of the session to its end.
"""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.waiting import wait_for

from .gateway import NewGateway
from .haproxy import HAProxy
from .network import VirtualMachine
from .origin import Origins, Stream
from .raw import Raw, tunnel
from .reply import Reply
from .session_service import Service

pytestmark = pytest.mark.long
VM, OTHER = "127.0.0.13", "127.0.0.12"
POLICY = """
version: 1
session_networks: [127.0.0.8/29]
clients:
  office: {networks: [127.0.0.1/32]}
roles: {reader: {ttl: 1h}, writer: {ttl: 1h}}
rules:
  - {name: read, action: allow, clients: [reader, writer, office], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
  - {name: pinned, action: allow, clients: [writer], hosts: [pinned.example], tls: passthrough}
"""
STREAM = Stream(events=(b"data: event\n\n",) * 3000, pause=0.1)


@pytest.fixture(scope="module")
def started(new_gateway: NewGateway, vm: VirtualMachine) -> Iterator[Service]:
    gateway = new_gateway(POLICY, at=vm.gateway, port=3129, options=("--tls",))
    service = Service(gateway)
    haproxy = HAProxy(gateway)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, gateway.layout.sessions_run)
        stack.callback(service.kill)
        stack.callback(haproxy.stop)
        haproxy.start()
        gateway.start()
        service.start()
        yield service


@pytest.fixture
def service(started: Service) -> Iterator[Service]:
    yield started
    started.call("PUT", "/v1/sessions", {"sessions": []})


def over_tls(service: Service, client: str) -> Raw:
    """A kept connection with TLS to the proxy."""
    context = ssl.create_default_context(cafile=str(service.gateway.ca))
    return Raw(service.gateway, client).start_tls(context, service.gateway.address[0])


def open_ones(stack: ExitStack, service: Service, client: str) -> list[Raw]:
    """Open a kept connection in each way to the proxy."""
    return [
        stack.enter_context(way)
        for way in (Raw(service.gateway, client), over_tls(service, client))
    ]


def ask(raw: Raw, url: str) -> object:
    """Ask the proxy for a URL of http: the rule of a denial, or the status."""
    return told(raw.get(url, url.split("/")[2]))


def needs_session(raw: Raw) -> bool:
    return ask(raw, "http://docs.example/") == "session-required"


def told(reply: Reply) -> object:
    return reply.rule or reply.status


def test_each_client_has_the_session_of_its_own_address(
    service: Service, origins: Origins
) -> None:
    with ExitStack() as stack:
        mine = open_ones(stack, service, VM)
        others = open_ones(stack, service, OTHER)
        office = open_ones(stack, service, "127.0.0.1")
        for raw in (*mine, *others):
            wait_for(partial(needs_session, raw), "the sessions")
        service.put("vm", "writer", address=VM)
        for raw in mine:
            assert ask(raw, "http://upload.example/") == 200
        for raw in others:
            assert ask(raw, "http://docs.example/") == "session-required"
        service.put("other", "reader", address=OTHER)
        for raw in others:
            assert ask(raw, "http://upload.example/") == "default"
            assert ask(raw, "http://docs.example/") == 200
        for raw in office:
            assert ask(raw, "http://docs.example/") == 200
            assert ask(raw, "http://upload.example/") == "default"


def test_what_a_session_has_open_through_haproxy_is_cut(
    service: Service, origins: Origins
) -> None:
    origins.answers["docs.example/stream"] = STREAM
    service.put("vm", "writer", address=VM)
    service.put("other", "writer", address=OTHER)
    ca = service.gateway.root.parent / "upstream.crt"
    with ExitStack() as stack:
        theirs: list[Raw] = []
        others: list[Raw] = []
        for client, opened in ((VM, theirs), (OTHER, others)):
            opened += open_ones(stack, service, client)
            for raw in opened:
                assert ask(raw, "http://docs.example/") == 200
            inner = stack.enter_context(
                tunnel(service.gateway, "docs.example:443", client=client)
            )
            inner.send("GET /stream HTTP/1.1\r\nHost: docs.example\r\n\r\n")
            assert b"data: event" in inner.lines()
            passed = stack.enter_context(Raw(service.gateway, client))
            assert passed.connect("pinned.example:443").status == 200
            passed.tls("pinned.example", ca)
            assert passed.get("/", "pinned.example").status == 200
            opened += [inner, passed]
        ended = service.delete("vm")
        assert (ended.status, ended.body) == (204, None)
        for raw in theirs:
            wait_for(raw.is_ended, "the end")
        assert [raw.is_ended() for raw in others] == [False] * 4
        assert ask(others[0], "http://docs.example/") == 200


def test_an_address_used_again_has_nothing_of_its_predecessor_where_nothing_is_cut(
    service: Service, origins: Origins
) -> None:
    with ExitStack() as stack:
        stack.enter_context(service.without_cut())
        gateway = service.gateway
        service.put("first", "writer", address=VM)
        kept = open_ones(stack, service, VM)
        old = stack.enter_context(tunnel(gateway, "upload.example:443", client=VM))
        same = stack.enter_context(tunnel(gateway, "docs.example:443", client=VM))
        assert old.get("/", "upload.example").status == 200
        assert same.get("/", "docs.example").status == 200
        for raw in kept:
            assert ask(raw, "http://upload.example/") == 200
        service.delete("first")
        service.put("second", "reader", address=VM)
        before = len(origins.seen)
        assert told(old.get("/", "upload.example")) == "tunnel-outdated"
        assert told(same.get("/", "docs.example")) == "tunnel-outdated"
        for raw in kept:
            assert ask(raw, "http://upload.example/") == "default"
        assert origins.seen[before:] == []
        for raw in kept:
            assert ask(raw, "http://docs.example/") == 200


def test_what_was_left_to_cut_is_cut_when_the_service_is_there_again(
    service: Service, origins: Origins
) -> None:
    with ExitStack() as stack:
        service.put("vm", "writer", address=VM)
        service.put("other", "writer", address=OTHER)
        theirs = open_ones(stack, service, VM)
        others = open_ones(stack, service, OTHER)
        for raw in (*theirs, *others):
            assert ask(raw, "http://docs.example/") == 200
        with service.without_cut():  # as if it had been killed ahead of the cut
            service.delete("vm")
            assert [raw.is_ended() for raw in theirs] == [False, False]
        for raw in theirs:
            wait_for(raw.is_ended, "the end")
        for raw in others:
            assert ask(raw, "http://docs.example/") == 200
