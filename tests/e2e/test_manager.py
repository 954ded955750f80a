"""Squid's own counters: for this machine alone, never for an agent, and never on the
record of requests.
"""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from squidkeeper.base.squid_counters import PAGE, read_counters
from tests.waiting import wait_for

from .curl import curl
from .dns import PUBLIC, Names
from .gateway import Gateway, NewGateway
from .origin import Origins
from .raw import Raw, tunnel
from .reply import Reply

AGENT = "127.0.0.9"  # not the address that is opened: as far from it as a VM's

# As open as a policy can be: private hosts, every port, and a rewrite straight to the
# page.
POLICY = """
version: 1
rules:
  - name: all
    action: allow
    hosts: [.loop.example, loop.example, squidkeeper, 127.0.0.1, "::1", localhost, rewritten.example, good.example]
    ports: [80, 443, "3000-4000"]
    private: true
rewrites:
  - name: to-squid
    schemes: [http]
    hosts: [rewritten.example]
    to: "http://loop.example:PORT/squid-internal-mgr{path}"
    private: true
"""


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway, names: Names) -> Gateway:
    gateway = new_gateway(POLICY)
    gateway.write("policy.yaml", POLICY.replace("PORT", str(gateway.address[1])))
    for name in ("loop.example", "squidkeeper", "localhost"):
        names.set(name, ["127.0.0.1"])
    return gateway.start()


def request(target: str, host: str, *headers: str, method: str = "GET") -> str:
    return (
        "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *headers])
        + "\r\n\r\n"
    )


def test_the_counters_are_there_without_dns(new_gateway: NewGateway) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.99", 53))
        gateway = new_gateway("version: 1", nameserver="127.0.0.99").start()
        assert [read_counters(*gateway.address).problem for _ in range(2)] == [None] * 2


def plain_attacks() -> Iterator[str]:
    """Requests for the page; PORT stands for the gateway's port."""
    hosts = [
        "squidkeeper",
        "squidkeeper:PORT",
        "127.0.0.1:PORT",
        "loop.example:PORT",
        "localhost:PORT",
    ]
    paths = [
        PAGE,
        "/%73quid-internal-mgr/counters",
        "/%2573quid-internal-mgr/counters",
        "/SQUID-internal-mgr/counters",
    ]
    paths += [
        f"/{PAGE}",
        f"/.{PAGE}",
        f"/x/..{PAGE}",
        "/squid-internal-mgr/./counters",
        f"{PAGE}?x",
        f"{PAGE}#x",
    ]
    paths += [
        "/squid-internal-mgr/%63ounters",
        "/squid-internal-mgr//counters",
        "/squid-internal-mgr%2fcounters",
    ]
    for path in paths:
        yield request(path, "squidkeeper:PORT")
        yield from (request(f"http://{host}{path}", host) for host in hosts)
    for header in (
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
        "Via:",
        "Client-IP: 127.0.0.1",
    ):
        yield request(PAGE, "squidkeeper", header)
        yield request(f"http://squidkeeper:PORT{PAGE}", "squidkeeper:PORT", header)
    yield request("cache_object://127.0.0.1:PORT/counters", "127.0.0.1")
    yield request("http://rewritten.example/counters", "rewritten.example")
    yield request(
        f"http://127.0.0.1:PORT{PAGE}",
        "127.0.0.1:PORT",
        "Max-Forwards: 0",
        method="TRACE",
    )


def agents_lines(gateway: Gateway, before: int) -> list[object]:
    return [line for line in gateway.log()[before:] if line["client"] == AGENT]


def is_the_page(reply: Reply) -> bool:
    return b"client_http" in reply.body


