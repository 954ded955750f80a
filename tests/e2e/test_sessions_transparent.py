"""Sessions of clients without proxy settings: by address alone, from the beginning of a
session to its end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256

import pytest

from tests.waiting import wait_for

from .origin import Origins, Stream
from .raw import Raw
from .reply import Reply
from .session_service import Service
from .transparent import PORTS, Transparent

pytestmark = pytest.mark.long
SECRET = "value-that-a-vm-without-a-proxy-brings"
VM, OTHER = "127.0.0.13", "127.0.0.12"  # past the redirection, on this machine
POLICY = """
version: 1
session_networks: [192.168.137.8/29, 127.0.0.8/29]
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}}}
  reader: {ttl: 1h}
  writer: {ttl: 1h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: read, action: allow, clients: [agent, reader, writer], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
  - {name: pinned, action: allow, clients: [writer], hosts: [pinned.example], tls: passthrough}
secrets: {key: {session: true, hosts: [git.example]}}
credentials:
  - {name: git, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"], bearer: key}
"""
STREAM = Stream(events=(b"data: event\n\n",) * 3000, pause=0.1)
CURL = ("curl", "-sS", "--max-time", "60")
BOTH = pytest.mark.parametrize("scheme", ["https", "http"])


@pytest.fixture(scope="module")
def listeners(transparent: Transparent) -> tuple[str, ...]:
    """Where connections of clients end: as the unit names them."""
    ports = PORTS["transparent"]
    return (
        transparent.gateway.authority,
        *(f"{transparent.vm.gateway}:{port}" for port in ports),
    )


@pytest.fixture(scope="module")
def started(transparent: Transparent, listeners: tuple[str, ...]) -> Iterator[Service]:
    transparent.gateway.remember(SECRET)
    service = Service(transparent.gateway, *listeners)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, transparent.gateway.layout.sessions_run)
        stack.callback(service.kill)
        service.start()
        yield service


@pytest.fixture
def service(started: Service) -> Iterator[Service]:
    yield started
    started.call("PUT", "/v1/sessions", {"sessions": []})


def told(reply: Reply) -> object:
    return reply.rule or reply.status


def over_tls(transparent: Transparent, host: str, client: str = VM) -> Raw:
    return Raw(transparent.https, client).tls(host)


def plain(transparent: Transparent, client: str = VM) -> Raw:
    return Raw(transparent.http, client)


@BOTH
def test_a_vm_has_the_session_of_its_address_and_its_secret(
    transparent: Transparent, service: Service, origins: Origins, scheme: str
) -> None:
    url = f"{scheme}://docs.example/"
    wait_for(lambda: transparent.inside(*CURL, url).rule == "session-required")
    vm = transparent.vm.address
    made = service.put("vm", address=vm, secrets={"key": SECRET})
    before = len(transparent.gateway.log())
    assert transparent.inside(*CURL, "-i", url).text.startswith("HTTP/1.1 200")
    line = transparent.gateway.logged(url, before)
    assert (line["client"], line["session"]) == (vm, str(made["number"]))
    upload = f"{scheme}://upload.example/"
    assert transparent.inside(*CURL, upload).rule == "default"
    origins.forget()
    own = "https://git.example/acme/app/info"
    assert transparent.inside(*CURL, "-i", own).text.startswith("HTTP/1.1 200")
    assert origins.seen[-1].values("Authorization") == [f"Bearer {SECRET}"]
    others = "https://git.example/acme/other/info"
    assert transparent.inside(*CURL, others).rule == "default"
    ended = service.delete("vm")
    assert (ended.status, ended.body) == (204, None)
    wait_for(lambda: transparent.inside(*CURL, url).rule == "session-required")


@BOTH
def test_a_session_with_a_token_asks_no_vm_to_log_in(
    transparent: Transparent, service: Service, origins: Origins, scheme: str
) -> None:
    token = sha256(b"of a client with proxy settings").hexdigest()
    service.put("bot", "writer", token_sha256=token)
    url = f"{scheme}://docs.example/"
    assert transparent.inside(*CURL, url).rule == "session-required"
    service.put("vm", "reader", address=transparent.vm.address)
    assert transparent.inside(*CURL, "-i", url).text.startswith("HTTP/1.1 200")


def test_what_a_session_has_open_is_cut_and_others_go_on(
    transparent: Transparent, service: Service, origins: Origins
) -> None:
    origins.answers["docs.example/stream"] = STREAM
    service.put("vm", "writer", address=VM)
    service.put("other", "writer", address=OTHER)
    ca = transparent.gateway.root.parent / "upstream.crt"
    with ExitStack() as stack:
        opened = {}
        for client in (VM, OTHER):
            kept, streaming = (
                stack.enter_context(over_tls(transparent, "docs.example", client))
                for _ in range(2)
            )
            assert kept.get("/", "docs.example").status == 200
            streaming.send("GET /stream HTTP/1.1\r\nHost: docs.example\r\n\r\n")
            assert b"data: event" in streaming.lines()
            clear = stack.enter_context(plain(transparent, client))
            assert clear.get("/", "docs.example").status == 200
            passed = stack.enter_context(Raw(transparent.https, client))
            passed.tls("pinned.example", ca)
            assert passed.get("/", "pinned.example").status == 200
            opened[client] = [kept, streaming, clear, passed]
        ended = service.delete("vm")
        assert (ended.status, ended.body) == (204, None)
        for raw in opened[VM]:
            wait_for(raw.is_ended, "the end")
        assert [raw.is_ended() for raw in opened[OTHER]] == [False] * 4
        assert opened[OTHER][0].get("/", "docs.example").status == 200


def test_a_successor_has_nothing_of_its_predecessor_where_nothing_is_cut(
    transparent: Transparent, service: Service, origins: Origins
) -> None:
    with ExitStack() as stack:
        stack.enter_context(service.without_cut())
        service.put("first", "writer", address=VM)
        old = stack.enter_context(over_tls(transparent, "upload.example"))
        same = stack.enter_context(over_tls(transparent, "docs.example"))
        clear = stack.enter_context(plain(transparent))
        for raw, host in ((old, "upload"), (same, "docs"), (clear, "upload")):
            assert raw.get("/", f"{host}.example").status == 200
        service.delete("first")
        service.put("second", "reader", address=VM)
        before = len(origins.seen)
        assert told(old.get("/", "upload.example")) == "tunnel-outdated"
        assert told(same.get("/", "docs.example")) == "tunnel-outdated"
        assert told(clear.get("/", "upload.example")) == "default"
        assert origins.seen[before:] == []
        with over_tls(transparent, "docs.example") as fresh:
            assert told(fresh.get("/", "docs.example")) == 200
        assert told(clear.get("/", "docs.example")) == 200
