"""What one client can do to the gateway itself, and to the others who use it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway, NewGateway
from .origin import Answer, Origins
from .raw import Raw, tunnel

POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: reading, action: allow, hosts: [read.example], methods: [GET, HEAD]}
  - {name: no-writing, action: deny, hosts: [write.example], methods: [POST, PUT, DELETE]}
  - {name: write, action: allow, hosts: [write.example]}
"""
BREAKING = b"a%d\n-----BEGIN CERTIFICATE-----\n"  # security_file_certgen takes it for a certificate, and dies of it


@pytest.fixture(params=["squidkeeper", "squid"])
def either(request: pytest.FixtureRequest, gateway: Gateway, new_gateway: NewGateway) -> Gateway:
    """A gateway whose certificates one of the two programs makes."""
    if request.param == "squidkeeper":
        return gateway
    another = new_gateway(POLICY)
    another.use_certgen()
    return another.start()


def break_certgen(gateway: Gateway, number: int) -> None:
    with Raw(gateway) as client:
        client.connect(f"h{number}.closed.example:443")
        with suppress(OSError):  # no certificate could be made
            client.tls(BREAKING % number)


def test_server_names_that_break_a_program_for_certificates_do_not_end_squid(either: Gateway) -> None:
    squid = either.pid
    with ThreadPoolExecutor(10) as pool:
        for start in range(0, 60, 10):
            list(pool.map(lambda number: break_certgen(either, number), range(start, start + 10)))
            assert curl(either, "https://open.example/").status == 200
            assert curl(either, "https://closed.example/").status == 403
    assert either.pid == squid
    assert "FATAL: The sslcrtd_program helpers are crashing too rapidly" not in either.cache_log()


@pytest.mark.parametrize(
    ("host", "passed"), [("open.example", True), ("read.example", False), ("write.example", False)]
)
def test_an_upgrade_is_passed_on_only_where_every_path_and_method_is_open(
    gateway: Gateway, origins: Origins, host: str, passed: bool
) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    origins.answers[f"{host}/ws"] = lambda _: Answer(101, b"", {"Upgrade": "websocket", "Connection": "Upgrade"})
    with tunnel(gateway, f"{host}:443") as client:
        client.send(f"GET /ws HTTP/1.1\r\nHost: {host}\r\n" + "\r\n".join(upgrade) + "\r\n\r\n")
        assert client._head().startswith(b"HTTP/1.1 101") == passed
    [seen] = origins.seen
    assert bool(seen.values("Upgrade")) == passed


def test_purge_is_refused_and_logged_as_refused(gateway: Gateway) -> None:
    reply = curl(gateway, "http://open.example/", "-X", "PURGE")
    assert (reply.status, reply.rule) == (403, "invalid-request")
    [line] = wait_for(lambda: [line for line in gateway.log() if line["method"] == "PURGE"], "the record")
    assert (line["verdict"], line["rule"]) == ("deny", "invalid-request")