@pytest.mark.parametrize(
    "attack", [*plain_attacks()], ids=lambda attack: attack.strip().replace("\r\n", " ")
)
def test_no_agent_reaches_the_page_through_the_proxy(
    gateway: Gateway, origins: Origins, attack: str
) -> None:
    before = len(gateway.log())
    with Raw(gateway, AGENT) as client:
        reply = client.send(attack.replace("PORT", str(gateway.address[1]))).answer()
    assert not is_the_page(reply)
    wait_for(lambda: agents_lines(gateway, before), "its log line")
    assert PAGE not in [seen.target for seen in origins.seen]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "loop.example", "localhost", "squidkeeper"]
)
def test_no_agent_reaches_the_page_through_a_tunnel(
    gateway: Gateway, host: str
) -> None:
    authority = f"{host}:{gateway.address[1]}"
    for inner in (
        request(PAGE, authority),
        request(f"http://{authority}{PAGE}", authority),
        request(PAGE, host),
    ):
        with Raw(gateway, AGENT) as client:  # in plain bytes, as to another proxy
            client.connect(authority)
            assert not is_the_page(client.send(inner).answer())
        sni = host if host[0].isalpha() else None
        with (
            suppress(OSError),
            tunnel(gateway, authority, sni, AGENT) as client,
        ):  # there is no TLS behind that port
            assert not is_the_page(client.send(inner).answer())


def test_this_machine_reads_the_page_and_it_is_not_on_record(
    gateway: Gateway, origins: Origins
) -> None:
    before = len(gateway.log())
    first = read_counters(*gateway.address)
    assert first.problem is None
    curl(gateway, "http://good.example/counted")
    second = read_counters(*gateway.address)
    assert second.values["client_http.requests"] > first.values["client_http.requests"]
    gateway.logged("http://good.example/counted", before)
    assert [
        line
        for line in gateway.log()[before:]
        if PAGE in line["url"] and line["status"] == 200
    ] == []


def test_this_machine_reaches_no_other_host_that_has_squids_name(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    before = len(origins.seen)
    names.set("squidkeeper", [PUBLIC])
    try:
        with Raw(gateway) as client:
            reply = client.send(
                request(f"http://squidkeeper{PAGE}", "squidkeeper")
            ).answer()
    finally:
        names.set("squidkeeper", ["127.0.0.1"])
    assert reply.status == 502
    assert origins.seen[before:] == []


@pytest.mark.parametrize(
    "page",
    ["menu", "info", "config", "shutdown", "objects", "counters/x", "countersx", ""],
)
def test_this_machine_reads_no_other_page(gateway: Gateway, page: str) -> None:
    before = len(gateway.log())
    with Raw(gateway) as client:
        reply = client.send(
            request(f"/squid-internal-mgr/{page}", "squidkeeper")
        ).answer()
    assert reply.status == 403
    assert (
        wait_for(lambda: gateway.log()[before:], "its log line")[0]["rule"]
        == "invalid-request"
    )


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "PURGE", "OPTIONS"])
def test_this_machine_gets_the_page_and_does_nothing_else_with_it(
    gateway: Gateway, method: str
) -> None:
    with Raw(gateway) as client:
        reply = client.send(
            request(PAGE, "squidkeeper", "Content-Length: 0", method=method)
        ).answer("HEAD")
    assert reply.status in (403, 405, 501)


def test_what_came_through_a_proxy_is_not_from_this_machine(gateway: Gateway) -> None:
    with Raw(gateway) as client:
        reply = client.send(
            request(PAGE, "squidkeeper", "Via: 1.1 squidkeeper")
        ).answer()
    assert (reply.status, reply.rule) == (403, "invalid-request")


def test_a_squid_on_another_address_is_read_from_loopback(
    new_gateway: NewGateway,
) -> None:
    gateway = new_gateway("version: 1\n", at="192.168.137.1").start()
    wait_for(
        lambda: "client_http.requests" in read_counters(*gateway.address).values,
        "Squid's counters",
    )
    with Raw(gateway, "192.168.137.1") as client:
        reply = client.send(request(PAGE, "squidkeeper")).answer()
    assert reply.status == 403


def test_without_a_squid_the_answer_says_so_at_once(gateway: Gateway) -> None:
    found = read_counters("127.0.0.1", 1)
    assert found.values == {}
    assert "refused" in str(found.problem)
