"""What two workers of Squid share, and what each has of its own: the rows of the table
in squid/FLEET.md.
"""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from squidkeeper.base.squid_counters import read_counters
from squidkeeper.change.approvals.answers import deny_ticket
from squidkeeper.serving.counters.reader import read_counter_files
from squidkeeper.serving.tickets.store import PENDING_AT_MOST, Ticket, TicketStore
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway, NewGateway
from .observer import Exporter
from .origin import Answer, Origins
from .raw import Raw, tunnel

pytestmark = pytest.mark.long
POLICY = """
version: 1
rules:
  - {name: open, action: allow, hosts: [open.example]}
  - {name: closed, action: deny, hosts: [closed.example]}
  - {name: asked, action: ask, hosts: [asked.example]}
"""
# the kernel gives each to one of two workers: all to one of them once in eight million
# times
CONNECTIONS = 24
AT_MOST = 3  # client_ip_max_connections


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(POLICY, options=("--workers", "2"), throttled=True).start()


@pytest.fixture(scope="module")
def bounded(new_gateway: NewGateway) -> Gateway:
    return new_gateway(
        POLICY,
        f"client_ip_max_connections {AT_MOST}",
        "cache allow all",
        options=("--workers", "2"),
    ).start()


def workers_that_ask(gateway: Gateway, kind: str) -> set[int]:
    """The workers that have a helper of this kind."""
    return {psutil.Process(pid).ppid() for pid in gateway.helpers(kind)}


def ask(gateway: Gateway, url: str, status: int) -> None:
    """Ask on so many connections, one after the other."""
    for number in range(CONNECTIONS):
        assert curl(gateway, f"{url}{number}").status == status


def test_the_kernel_gives_each_connection_to_one_of_them_and_both_write_one_log(
    gateway: Gateway, origins: Origins
) -> None:
    ask(gateway, "http://open.example/", 200)
    wait_for(lambda: len(gateway.log()) == CONNECTIONS, "each record once")
    assert {line["worker"] for line in gateway.log()} == {"1", "2"}
    assert len(gateway.workers) == 2


def test_each_has_helpers_of_its_own_and_asks_them_for_itself(
    gateway: Gateway, origins: Origins
) -> None:
    ask(gateway, "http://open.example/", 200)
    assert workers_that_ask(gateway, "acl --scope host") == {*gateway.workers}
    found = (
        file
        for file in read_counter_files(gateway.root / "state/helpers")
        if file.running and file.status
    )
    decided: dict[int, float] = {}
    for file in found:
        assert file.status
        decided[file.status.pid] = sum(
            value
            for name, _, value in file.samples
            if name.endswith("_decisions_total")
        )
    assert all(decided[pid] for pid in gateway.helpers("acl --scope host"))


def test_a_ticket_its_count_its_bound_and_its_page_are_those_of_both(
    gateway: Gateway,
) -> None:
    for number in range(CONNECTIONS):
        assert curl(gateway, "http://asked.example/x").status == 403, number
    [ticket] = waiting(gateway)
    assert ticket.times == CONNECTIONS
    with ThreadPoolExecutor(
        CONNECTIONS
    ) as pool:  # more than a client may have, on connections at the same time
        list(pool.map(partial(ask_more, gateway), range(CONNECTIONS)))
    assert len(waiting(gateway)) == PENDING_AT_MOST
    replies = [
        curl(gateway, f"http://asked.example/more/{number}").text
        for number in range(CONNECTIONS)
    ]
    assert [
        "It has no ticket: this client has as many open questions" in text
        for text in replies
    ] == [True] * len(replies)
    page = f"http://squidkeeper.internal/tickets/{ticket.number}"
    assert {
        json.loads(curl(gateway, page).body)["state"] for _ in range(CONNECTIONS)
    } == {"pending"}
    deny_ticket(gateway.policy_folder, gateway.root / "state", ticket.number, "No.")
    assert {
        json.loads(curl(gateway, page).body)["state"] for _ in range(CONNECTIONS)
    } == {"denied"}
    asked = [
        line["worker"] for line in gateway.log() if "//asked.example/" in line["url"]
    ]
    assert {*asked} == {"1", "2"}
    assert workers_that_ask(gateway, "acl --scope request") == {*gateway.workers}


