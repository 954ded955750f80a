"""Hot reload under load: an edit comes in force, and no request is lost or
let through.
"""

import re
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.waiting import pause, wait_for

from .curl import answer, curl
from .gateway import Gateway, NewGateway
from .load import Load, load
from .origin import Origins
from .raw import tunnel

CLIENTS = [
    ("http", "always.example"),
    ("https", "always.example"),
    ("http", "never.example"),
    ("http", "toggled.example"),
]
POLICY = """
version: 1
rules:
  - {name: always, action: allow, hosts: [always.example]}
  - {name: paths, action: allow, hosts: [always.example, never.example], paths: [/open/**]}
"""
OPENED = POLICY + "  - {name: toggled, action: allow, hosts: [toggled.example]}\n"
CLOSED = (
    POLICY
    + "  - {name: toggled, action: deny, hosts: [toggled.example], reason: Closed.}\n"
)


def in_force(load: Load, status: int) -> None:
    """Wait until requests for the toggled host have this status, one after another."""
    wait_for(
        lambda: load.statuses("toggled.example")[-20:] == [status] * 20, "the edit"
    )


def none_lost_or_wrong(load: Load, origins: Origins) -> None:
    """What is always open was always open, what is never open never, and every request
    had an answer.
    """
    assert set(load.statuses("always.example")) == {200}
    assert set(load.statuses("never.example")) == {403}
    assert set(load.statuses("toggled.example")) == {200, 403}
    assert {a.rule for a in load.answers if a.status == 403 and "never" in a.url} == {
        "default"
    }
    assert not [url for url in origins.urls() if "never.example" in url]
    arrived = {url for url in origins.urls() if "toggled.example" in url}
    assert arrived == {
        a.url for a in load.answers if a.status == 200 and "toggled.example" in a.url
    }


def toggle(
    gateway: Gateway,
    origins: Origins,
    close: Callable[[], object],
    reopen: Callable[[], object],
) -> None:
    """Under load: opened, then closed, then opened again."""
    with load(gateway, *CLIENTS) as running:
        running.at_least(50)
        in_force(running, 200)
        for change, status in ((close, 403), (reopen, 200)):
            change()
            in_force(running, status)
    none_lost_or_wrong(running, origins)


@pytest.fixture(scope="module")
def opened_gateway(new_gateway: NewGateway) -> Gateway:
    return new_gateway(OPENED).start()


@pytest.fixture
def opened(opened_gateway: Gateway, origins: Origins) -> Iterator[Gateway]:
    """A gateway in which the toggled host is open; after the test it is so again."""
    yield opened_gateway
    opened_gateway.write("policy.yaml", OPENED)
    for scheme in ("http", "https"):
        wait_for(
            partial(is_open, opened_gateway, f"{scheme}://toggled.example/"),
            "the policy as it was",
        )


def is_open(gateway: Gateway, url: str) -> bool:
    return curl(gateway, url).status == 200


def test_a_policy_edited_in_place(opened: Gateway, origins: Origins) -> None:
    file = opened.policy_folder / "policy.yaml"
    toggle(
        opened,
        origins,
        lambda: file.write_text(CLOSED),
        lambda: file.write_text(OPENED),
    )


OPEN_BY_DEFAULT = (
    "version: 1\ndefaults: {action: allow}\nrules:\n  - {name: never, "
    "action: deny, hosts: [never.example]}\n"
)
CLOSING = (
    "  - {name: toggled, action: deny, hosts: [toggled.example], reason: Closed.}\n"
)


def test_a_policy_written_in_place_with_a_stall_is_never_in_force_by_halves(
    new_gateway: NewGateway, origins: Origins
) -> None:
    """Not in the helpers that run, nor in those that start meanwhile; the second half
    denies what the first allows.
    """
    gateway = new_gateway(OPEN_BY_DEFAULT + CLOSING).start()
    with (
        load(gateway, *CLIENTS[:3]) as running,
        load(gateway, ("http", "toggled.example")) as toggled,
    ):
        running.at_least(50)
        with (gateway.policy_folder / "policy.yaml").open("w") as file:
            file.write(OPEN_BY_DEFAULT)
            file.flush()
            toggled.at_least(30)
            gateway.kill_helpers()
            for _ in range(2):
                file.write("# not complete\n")
                file.flush()
                pause(
                    0.75,
                    "a file that has not changed for two seconds would be complete",
                )
            file.write(
                CLOSING + "  - {name: later, action: deny, hosts: [later.example]}\n"
            )
        wait_for(
            lambda: curl(gateway, "http://later.example/").rule == "later",
            "the whole edit",
        )
        toggled.at_least(30)
    assert 200 not in toggled.statuses("toggled.example")
    assert [url for url in origins.urls() if "toggled.example" in url] == []


def test_a_policy_replaced_by_rename(opened: Gateway, origins: Origins) -> None:
    toggle(
        opened,
        origins,
        lambda: opened.write("policy.yaml", CLOSED),
        lambda: opened.write("policy.yaml", OPENED),
    )


BAD = {
    "torn": OPENED[:-20],
    "unknown key": OPENED + "rulez: []\n",
    "no yaml": "version: 1\nrules: [\n",
    "empty": "",
    "a failing test of its own": CLOSED
    + "tests:\n  - {request: GET https://toggled.example/, expect: allow}\n",
}


