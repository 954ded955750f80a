"""Clients that hang, leave, or all come at once, while others are served."""

import resource
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.curl import curl
from tests.e2e.gateway import Gateway
from tests.e2e.observer import Exporter
from tests.e2e.origin import Origins
from tests.e2e.raw import Raw
from tests.waiting import pause, wait_for

from .expect import only_what_may_arrive, under_load

REQUEST = "GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n"


def test_clients_that_hang_or_send_a_byte_a_second_keep_nobody_waiting(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins) as load, ExitStack() as stack:
        for start in (
            "",
            "GET http://closed.example",
            "CONNECT injected.example:443 HTTP/1.1\r\n\r\n",
        ) * 30:
            stack.enter_context(Raw(gateway)).send(start)
        slow = stack.enter_context(Raw(gateway))
        text = REQUEST.format(host="closed.example")
        slow.send(text[:-2])
        for byte in text[-2:]:
            load.at_least(20)
            pause(1, "the pace is what is tried")
            slow.send(byte)
        answer = slow.answer()
        assert (answer.status, answer.rule) == (403, "default")
        load.at_least(30)


def test_clients_that_half_close_get_what_they_asked_for(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    with under_load(gateway, origins):
        for host, status in (("open.example", 200), ("closed.example", 403)):
            with Raw(gateway) as client:
                answer = client.send(REQUEST.format(host=host)).finish().answer()
            # Squid may take it for one that has left
            assert not answer or answer.status == status, host


@pytest.fixture
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
def test_ten_thousand_lookups_at_once(
    gateway: Gateway, origins: Origins, descriptors: None
) -> None:
    """All of them wait for the helpers, which are stopped so long; then each has the
    answer that it must have.
    """
    with under_load(gateway, origins):
        pass
    origins.forget()
    with ExitStack() as stack:
        clients = []
        with gateway.stopped_helpers("acl"):
            for number in range(10_000):
                host = (
                    "open.example" if number % 10 == 0 else f"n{number}.closed.example"
                )
                client = stack.enter_context(Raw(gateway, f"127.0.0.{2 + number % 8}"))
                clients.append((host, client.send(REQUEST.format(host=host))))
            wait_for(lambda: gateway.unread() == 0, "Squid to read all", seconds=60)
        answers = [(host, client.answer()) for host, client in clients]
    wrong = [
        (host, answer)
        for host, answer in answers
        if answer.status != (200 if host == "open.example" else 403)
    ]
    assert wrong == []
    only_what_may_arrive(origins)
    assert curl(gateway, "http://open.example/after").status == 200
