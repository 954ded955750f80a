"""How fast sessions come and go, by the service on a real Squid.

    .venv/bin/python -m pytest tests/e2e/bench_sessions.py -s

It prints a line for each figure. The clients, the origin and this program share the
machine with the gateway.
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.waiting import pause, wait_for

from .gateway import Gateway, NewGateway
from .origin import Origins, Stream
from .raw import Raw, tunnel
from .session_service import Service

WITHOUT_ROLES = """
version: 1
clients:
  office: {networks: [127.0.0.1/32]}
rules:
  - {name: read, action: allow, clients: [office], hosts: [docs.example]}
"""
POLICY = """
version: 1
session_networks: [127.64.0.0/10]
clients:
  office: {networks: [127.0.0.1/32]}
roles:
  agent:
    variables:
      repo: {type: path, pattern: "[a-z0-9-]+/[a-z0-9._-]+"}
      team: {type: path, pattern: "[a-z0-9-]+"}
      docs: {type: hosts, within: [.example], many: 5}
rules:
  - {name: repo, action: allow, clients: [agent], hosts: [git.example], paths: ["/{session.repo}/**"]}
  - {name: team, action: allow, clients: [agent], hosts: [team.example], paths: ["/{session.team}/**"]}
  - {name: own, action: allow, clients: [agent], hosts: ["{session.docs}"]}
  - {name: read, action: allow, clients: [agent, office], hosts: [docs.example]}
"""
THERE, ROUNDS, CUT, REQUESTS = 5_000, 300, 20, 1_000
FIRST = "http://docs.example/"
KEPT_SECONDS = 2.5
STREAM = Stream(events=(b"data: event\n\n",) * 3000, pause=0.1)


@pytest.fixture
def service(new_gateway: NewGateway) -> Iterator[Service]:
    made = Service(new_gateway(POLICY))
    made.gateway.start()
    try:
        made.start()
        yield made
    finally:
        made.kill()


def tell(what: str, figure: object) -> None:
    sys.stdout.write(f"{what}: {figure}\n")
    sys.stdout.flush()


def shown(what: str, seconds: list[float]) -> None:
    ranked = sorted(1000 * one for one in seconds)
    most = ranked[int(0.99 * len(ranked))]
    tell(f"{what}, p50 and p99, ms", f"{statistics.median(ranked):.0f}, {most:.0f}")


def place(number: int) -> str:
    """Give each its own address."""
    return f"127.64.{number // 200}.{1 + number % 200}"


def put(service: Service, number: int) -> None:
    variables = {
        "repo": f"team-{number}/app",
        "team": f"team-{number}",
        "docs": [f"docs-{number}.example"],
    }
    service.put(f"vm-{number}", address=place(number), variables=variables)


def status(gateway: Gateway, client: str, url: str = FIRST) -> int:
    with Raw(gateway, client) as raw:
        return raw.get(url, url.split("/")[2]).status


def rate(gateway: Gateway, client: str) -> float:
    began = time.perf_counter()
    with Raw(gateway, client) as raw:
        for _ in range(REQUESTS):
            assert raw.get(FIRST, "docs.example").status == 200
    return REQUESTS / (time.perf_counter() - began)


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def spent(gateway: Gateway) -> float:
    """Processor time of all helpers, in seconds."""
    ticks = 0
    for process in gateway.helpers(""):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def private(process: int) -> float:
    """Memory of a process alone, in MB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    lines = [line for line in text.splitlines() if line.startswith("Private_")]
    return sum(int(line.split()[1]) for line in lines) / 1000


@contextmanager
def others(service: Service, number: int) -> Iterator[None]:
    """Have some sessions at work meanwhile."""
    stop = threading.Event()

    def work() -> None:
        random = Random(1)
        while not stop.wait(0.005):
            assert status(service.gateway, place(random.randrange(number))) == 200

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield
        finally:
            stop.set()
            working.result()


def fill(service: Service) -> None:
    """Make thousands of sessions, and have each ask once."""
    gateway = service.gateway
    for _ in range(200):
        status(gateway, "127.0.0.1")
    before = spent(gateway)
    memory = {one: private(one) for one in gateway.helpers("acl")}
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(put, service, number) for number in range(THERE)]:
            done.result()
    took = time.perf_counter() - began
    tell("creations a second, without a pause", f"{THERE / took:.0f}")
    for number in range(THERE):
        url = f"http://docs-{number}.example/"
        assert status(gateway, place(number), url) == 200
    used = spent(gateway) - before
    tell("processor of all helpers for these and a request of each, s", f"{used:.1f}")
    grown = [private(one) - before for one, before in memory.items()]
    tell(f"helpers with {THERE} sessions, MB more", [f"{one:.1f}" for one in grown])


def first_requests(service: Service) -> None:
    gateway, took = service.gateway, []
    with others(service, 200):
        before, began = spent(gateway), time.perf_counter()
        for number in range(THERE, THERE + ROUNDS):
            at = time.perf_counter()
            put(service, number)
            assert status(gateway, place(number)) == 200
            took.append(time.perf_counter() - at)
        seconds = time.perf_counter() - began
    shown("PUT to its first allowed request, others at work", took)
    used = (spent(gateway) - before) / seconds
    rated = f"{ROUNDS / seconds:.0f} creations a second"
    tell(f"processor of all helpers meanwhile, at {rated}", f"{used:.0%} of a core")


def ends(service: Service) -> None:
    gateway, last, cut = service.gateway, [], []
    for number in range(THERE, THERE + CUT):
        with tunnel(gateway, "docs.example:443", client=place(number)) as raw:
            raw.send("GET /stream HTTP/1.1\r\nHost: docs.example\r\n\r\n")
            assert raw.receive()
            at = allowed = time.perf_counter()
            service.delete(f"vm-{number}")
            while raw.receive():
                pass
            cut.append(time.perf_counter() - at)
        while (asked := time.perf_counter()) - at < KEPT_SECONDS:
            if status(gateway, place(number)) == 200:
                allowed = asked
        last.append(allowed - at)
    shown("DELETE to the cut of a download in a tunnel", cut)
    shown("DELETE to the last allowed request", last)


@pytest.mark.timeout(1800)
def test_sessions_come_and_go(service: Service, origins: Origins) -> None:
    gateway = service.gateway
    assert status(gateway, "127.0.0.1") == 200
    wait_for(lambda: service.call("GET", "/v1/sessions").status == 200, "the service")
    pause(3, "at its start the service does not know who left just before")
    origins.answers["docs.example/stream"] = STREAM
    fill(service)
    first_requests(service)
    ends(service)
    ratios = [rate(gateway, place(0)) / rate(gateway, "127.0.0.1") for _ in range(9)]
    tell("a request of a session / of a client", spread(ratios))


@pytest.mark.timeout(600)
def test_roles_cost_who_has_no_session_nothing(
    new_gateway: NewGateway, origins: Origins
) -> None:
    plain, roles = new_gateway(WITHOUT_ROLES).start(), new_gateway(POLICY).start()
    client = "127.0.0.1"
    rate(plain, client), rate(roles, client)
    ratios = [rate(roles, client) / rate(plain, client) for _ in range(9)]
    tell("a policy with roles and no session / without roles", spread(ratios))
