"""Three gateways of an orchestrator, of which one was away; and machines that are warm
before they have work.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.waiting import wait_for

from .expect import allowed
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel
from .session_service import Service

pytestmark = pytest.mark.long
VM, OTHER, THIRD = "127.0.0.13", "127.0.0.12", "127.0.0.11"
SECRET, NEW_SECRET = (f"value-that-a-{name}-machine-brings" for name in ("warm", "hot"))
POLICY = """
version: 1
session_networks: [127.0.0.8/29]
roles:
  agent: {variables: {repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}}}
  reader: {ttl: 1h}
  writer: {ttl: 1h}
rules:
  - {name: clone, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: read, action: allow, clients: [agent, reader, writer], hosts: [docs.example]}
  - {name: write, action: allow, clients: [writer], hosts: [upload.example]}
secrets: {key: {session: true, hosts: [git.example]}}
credentials:
  - {name: git, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"], bearer: key}
"""
DOCS, UPLOAD = "http://docs.example/", "http://upload.example/"
OWN = "https://git.example/acme/app/info"


@pytest.fixture(scope="module")
def services(new_gateway: NewGateway) -> Iterator[list[Service]]:
    with ExitStack() as stack:
        made: list[Service] = []
        for _ in range(3):
            gateway = new_gateway(POLICY)
            service = Service(gateway)
            stack.callback(shutil.rmtree, gateway.layout.sessions_run)
            stack.callback(service.kill)
            gateway.start()
            service.start()
            made.append(service)
        for value in (SECRET, NEW_SECRET):
            made[0].gateway.remember(value)
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(services: list[Service]) -> Iterator[None]:
    yield
    for service in services:
        service.call("PUT", "/v1/sessions", {"sessions": []})


def ask(gateway: Gateway, client: str, url: str) -> object:
    with Raw(gateway, client) as raw:
        reply = raw.get(url, url.split("/")[2])
        return reply.rule or reply.status


def test_a_gateway_that_was_away_is_put_right_by_the_whole_list(
    services: list[Service], origins: Origins
) -> None:
    for service in services:
        service.put("kept", "reader", address=OTHER)
        service.put("gone", "writer", address=VM)
    away = services[2]
    away.kill()
    for service in services[:2]:
        service.delete("gone")
        service.put("new", "reader", address=VM)
        service.put("third", "writer", address=THIRD)
    assert ask(away.gateway, VM, UPLOAD) == 200  # it knows of no change
    away.start()
    number = away.call("GET", "/v1/sessions/kept").body["number"]
    fields = {"role": "reader", "address": OTHER}
    listed = [
        {"name": "kept", **fields},
        {"name": "new", **fields, "address": VM},
        {"name": "third", "role": "writer", "address": THIRD},
    ]
    with tunnel(away.gateway, "docs.example:443", client=OTHER) as kept:
        assert kept.get("/", "docs.example").status == 200
        taken = away.call("PUT", "/v1/sessions", {"sessions": listed})
        assert [one["name"] for one in taken.body["ended"]] == ["gone"]
        results = [one["result"] for one in taken.body["sessions"]]
        assert results[0] in ("kept", "extended")
        assert results[1:] == ["created", "created"]
        assert kept.get("/", "docs.example").status == 200
    assert away.call("GET", "/v1/sessions/kept").body["number"] == number
    for service in services:
        asked = {
            (client, url): ask(service.gateway, client, url)
            for client in (OTHER, VM, THIRD)
            for url in (DOCS, UPLOAD)
        }
        assert [*asked.values()] == [200, "default", 200, "default", 200, 200]


def test_a_warm_machine_has_nothing_at_its_former_address_after_a_change(
    services: list[Service], origins: Origins
) -> None:
    service = services[0]
    gateway = service.gateway
    made = service.put("warm", address=OTHER, secrets={"key": SECRET})
    seen = allowed(gateway, origins, OWN, "clone", client=OTHER)
    assert seen.values("Authorization") == [f"Bearer {SECRET}"]
    with tunnel(gateway, "git.example:443", client=OTHER) as old:
        assert old.get("/acme/app/a", "git.example").status == 200
        version = service.call("GET", "/v1/sessions/warm").etag
        change = {"address": VM, "secrets": {"key": NEW_SECRET}}
        where = "/v1/sessions/warm"
        changed = service.call("PATCH", where, change, match=version or "")
        assert changed.status == 200, changed
        wait_for(old.is_ended, "the end")
        again = service.call("PATCH", where, change, match=version or "")
        assert again.status == 412, again
    seen = allowed(gateway, origins, OWN, "clone", client=VM)
    assert seen.values("Authorization") == [f"Bearer {NEW_SECRET}"]
    assert service.call("GET", where).body["number"] == made["number"]
    service.put("successor", "reader", address=OTHER)
    before = len(origins.seen)
    assert ask(gateway, OTHER, "http://git.example/acme/app/info") == "default"
    assert origins.seen[before:] == []
    assert ask(gateway, OTHER, DOCS) == 200
