"""Reserves of metered requests: all or nothing, settled once, and no line of the ledger
lost with a process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidkeeper.base.faults import Location
from squidkeeper.policy.language.quotas import Counted, Quota, QuotaUnit, Window
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.meter import Refusal
from squidkeeper.serving.quotas.reserves import CountedAnswer, Reserves

IN, OUT, TOKENS, COST = (
    QuotaUnit.TOKENS_IN,
    QuotaUnit.TOKENS_OUT,
    QuotaUnit.TOKENS,
    QuotaUnit.COST,
)


def quota(name: str, unit: QuotaUnit, limit: int) -> Quota:
    return Quota(name, Location(""), unit, limit, Window.DAY, Counted.CLIENT)


def amounts(tokens_in: int, tokens_out: int, cost: int = 0) -> dict[QuotaUnit, int]:
    return {IN: tokens_in, OUT: tokens_out, TOKENS: tokens_in + tokens_out, COST: cost}


WANTED = [
    (quota("out", OUT, 1_000), "ann"),
    (quota("all", TOKENS, 1_500), "ann"),
    (quota("cost", COST, 50), "ann"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy").mkdir()
    (tmp_path / "state").mkdir()
    return tmp_path


@pytest.fixture
def reserves(folder: Path) -> Iterator[Reserves]:
    with closing(new(folder)) as reserves:
        yield reserves


def new(folder: Path) -> Reserves:
    return Reserves(folder / "policy", folder / "state")


def used(folder: Path) -> dict[str, int]:
    with closing(LocalCounts(folder / "state")) as counts:
        return {use.count.quota: use.used for use in counts.uses() if use.used}


def test_a_reserve_counts_until_it_is_settled(reserves: Reserves, folder: Path) -> None:
    assert reserves.hold("a", WANTED, amounts(100, 400, 7), b"1") is True
    assert used(folder) == {"out": 400, "all": 500, "cost": 7}
    reserves.settle("a", amounts(90, 20, 3), b"2")
    assert used(folder) == {"out": 20, "all": 110, "cost": 3}


def test_another_process_settles_it(reserves: Reserves, folder: Path) -> None:
    reserves.hold("a", WANTED, amounts(100, 400, 7), b"1")
    with closing(new(folder)) as other:
        other.settle("a", amounts(90, 1_200, 60), b"2")
    assert used(folder) == {"out": 1_200, "all": 1_290, "cost": 60}
    assert isinstance(reserves.hold("b", WANTED, amounts(0, 1), b"3"), Refusal)


@pytest.mark.parametrize(
    ("reserve", "refuses", "left", "held"),
    [
        (amounts(0, 601), "out", 1_000, True),
        (amounts(0, 1_001), "out", 1_000, False),
        (amounts(1_001, 0), "all", 1_500, True),
        (amounts(1_501, 0), "all", 1_500, False),
        (amounts(0, 0, 44), "cost", 50, True),
        (amounts(0, 0, 51), "cost", 50, False),
    ],
)
def test_a_reserve_is_taken_of_each_quota_or_of_none(
    reserves: Reserves,
    folder: Path,
    reserve: dict[QuotaUnit, int],
    refuses: str,
    left: int,
    held: bool,
) -> None:
    reserves.hold("a", WANTED, amounts(100, 400, 7), b"1")
    refusal = reserves.hold("b", WANTED, reserve, b"2")
    assert isinstance(refusal, Refusal)
    assert (refusal.quota.name, refusal.left, refusal.held) == (refuses, left, held)
    assert used(folder) == {"out": 400, "all": 500, "cost": 7}


def test_a_spent_quota_refuses_all_but_what_uses_nothing_of_it(
    reserves: Reserves,
) -> None:
    reserves.hold("a", WANTED, amounts(0, 1_000), b"1")
    reserves.settle("a", amounts(0, 1_200), b"2")
    refusal = reserves.hold("b", WANTED, amounts(10, 1), b"3")
    assert isinstance(refusal, Refusal)
    assert (refusal.quota.name, refusal.left, refusal.held) == ("out", 0, False)
    assert reserves.hold("c", WANTED, amounts(10, 0), b"4") is True


def test_a_request_that_is_asked_about_again_is_held_once(
    reserves: Reserves, folder: Path
) -> None:
    assert reserves.hold("a", WANTED, amounts(100, 600), b"1") is True
    with closing(new(folder)) as other:
        assert other.hold("a", WANTED, amounts(100, 600), b"1") is False
    assert used(folder) == {"out": 600, "all": 700}


def test_the_last_line_of_a_killed_process_is_written_once(
    reserves: Reserves, folder: Path
) -> None:
    written: list[bytes] = []
    with closing(new(folder)) as killed:
        killed.hold("a", WANTED, amounts(1, 1), b"first")
        killed.settle("a", amounts(1, 1), b"last")
    reserves.hold("b", WANTED, amounts(1, 1), b"own")
    reserves.take_last_lines(lambda line: line in written, written.append)
    assert written == [b"last"]
    with closing(new(folder)) as other:
        other.take_last_lines(lambda line: line in written, written.append)
    assert written == [b"last", b"own"]


def test_what_was_counted_for_an_answer_is_kept_with_its_settlement(
    reserves: Reserves, folder: Path
) -> None:
    assert reserves.counted("resp_1") is None
    reserves.settle("a", amounts(1, 1), b"line", CountedAnswer("resp_1", b"first"))
    reserves.settle("b", amounts(1, 1), b"line", CountedAnswer("resp_1", b"second"))
    with closing(new(folder)) as other:
        assert (other.counted("resp_1"), other.counted("resp_2")) == (b"second", None)


class Line(NamedTuple):
    """A line of a ledger."""

    request: str
    used: int
    reserved: int


class Gateway:
    """Two processes that count, and their ledger.

    Each can be killed between a change and its line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger: list[bytes] = []
        self.processes = [new(folder), new(folder)]
        self.held: dict[str, int] = {}

    def write(self, number: int, line: Line, *, killed: bool) -> None:
        if killed:
            self.processes[number].close()
            self.processes[number] = new(self.folder)
            self.processes[number].take_last_lines(
                lambda line: line in self.ledger, self.ledger.append
            )
        else:
            self.ledger.append(json.dumps(line).encode())

    def begin(self, number: int, request: str, reserve: int, *, killed: bool) -> None:
        line = Line(request, reserve, 0)
        held = self.processes[number].hold(
            request, PLENTY, amounts(0, reserve), json.dumps(line).encode()
        )
        if held is True:
            self.held[request] = reserve
            self.write(number, line, killed=killed)

    def end(self, number: int, request: str, used: int, *, killed: bool) -> None:
        line = Line(request, used, self.held.pop(request))
        self.processes[number].settle(
            request, amounts(0, used), json.dumps(line).encode()
        )
        self.write(number, line, killed=killed)


PLENTY = [(quota("all", TOKENS, 10**12), "ann")]
STEPS = st.tuples(
    st.integers(0, 1), st.integers(0, 5), st.integers(0, 10**6), st.booleans()
)


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=40, deadline=None)
def test_the_sum_over_the_ledger_is_what_is_counted_whatever_is_killed(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """A step begins a request, or ends it where it has begun, in either process."""
    with TemporaryDirectory() as name:
        (Path(name) / "policy").mkdir()
        (Path(name) / "state").mkdir()
        gateway = Gateway(Path(name))
        for step, (process, request, amount, killed) in enumerate(steps):
            known = next(
                (one for one in gateway.held if one.startswith(f"{request}.")), None
            )
            if known is None:
                gateway.begin(process, f"{request}.{step}", amount, killed=killed)
            else:
                gateway.end(process, known, amount, killed=killed)
            lines = [Line(*json.loads(line)) for line in gateway.ledger]
            assert sum(line.used - line.reserved for line in lines) == used(
                Path(name)
            ).get("all", 0)
        for process_ in gateway.processes:
            process_.close()
