"""What a load balancer is answered, on a port of its own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from threading import Thread

import pytest

from squidkeeper.services.exporter import health
from squidkeeper.services.exporter.health import Health, HealthServer
from squidkeeper.services.exporter.process import _bound
from squidkeeper.serving.drained import drain
from tests.waiting import wait_for

pytestmark = pytest.mark.system

LOOPBACK = (ip_network("127.0.0.1/32"), ip_network("::1/128"))


@contextmanager
def serving(
    run: Path,
    *,
    squid: bool = True,
    policy: bool = True,
    port: int = 0,
    waits: bool = False,
) -> Iterator[int]:
    server = HealthServer(
        _bound(("127.0.0.1", port)),
        LOOPBACK,
        Health(lambda: squid, lambda: policy, run),
    )
    server.start()
    try:
        yield int(server.server_address[1])
    finally:
        ended = Thread(target=server.shutdown)  # which takes half a second
        ended.start()
        if waits:
            ended.join()
        server.server_close()


def ask(
    port: int, path: str = "/healthz", method: str = "GET", source: str = "127.0.0.1"
) -> tuple[int, str]:
    """Ask by HTTP; status 0: the connection was closed."""
    with socket.create_connection(("127.0.0.1", port), 20, (source, 0)) as to:
        try:
            to.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = b"".join(iter(lambda: to.recv(4096), b"")).decode()
        except ConnectionError:
            return 0, ""
    return (
        (int(answer.split()[1]), answer.partition("\r\n\r\n")[2]) if answer else (0, "")
    )


@pytest.mark.parametrize(
    ("squid", "policy", "drained", "conditions"),
    [
        (True, True, False, []),
        (False, True, False, ["squid-down"]),
        (True, False, False, ["no-policy"]),
        (True, True, True, ["drained"]),
        (False, False, True, ["drained", "no-policy", "squid-down"]),
    ],
)
def test_it_is_healthy_where_squid_answers_by_a_policy_and_clients_may_come(
    tmp_path: Path, squid: bool, policy: bool, drained: bool, conditions: list[str]
) -> None:
    if drained:
        drain(tmp_path)
    with serving(tmp_path, squid=squid, policy=policy) as port:
        status, body = ask(port)
    assert (status, json.loads(body)) == (
        503 if conditions else 200,
        {"healthy": not conditions, "conditions": conditions},
    )


def test_nothing_else_is_served_there(tmp_path: Path) -> None:
    with serving(tmp_path) as port:
        assert ask(port, method="HEAD") == (200, "")
        assert [ask(port, path)[0] for path in ("/", "/metrics", "/healthz?x")] == [
            404,
            404,
            404,
        ]
        assert ask(port, method="POST")[0] == 501


def test_another_address_gets_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as port:
        assert ask(port, source="127.0.0.2") == (0, "")
        assert ask(port)[0] == 200


def test_squid_is_asked_once_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def answers() -> bool:
        asked.append(1)
        return True

    checked = Health(answers, lambda: True, tmp_path)
    for _ in range(5):
        assert checked.problems() == ()
    assert len(asked) == 1
    monkeypatch.setattr(health, "_SQUID_AT_MOST_EVERY_SECONDS", 0.0)
    assert checked.problems() == ()
    assert len(asked) == 2


def test_connections_that_say_nothing_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_CONNECTIONS", 2)
    with serving(tmp_path) as port, ExitStack() as held:
        for _ in range(2):
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_for(lambda: ask(port) == (0, ""), "the bound")
        held.close()
        wait_for(lambda: ask(port)[0] == 200, "room")


def test_the_next_exporter_takes_the_port_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, waits=True) as port:
        assert ask(port)[0] == 200
    with serving(tmp_path, port=port):
        assert ask(port)[0] == 200
