"""The model of tests/bench/simulation.py, where the answer is known."""

import random
import statistics
from dataclasses import replace

import pytest

from tests.bench.simulation import (
    Costs,
    Fleet,
    Sessions,
    arrivals,
    formula_of,
    lease_steps,
    needs,
    storm_seconds,
    waiting,
    waits_of,
)

COSTS = Costs(
    request=1e-4,
    tunnel=19e-4,
    request_helpers=0,
    tunnel_helpers=1e-4,
    requests=(1e-4,),
    tunnels=(20e-4,),
    tunnel_bytes=100_000,
    tunnel_descriptors=2,
    line_bytes=700,
    archive_line_bytes=100,
    exporter_line=1e-5,
    archive_line=1e-5,
)
TWO = Sessions((2,), most_used=0.5)
FLEET = Fleet(vms=6000, gateways=2, workers=1, sessions_per_minute=1, open_seconds=60)


def test_a_job_waits_until_those_before_it_are_done() -> None:
    assert [*waits_of([(0, 1), (0.5, 1), (0.5, 3), (10, 1)])] == [0, 0.5, 1.5, 0]


@pytest.mark.system
@pytest.mark.parametrize("utilization", [0.3, 0.6])
def test_with_independent_arrivals_the_queue_is_that_of_the_formula(
    utilization: float,
) -> None:
    chosen, at, queue = random.Random(1), 0.0, []
    for _ in range(200_000):
        at += chosen.expovariate(utilization)
        queue.append((at, chosen.expovariate(1)))
    formula = formula_of([takes for _, takes in queue], utilization)
    assert statistics.mean(waits_of(queue)) == pytest.approx(formula, rel=0.06)


def test_what_is_used_most_comes_first_and_depends_on_how_long_tunnels_are_open() -> (
    None
):
    """100 tunnels a second: 50 for each gateway, of 2 ms, with a request of 0.1 ms
    more, and 3,000 open.
    """
    found = {need.name: need for need in needs(FLEET, COSTS, TWO)}
    assert found["worker cores"].needs == pytest.approx(50 * (19e-4 + 2 * 1e-4))
    assert found["descriptors of the workers"].needs == pytest.approx(6000)
    assert found["ports to the most used host"].needs == pytest.approx(1500)
    for seconds, first in ((600, "descriptors of the workers"), (1, "worker cores")):
        shares = [
            need.share
            for need in needs(replace(FLEET, open_seconds=seconds), COSTS, TWO)
        ]
        assert shares == sorted(shares, reverse=True)
        assert needs(replace(FLEET, open_seconds=seconds), COSTS, TWO)[0].name == first


def test_a_helper_asks_for_twice_as_much_each_time() -> None:
    # 1,000 of them, hardly two of one VM
    one_session_each = replace(FLEET, vms=100_000, sessions_per_minute=0.01)
    for requests, steps in ((1, 1), (2, 2), (3, 2), (7, 3), (8, 4)):
        found = lease_steps(one_session_each, Sessions((requests,), 0.5))
        assert found * 60 == pytest.approx(1000 * steps, rel=0.02)


def test_twice_as_many_gateways_have_half_of_the_work_each() -> None:
    one, two = (needs(replace(FLEET, gateways=number), COSTS, TWO) for number in (1, 2))
    assert {need.name: need.share / 2 for need in one} == pytest.approx(
        {need.name: need.share for need in two}
    )


@pytest.mark.system
def test_all_work_is_done_and_what_comes_together_waits_longer() -> None:
    busy = replace(FLEET, vms=24_000)
    alone, waves = (
        waiting(arrivals(busy, COSTS, TWO, 60, waves=wave), 60)
        for wave in (False, True)
    )
    assert alone.utilization == pytest.approx(200 * (20e-4 + 1e-4), rel=0.05)
    assert waves.mean > 2 * alone.mean
    assert alone.mean == pytest.approx(alone.formula, rel=0.15)


def test_a_storm_lasts_as_long_as_idle_workers_need_for_it() -> None:
    assert storm_seconds(
        1000, workers=2, utilization=0.5, costs=COSTS
    ) == pytest.approx(2)