def waiting(gateway: Gateway) -> list[Ticket]:
    with closing(TicketStore(gateway.root / "state")) as store:
        return store.pending(time.time())


def ask_more(gateway: Gateway, first: int) -> None:
    with Raw(gateway) as raw:
        for number in range(first, PENDING_AT_MOST + 2 * CONNECTIONS, CONNECTIONS):
            assert raw.get(f"http://asked.example/{number}", "asked.example")


def test_each_has_a_throttle_with_its_part_of_the_rate(
    gateway: Gateway, origins: Origins
) -> None:
    ask(gateway, "http://closed.example/", 403)
    assert workers_that_ask(gateway, "throttle") == {*gateway.workers}
    for pid in gateway.helpers("throttle --scope client"):
        assert " --rate 5 --burst 100 " in " ".join(psutil.Process(pid).cmdline())


def test_each_makes_certificates_of_its_own_for_a_host(
    gateway: Gateway, origins: Origins
) -> None:
    leaves = set()
    for _ in range(CONNECTIONS):
        with tunnel(gateway, "open.example:443") as inside:
            leaves.add(inside.leaf)
    assert len(leaves) == len(workers_that_ask(gateway, "certificate")) == 2


def test_the_cache_manager_adds_their_counters_up(
    gateway: Gateway, origins: Origins
) -> None:
    before = read_counters(*gateway.address).values["client_http.requests"]
    ask(gateway, "http://open.example/", 200)
    wait_for(
        lambda: (
            read_counters(*gateway.address).values["client_http.requests"]
            == before + CONNECTIONS
        ),
        "all counted",
    )


def test_each_has_descriptors_of_its_own(gateway: Gateway) -> None:
    limits = [Path(f"/proc/{pid}/limits").read_text() for pid in gateway.workers]
    assert [re.findall(r"Max open files +(\d+)", text) for text in limits] == [
        ["16384"]
    ] * 2


def test_they_share_a_few_megabytes_of_memory_where_nothing_is_cached(
    gateway: Gateway,
) -> None:
    segments = list(Path("/dev/shm").glob(f"{gateway._service}-*.shm"))
    assert segments
    assert sum(segment.stat().st_blocks * 512 for segment in segments) < 8 << 20


def test_each_counts_the_connections_of_a_client_for_itself(
    bounded: Gateway, origins: Origins
) -> None:
    with ExitStack() as stack:
        answered = [
            answers(stack.enter_context(Raw(bounded))) for _ in range(CONNECTIONS)
        ]
    # Squid takes one more than it is told
    assert AT_MOST + 1 < sum(answered) <= 2 * (AT_MOST + 1)


def answers(client: Raw) -> bool:
    try:
        reply = client.get("http://open.example/", "open.example")
    except OSError:
        return False
    return reply.status == 200


def test_both_answer_from_one_cache_where_local_conf_turns_caching_on(
    bounded: Gateway, origins: Origins
) -> None:
    origins.answers["open.example/cacheable"] = lambda _: Answer(
        headers={"Cache-Control": "public, max-age=3600"}
    )
    for _ in range(CONNECTIONS):
        wait_for(
            lambda: curl(bounded, "http://open.example/cacheable").status == 200,
            "an answer",
        )
    assert origins.urls().count("http://open.example/cacheable") == 1
    assert (
        len({line["worker"] for line in bounded.log() if "/cacheable" in line["url"]})
        == 2
    )


@pytest.fixture
def exporter(gateway: Gateway) -> Iterator[Exporter]:
    with Exporter(gateway, 9131, "--workers", "2") as exporter:
        yield exporter


def test_the_exporter_counts_all_of_them(
    gateway: Gateway, exporter: Exporter, origins: Origins
) -> None:
    ask(gateway, "http://open.example/", 200)
    wait_for(lambda: exporter.health() == (200, {}), "a healthy gateway")
