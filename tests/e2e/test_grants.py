"""Grants on a live gateway: in force at once, lapsed in time, never used more often
than they say.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from squidkeeper.change.approvals import NewGrant, add_grant, remove_grant
from tests.waiting import wait_for

from .curl import curl
from .dns import Names
from .gateway import Gateway, NewGateway
from .load import load
from .origin import Origins
from .raw import Raw, tunnel

POLICY = """
version: 1
clients:
  agents: {networks: [127.0.0.1]}
rules:
  - {name: no-admin, action: deny, hosts: [docs.example], paths: [/admin/**]}
  - {name: unrestricted, action: allow, hosts: [unrestricted.example]}
"""
SQUIDKEEPER = "bin/squidkeeper"


@pytest.fixture(scope="module")
def gateway(new_gateway: NewGateway) -> Gateway:
    """With few questions at a time for each helper, so that two of them count."""
    made = new_gateway(POLICY)
    made.edit("squidkeeper.conf", "concurrency=32 ", "concurrency=2 ")
    return made.start()


def grant(gateway: Gateway, host: str, seconds: float = 3600, **fields: object) -> str:
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    new = NewGrant(
        expires.replace(microsecond=0),
        "x",
        "test",
        ("agents",),
        (host,),
        **fields,  # type: ignore[arg-type] # as given
    )
    granted = add_grant(gateway.policy_folder, new, datetime.now(UTC))
    assert granted.file == gateway.root / "etc/grants.yaml"
    return granted.grant.name


def is_open(gateway: Gateway, url: str) -> bool:
    return curl(gateway, url).status == 200


@pytest.mark.one_worker(
    "an edit is in force within three seconds, not in every worker in the same instant"
)
def test_a_grant_opens_in_an_open_tunnel_too_and_ends(
    gateway: Gateway, origins: Origins
) -> None:
    assert curl(gateway, "https://docs.example/").rule == "default"
    name = grant(gateway, "docs.example")
    wait_for(lambda: is_open(gateway, "https://docs.example/open"), "the grant")
    gateway.settle()  # a tunnel by an answer from before the grant would be outdated
    assert is_open(gateway, "https://docs.example/logged")
    assert gateway.logged("https://docs.example/logged")["rule"] == name
    assert curl(gateway, "https://docs.example/admin/x").rule == "no-admin"
    assert curl(gateway, "https://docs.example/x", client="127.0.0.2").rule == "default"
    with tunnel(gateway, "docs.example:443") as inside:
        reply = inside.get("/inside", "docs.example")
        assert reply.status == 200
        remove_grant(gateway.policy_folder, name, datetime.now(UTC))
        wait_for(
            lambda: not is_open(gateway, "https://docs.example/"),
            "the end of the grant",
        )
        gateway.settle()
        reply = inside.get("/inside", "docs.example")
        assert (reply.status, reply.rule) == (403, "default")
    assert "https://docs.example/admin/x" not in origins.urls()


def test_a_grant_opens_no_private_address_and_makes_no_host_unrestricted(
    gateway: Gateway, origins: Origins, names: Names
) -> None:
    """Nor does it pass a tunnel through: curl trusts the gateway's CA alone."""
    names.set("inside.example", ["10.0.0.5"])
    for host in ("outside.example", "inside.example"):
        grant(gateway, host)
    wait_for(lambda: is_open(gateway, "https://outside.example/"), "the grants")
    gateway.settle()
    reply = curl(gateway, "https://inside.example/")
    assert (reply.status, reply.rule) == (403, "private-address")
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    for host, passed in (
        ("unrestricted.example", ["websocket"]),
        ("outside.example", []),
    ):
        with tunnel(gateway, f"{host}:443") as inside:
            assert inside.get("/socket", host, *upgrade).status == 200
        assert origins.seen[-1].url == f"https://{host}/socket"
        assert origins.seen[-1].values("Upgrade") == passed
    assert not [url for url in origins.urls() if "inside.example" in url.split("/")]


def test_a_grant_lapses(gateway: Gateway, origins: Origins) -> None:
    lasting = next(
        name
        for seconds in (3, 10, 30, 90)
        if (name := seen_open(gateway, "short.example", seconds))
    )
    wait_for(
        lambda: not is_open(gateway, "https://short.example/"), "the grant to lapse"
    )
    allowed = wait_for(
        lambda: [line for line in gateway.log() if line["rule"] == lasting],
        "the record of its use",
    )
    assert {line["verdict"] for line in allowed} == {"allow"}


def seen_open(gateway: Gateway, host: str, seconds: float) -> str | None:
    """Grant a host for some seconds; give the grant's name, or None where a busy
    machine does not see it in time.
    """
    name, end = grant(gateway, host, seconds), time.monotonic() + seconds
    while time.monotonic() < end:
        if is_open(gateway, f"https://{host}/first"):
            return name
    return None


@pytest.mark.one_worker(
    "an edit is in force within three seconds, not in every worker in the same instant"
)
def test_concurrent_requests_never_use_a_grant_more_often_than_it_says(
    gateway: Gateway, origins: Origins
) -> None:
    use_up(gateway, origins, "counted.example", uses=7, clients=24, each=2)
    assert len(gateway.helpers("acl --scope request")) > 1


@pytest.mark.long
def test_two_workers_never_use_a_grant_more_often_than_it_says(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(POLICY, "workers 2").start()
    for number in range(10):
        use_up(gateway, origins, f"h{number}.example", uses=40, clients=32, each=5)


@pytest.mark.long
def test_helpers_that_are_killed_never_give_more_uses(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway, uses = new_gateway(POLICY).start(), 300
    grant(gateway, "killed.example", uses=uses)
    wait_for(
        lambda: curl(gateway, "http://killed.example/first").status == 200, "the grant"
    )
    with load(gateway, *[("http", "killed.example")] * 4) as running:
        for _ in range(8):
            running.at_least(40)
            gateway.kill_helpers("acl --scope request")
        running.at_least(400)
        wait_for(
            lambda: {answer.status for answer in running.answers[-50:]} == {403},
            "the last use",
        )
    assert (
        0 < len([url for url in origins.urls() if "//killed.example/" in url]) <= uses
    )


def use_up(
    gateway: Gateway, origins: Origins, host: str, *, uses: int, clients: int, each: int
) -> None:
    """Let clients request at once what a grant allows a number of times."""
    name = grant(gateway, host, uses=uses)
    wait_for(lambda: curl(gateway, f"http://{host}/first").status == 200, "the grant")

    def client(number: int) -> list[int]:
        with Raw(gateway) as connection:
            replies = [
                connection.get(f"http://{host}/{number}/{turn}", host)
                for turn in range(each)
            ]
        return [reply.status for reply in replies if reply]

    with ThreadPoolExecutor(clients) as pool:
        statuses = [
            status for found in pool.map(client, range(clients)) for status in found
        ]
    assert (statuses.count(200), len(statuses)) == (uses - 1, clients * each)
    assert len([url for url in origins.urls() if f"//{host}/" in url]) == uses
    assert curl(gateway, f"https://{host}/").rule == "default"
    allowed = wait_for(
        lambda: [line for line in gateway.log() if line["rule"] == name], "the record"
    )
    assert len(allowed) >= uses
