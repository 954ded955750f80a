"""Each part of a fleet fails in turn, while clients that know their answers ask and the
policy is edited.

Each test leaves a row of the table that a run prints at its end. In none is anything
allowed that must not be, in none is a credential in another request than those it is
for, or missing there.

The columns of the table:

  wrongly allowed   answered although denied, or a credential in another request, or
                    missing: 0, or the test fails
  lost              no answer, or an error
  wrongly denied    403 for what is allowed. An edited host has both answers until all
                    decide alike, and 4 s more
  longest wait      of one request for its answer or its end
  quota             requests under it that reached the origin when all clients are
                    denied
  until all agreed  the longest time from a commit until each gateway, asked directly,
                    decides by it
  alerts            those that fired or became pending, beyond those of the moment
                    before

Losses that are not explained: in one of four runs, at a load average of ten to twenty,
87 requests while the network was cut; in another, at 35, three requests denied by
`policy-unavailable` just after all three Squids had restarted.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.e2e.gateway import install
from tests.e2e.origin import Origins
from tests.waiting import pause, wait_for

from .cost import Cost, cost
from .fleet import FRONT
from .whole import LIMIT, ROUNDS, Whole, policy

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ALL = ("gw-1", "gw-2", "gw-3")
AWAY_SECONDS = 12  # that a part is away
ASKED_AGAIN_SECONDS = 6  # after which a gateway has asked Valkey again
EDITS = 50  # of the whole run
Costs = Callable[..., AbstractContextManager[Cost]]


@pytest.fixture(scope="module")
def rounds() -> Iterator[int]:
    return iter(range(ROUNDS))


@pytest.fixture
def costs(
    whole: Whole,
    origins: Origins,
    rounds: Iterator[int],
    record_property: Callable[[str, object], None],
) -> Costs:
    """Count what a fault costs: `with costs("what fails") as found`.

    Nothing was allowed that must not be.
    """

    @contextmanager
    def make(fault: str, *, edits: bool = True) -> Iterator[Cost]:
        with cost(whole, origins, fault, next(rounds), edits=edits) as found:
            yield found
        record_property("row", found.row)
        for request in (*found.running.lost[:3], *found.running.wrongly_denied[:3]):
            record_property("lost", f"{fault}: {request}")
        assert found.running.wrongly_allowed == []
        assert found.misplaced == []

    return make


def assert_as_before(found: Cost) -> None:
    """Nothing was lost or denied; a quota gave what it has, but for what a helper had
    taken and did not use.
    """
    assert found.running.lost == []
    assert found.running.wrongly_denied == []
    assert found.running.cut == []
    assert LIMIT * 3 // 4 <= found.given <= LIMIT


def test_without_a_fault(costs: Costs) -> None:
    with costs("none") as found:
        found.running.at_least(300)
    assert_as_before(found)


# --- a gateway ------------------------------------------------------------------------


def test_a_gateway_that_is_killed_costs_what_it_was_answering(
    whole: Whole, costs: Costs
) -> None:
    dies = whole.fleet.members[0]
    with costs("a gateway: Squid and helpers killed") as found:
        dies.gateway.kill()
        pause(AWAY_SECONDS, "the fault lasts")
        with dies.machine.entered():
            dies.gateway.start()
        whole.fleet.wait_until_up(*ALL)
    assert found.running.wrongly_denied == []
    assert found.given <= LIMIT


def test_a_gateway_that_is_stopped_keeps_its_clients_waiting(
    whole: Whole, costs: Costs
) -> None:
    gateway = whole.fleet.members[1].gateway
    with costs("a gateway: Squid stopped (SIGSTOP)") as found:
        with stopped(gateway.pid):
            pause(AWAY_SECONDS, "the fault lasts")
            whole.fleet.wait_until_up("gw-1", "gw-3")
        whole.fleet.wait_until_up(*ALL)
    assert found.running.wrongly_denied == []
    assert found.given <= LIMIT


def test_a_gateway_that_is_cut_off_costs_what_it_was_answering(
    whole: Whole, costs: Costs
) -> None:
    with costs("a gateway: network cut") as found:
        with whole.fleet.members[2].machine.cut_off():
            pause(AWAY_SECONDS, "the fault lasts")
            whole.fleet.wait_until_up("gw-1", "gw-2")
        whole.fleet.wait_until_up(*ALL)
    assert found.running.wrongly_denied == []
    assert found.given <= LIMIT


def test_helpers_that_are_killed_deny_what_they_were_asked(
    whole: Whole, costs: Costs
) -> None:
    gateway = whole.fleet.members[0].gateway
    with costs("a gateway: all its helpers killed, three times") as found:
        for _ in range(3):
            gateway.kill_helpers()
            found.running.at_least(100)
    assert found.given <= LIMIT


# --- HAProxy --------------------------------------------------------------------------


def test_a_reload_of_haproxy_costs_nothing(whole: Whole, costs: Costs) -> None:
    balancer = whole.fleet.balancer
    with costs("HAProxy: reloaded twice") as found:
        for bound in (2000, 2048):
            balancer.write([FRONT[0]], connections_per_client=bound)
            with whole.fleet.front.entered():
                assert "reloaded: process" in balancer.set_up()
            found.running.at_least(100)
    assert_as_before(found)


def test_an_haproxy_that_is_killed_costs_all_clients_until_it_is_back(
    whole: Whole, costs: Costs
) -> None:
    with costs("HAProxy: killed, started 2 s later") as found:
        whole.fleet.balancer.kill()
        pause(2, "nobody balances")
        with whole.fleet.front.entered():
            whole.fleet.balancer.start()
        whole.fleet.wait_until_up(*ALL)
    assert found.running.wrongly_denied == []
    assert found.given <= LIMIT


# --- Valkey ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["deny", "local"])
def mode(request: pytest.FixtureRequest, whole: Whole) -> str:
    """What all gateways do while Valkey is away."""
    whole.count_by(str(request.param))
    return str(request.param)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def killed(whole: Whole) -> Iterator[None]:
    whole.valkey.kill()
    yield
    with whole.store.entered():
        whole.valkey.start()


@contextmanager
def forgetting(whole: Whole) -> Iterator[None]:
    with killed(whole):
        yield
        whole.valkey.forget()


VALKEY: dict[str, Callable[[Whole], AbstractContextManager[None]]] = {
    "killed": killed,
    "stopped (SIGSTOP)": lambda whole: stopped(whole.valkey.pid),
    "network cut": lambda whole: whole.store.cut_off(),
    "killed, started again empty": forgetting,
}


@pytest.mark.parametrize("fault", VALKEY)
def test_without_valkey_a_quota_is_bounded_and_all_else_is_as_before(
    whole: Whole, costs: Costs, mode: str, fault: str
) -> None:
    with costs(f"Valkey: {fault}, `on_unavailable: {mode}`") as found:
        with VALKEY[fault](whole):
            pause(AWAY_SECONDS, "the fault lasts")
        pause(ASKED_AGAIN_SECONDS, "the gateways ask Valkey again")
    assert found.running.lost == []
    assert found.running.wrongly_denied == []
    assert found.running.cut == []
    at_most_twice = mode == "local" or fault.endswith("empty")
    assert found.given <= LIMIT * (2 if at_most_twice else 1)


# --- the source of the policy ---------------------------------------------------------


def test_without_the_git_server_every_gateway_goes_on(
    whole: Whole, costs: Costs
) -> None:
    with (
        costs("git server: network cut; an edit meanwhile") as found,
        whole.git.cut_off(),
    ):
        pause(2 * AWAY_SECONDS, "the fault lasts")
    assert_as_before(found)


def bad(whole: Whole) -> None:
    whole.repository.write("policy.yaml", "version: 1\nrules: 7\n")
    whole.repository.commit()


def unsigned(whole: Whole) -> None:
    whole.repository.write("policy.yaml", opened())
    whole.repository.commit(signed=False)


def rewound(whole: Whole) -> None:
    whole.repository.git("reset", "-q", "--hard", "HEAD~1")
    whole.repository.write("policy.yaml", opened())
    whole.repository.commit()


def opened() -> str:
    """The policy with the closed host open."""
    return policy(edited_is_open=False).replace(
        "open.example, secret", "open.example, closed.example, secret"
    )


COMMITS = {
    "a signed commit that does not load": bad,
    "a commit without a signature": unsigned,
    "a signed commit by force-push": rewound,
}


@pytest.mark.parametrize("fault", COMMITS)
def test_a_commit_that_may_not_be_is_refused_by_every_gateway(
    whole: Whole, costs: Costs, fault: str
) -> None:
    before = whole.repository.git("rev-parse", "HEAD")
    with costs(f"git: {fault}, then the next edit", edits=False) as found:
        COMMITS[fault](whole)
        tip = whole.repository.git("rev-parse", "HEAD")
        wait_for(
            lambda: {pull.status()["refused"] for pull in whole.pulls} == {tip},
            "all to refuse it",
        )
        assert {pull.status()["version"] for pull in whole.pulls} == {before}
        found.running.at_least(200)
        whole.repository.git("reset", "-q", "--hard", before)
        whole.editor.edit()
    assert_as_before(found)


# --- what an operator does ------------------------------------------------------------


def test_a_rolling_upgrade_costs_what_is_open_when_squid_restarts(
    whole: Whole, costs: Costs, ca: Path
) -> None:
    with costs("rolling upgrade, 10 s for each drain") as found:
        for member in whole.fleet.members:
            # the held tunnels stay: it says so
            member.command("drain", "--for", "10s").communicate(timeout=120)
            member.gateway.local_conf("max_filedescriptors 8192")
            install(member.gateway.root, member.gateway.authority, "--ca-dir", str(ca))
            member.restart_squid()
            member.run("drain", "--cancel")
            whole.fleet.wait_until_up(*ALL)
    assert found.running.lost == []
    assert found.running.wrongly_denied == []
    assert found.given <= LIMIT


def test_the_policy_was_edited_fifty_times(whole: Whole, costs: Costs) -> None:
    with costs("the edits that are missing of 50", edits=False) as found:
        while len(whole.editor.agreed_seconds) < EDITS:
            whole.editor.edit(settle=False)
        whole.editor.edit()
    assert_as_before(found)
