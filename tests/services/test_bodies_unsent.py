"""What Squid says about metered requests that reached no origin, and what else comes to
that port.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from squidkeeper.policy.usage.tokens import NOTHING_USED
from squidkeeper.services.bodies.settlement import Metered, Settler
from squidkeeper.services.bodies.unsent_requests import listen_for_unsent, settle_unsent

LINE = b"gw.1.2.3%20192.0.2.1%20-%20models%20r1%20llm.example%20gpt-x%2031%2050%20281"


class Kept(Settler):
    """Keeps what it has to settle."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, object, bool]] = []

    def settle(self, metered: Metered, outcome: object, *, whole: bool) -> None:
        self.settled.append((metered.request.request_id, outcome, whole))


def test_requests_that_reached_no_origin_use_nothing_and_other_lines_change_nothing() -> (
    None
):
    kept = Kept()
    for datagram in (
        b"",
        b"-\n",
        b"\xff" * 2000,
        LINE[:-4] + b"\n",
        LINE + b"x\n",
        LINE + b"\n-\n" + LINE + b"\n",
    ):
        settle_unsent(datagram, kept)
    assert kept.settled == [("gw.1.2.3", NOTHING_USED, True)] * 2


@pytest.mark.system
def test_an_address_that_is_taken_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        listen_for_unsent(asyncio.get_running_loop(), other.getsockname(), Kept())

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        asyncio.run(scenario())
    assert "reserves of requests that reached no origin stay: 127.0.0.1:" in caplog.text