def new_host() -> str:
    """A URL of a host that Squid keeps no answer about."""
    return f"https://n{time.monotonic_ns()}.later.example/"


@pytest.mark.one_worker(
    "a worker whose first helper starts while the policy is bad denies"
)
@pytest.mark.parametrize("text", BAD.values(), ids=list(BAD))
def test_a_bad_edit_keeps_the_last_good_policy(
    opened: Gateway, origins: Origins, text: str
) -> None:
    opened.write(
        "policy.yaml",
        CLOSED + "  - {name: later, action: allow, hosts: ['*.later.example']}\n",
    )
    wait_for(lambda: is_open(opened, new_host()), "the last good policy")
    # otherwise Squid could have the answer that the policy before has given about a
    # tunnel of this one
    opened.settle()
    with load(opened, *CLIENTS[:3]) as running:
        running.at_least(20)
        before = len(opened.cache_log())
        opened.write("policy.yaml", text)
        wait_for(
            lambda: "policy.yaml" in opened.cache_log()[before:],
            "the faults in cache.log",
        )
        running.at_least(20)
        closed = curl(opened, "https://toggled.example/")
        assert (closed.status, closed.rule) == (403, "toggled")
        assert is_open(opened, new_host())
        opened.write("policy.yaml", OPENED)
        wait_for(
            lambda: is_open(opened, "https://toggled.example/"), "the fixed policy"
        )
        running.at_least(20)
    assert set(running.statuses("always.example")) == {200}
    assert set(running.statuses("never.example")) == {403}


@pytest.mark.one_worker(
    "a worker whose first helper starts while the policy is bad denies"
)
def test_a_policy_edited_a_hundred_times_a_second_settles_on_the_last_edit(
    opened: Gateway, origins: Origins
) -> None:
    with load(opened, *CLIENTS[:3]) as running:
        running.at_least(50)  # so that each helper has a policy
        for turn in range(200):
            opened.write("policy.yaml", (CLOSED, OPENED, POLICY + "  - [")[turn % 3])
            pause(0.01, "the pace of the edits is what is tried")
        opened.write("policy.yaml", CLOSED)
        wait_for(
            lambda: curl(opened, "https://toggled.example/").rule == "toggled",
            "the last edit",
        )
        running.at_least(20)
    assert [
        a for a in running.answers if "always.example" in a.url and a.status != 200
    ] == []
    assert set(running.statuses("never.example")) == {403}


def test_faults_are_told_once(new_gateway: NewGateway, origins: Origins) -> None:
    gateway = new_gateway(OPENED).start()
    # a URL that both helpers are asked about
    curl(gateway, "https://always.example/%22")
    wait_for(lambda: len(gateway.helpers("acl")) >= 2, "both helpers")
    helpers = gateway.helpers("acl")
    gateway.write("policy.yaml", OPENED + "rulez: []\n")
    wait_for(lambda: "rulez" in gateway.cache_log(), "the fault in cache.log")
    gateway.write("policy.yaml", CLOSED)
    wait_for(
        lambda: curl(gateway, "https://toggled.example/").rule == "toggled",
        "the fixed policy",
    )
    assert set(helpers) <= set(gateway.helpers("acl"))
    told = [line for line in gateway.cache_log().splitlines() if "squidkeeper:" in line]
    words = [
        "is in force",
        "does not load, the last good policy goes on:",
        "is in force",
    ]
    assert [
        word for line, word in zip(told, words, strict=True) if word in line
    ] == words
    assert all(
        re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\| squidkeeper: ", line)
        for line in told
    )


def test_a_gateway_that_never_had_a_policy_denies_all_and_recovers(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway("version: 1\nrules: [\n").start()
    for url in ("https://always.example/", "http://always.example/"):
        reply = curl(gateway, url)
        assert (reply.status, reply.rule, reply.line("Retry")) == (
            403,
            "policy-unavailable",
            "can help",
        ), reply.text
    assert origins.connections == []
    gateway.write("policy.yaml", OPENED)
    wait_for(
        lambda: curl(gateway, "https://always.example/").status == 200,
        "the first policy",
    )


def test_an_edit_counts_on_connections_already_open(
    opened: Gateway, origins: Origins
) -> None:
    with tunnel(opened, "toggled.example:443") as client:
        first = client.get("/1", "toggled.example")
        assert first.status == 200
        opened.write("policy.yaml", CLOSED)
        numbers = iter(range(2, 10_000))

        def closed() -> bool:
            reply = client.get(f"/{next(numbers)}", "toggled.example")
            return (reply.status, reply.rule) == (403, "toggled")

        wait_for(closed, "the edit on an open tunnel")


def test_squid_may_reconfigure_under_load_and_nothing_gets_through(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(CLOSED).start()
    with load(
        gateway,
        ("http", "always.example"),
        ("http", "never.example"),
        ("http", "toggled.example"),
    ) as running:
        for _ in range(5):
            running.at_least(30)
            gateway.reconfigure()
        running.at_least(30)
        wait_for(
            lambda: answer(gateway, "http://always.example/").status == 200,
            "service after the reconfigure",
        )
    assert 200 in running.statuses("always.example")
    assert 200 not in running.statuses("never.example") + running.statuses(
        "toggled.example"
    )
    assert {url.split("/")[2] for url in origins.urls()} == {"always.example"}
