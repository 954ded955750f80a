"""The record, counted and kept: over restarts, kills, rotations and full disks, each
line once.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from squidkeeper.base.errors import StateInUse
from squidkeeper.base.helper_metrics import OTHER
from squidkeeper.base.metrics import REQUEST_DURATION
from squidkeeper.record.log.drift import DriftChecker
from squidkeeper.record.log.follower import Follower
from squidkeeper.record.log.record import Record, parse_record
from squidkeeper.services.exporter.checkpoint import Checkpoint, CheckpointStore
from squidkeeper.services.exporter.counts import (
    RULES_LIMIT,
    SERIES_LIMIT,
    RequestCounter,
    RequestCounts,
)
from squidkeeper.services.exporter.log_counter import LogCounter

from ..conftest import compiled_of
from ..records import USUAL, record_line
from ..waiting import wait_for

POLICY = """
clients: {lab: {networks: [192.0.2.7]}}
defaults: {action: allow}
rules: [{name: closed, action: deny, hosts: [closed.example]}]
"""
LAB = {
    "client": "192.0.2.7",
    "url": "http://a.example/x",
    "bytes": 100,
    "upstream": "203.0.113.10",
    "upstream_ms": "2",
}


def line(**changes: object) -> bytes:
    return record_line(**{**LAB, **changes}) + b"\n"


def record(**changes: object) -> Record:
    return parse_record(line(**changes))


class World:
    """One log and one state folder, and exporters of it that come and go."""

    def __init__(self, folder: Path) -> None:
        self.compiled = compiled_of(folder / "policy", POLICY)
        self.log = folder / "access.log"
        self.state = folder / "state"
        self.store = CheckpointStore(self.state)
        self.log_counters: list[LogCounter] = []

    def write(self, *lines: bytes) -> None:
        with self.log.open("ab") as file:
            file.writelines(lines)

    def log_counter(self) -> LogCounter:
        self.store = CheckpointStore(self.state)
        self.store.open()
        self.log_counters.append(
            LogCounter(self.log, self.store, DriftChecker(lambda _: self.compiled))
        )
        return self.log_counters[-1]

    def counted(self, counter: LogCounter) -> RequestCounts:
        while counter._count_batch():
            pass
        return counter.save().counts

    def die(self) -> None:
        """As by SIGKILL: nothing more is kept, the kernel lets go of the lock."""
        self.store.close()
        for counter in self.log_counters:
            counter._follower.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.die()


def requests(counts: RequestCounts) -> int:
    return sum(number for _, number in counts.requests)


def seen(counts: RequestCounts) -> int:
    return (
        requests(counts)
        + sum(number for _, number in counts.tunnels)
        + counts.invalid_lines
    )


# ── What is counted ───────────────────────────────────────────────────────────────────


def test_requests_bytes_and_durations_are_counted_by_their_labels(world: World) -> None:
    world.write(
        line(),
        line(method="HEAD", bytes=50, duration_ms=5),
        line(method="POST", status=404, duration_ms=6),
    )
    world.write(
        line(
            verdict="deny",
            rule="closed",
            status=403,
            client="192.0.2.9",
            duration_ms=400_000,
        )
    )
    counts = world.counted(world.log_counter())
    assert dict(counts.requests) == {
        ("lab", "open", "allow", "read", "2xx"): 2,
        ("lab", "open", "allow", "write", "4xx"): 1,
        ("none", "closed", "deny", "read", "4xx"): 1,
    }
    assert dict(counts.response_bytes) == {
        ("lab", "open", "allow"): 250,
        ("none", "closed", "deny"): 100,
    }
    empty = [0] * (len(REQUEST_DURATION.buckets) + 1)
    assert (
        dict(counts.durations)
        == {
            ("allow", "read"): [
                2,
                *empty[1:],
                8,
            ],  # 3 and 5 ms: a bound belongs to its bucket
            ("allow", "write"): [0, 1, *empty[2:], 6],
            ("deny", "read"): [*empty[:-1], 1, 400_000],
        }
    )


def test_denials_of_clients_that_are_none_of_the_policy_are_counted_by_their_network(
    world: World,
) -> None:
    denied = {"verdict": "deny", "rule": "closed", "status": 403}
    world.write(
        *(
            line(**denied, client=one)
            for one in ("192.0.2.9", "192.0.2.77", "2001:db8::1", "2001:db8::2:1")
        )
    )
    world.write(line(**denied), line(client="198.51.100.7"))
    assert dict(world.counted(world.log_counter()).unnamed_denials) == {
        ("192.0.2.0/24", "deny"): 2,
        ("2001:db8::/64", "deny"): 2,
    }
    world.die()
    world.write(
        *(line(**denied, client=f"10.0.{number}.1") for number in range(70)),
        line(**denied, client="none"),
    )
    counts = dict(world.counted(world.log_counter()).unnamed_denials)
    assert (len(counts), counts[("other", "deny")]) == (65, 9)


def test_a_record_that_the_judge_fails_on_is_counted_and_so_is_what_follows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecursionError

    world.write(line(), line())
    counter = world.log_counter()
    monkeypatch.setattr(DriftChecker, "check", fail)
    counts = world.counted(counter)
    assert (requests(counts), counts.drift_unchecked) == (2, 2)


@pytest.mark.system
def test_requests_whose_url_the_record_cuts_off_are_counted_apart_through_a_restart(
    world: World,
) -> None:
    url = f"http://a.example/{'l' * 5000}"[:4096]
    world.write(line(url=url), line(url=url[:-1]), line())
    counts = world.counted(world.log_counter())
    assert (requests(counts), counts.drift_cut, counts.drift_unchecked) == (3, 1, 0)
    world.die()
    world.write(line(url=url))
    assert world.counted(world.log_counter()).drift_cut == 2


def test_what_is_absent_or_of_no_class_has_a_label_of_its_own(world: World) -> None:
    world.write(
        line(verdict="-", rule="-", status=0, method="FROB"),
        line(verdict="maybe", rule="a%20b", status=700),
    )
    assert dict(world.counted(world.log_counter()).requests) == {
        ("lab", "none", "none", OTHER, OTHER): 1,
        ("lab", "a b", "none", "read", OTHER): 1,
    }


def test_a_clock_that_was_set_back_takes_nothing_away_and_the_last_match_is_remembered(
    world: World,
) -> None:
    world.write(
        line(duration_ms=-7, bytes=-1),
        line(duration_ms=9, bytes=5, time="2026-11-25T12:00:05.000Z"),
    )
    world.write(line(duration_ms=0, bytes=0, time="2026-11-25T11:00:00.000Z"))
    counts = world.counted(world.log_counter())
    assert dict(counts.durations)["allow", "read"][-1] == 9
    assert dict(counts.response_bytes) == {("lab", "open", "allow"): 5}
    assert counts.last_line == counts.last_matched["open"] == "2026-11-25T12:00:05.000Z"


def test_a_tunnel_that_was_allowed_is_no_match_of_its_rule_and_is_counted_apart(
    world: World,
) -> None:
    tunnel = {"method": "CONNECT", "url": "a.example:443"}
    opened = [line(rule="push", time="2026-11-25T12:00:09.000Z", **tunnel)] * 36
    denied = line(
        rule="closed", verdict="deny", time="2026-11-25T12:00:05.000Z", **tunnel
    )
    world.write(line(rule="push", time="2026-11-25T12:00:01.000Z"), *opened, denied)
    counts = world.counted(world.log_counter())
    assert dict(counts.requests) == {
        ("lab", "push", "allow", "read", "2xx"): 1,
        ("lab", "closed", "deny", "connect", "2xx"): 1,
    }
    assert dict(counts.tunnels) == {("lab", "push"): 36}
    assert counts.last_matched == {
        "push": "2026-11-25T12:00:01.000Z",
        "closed": "2026-11-25T12:00:05.000Z",
    }
    world.die()
    assert world.log_counter().save().counts == counts


def test_the_first_request_inside_a_denied_tunnel_counts_with_its_connect_through_a_restart(
    world: World,
) -> None:
    denied = {"rule": "closed", "verdict": "deny", "connection": "9"}
    world.write(line(method="CONNECT", url="a.example:443", **denied))
    world.counted(world.log_counter())
    world.die()
    inside = line(url="https://a.example/", status=403, **denied)
    world.write(inside)
    counts = world.counted(world.log_counter())
    assert sum(number for _, number in counts.requests) == 1
    world.die()
    world.write(inside)
    counts = world.counted(world.log_counter())
    assert dict(counts.requests)["lab", "closed", "deny", "read", "4xx"] == 1


def test_a_tunnel_that_passed_through_is_a_match_of_its_rule_and_its_time_is_counted_apart(
    world: World,
) -> None:
    tunnel = {"method": "CONNECT", "url": "a.example:443", "rule": "pinned"}
    ended = line(
        **tunnel,
        squid="TCP_TUNNEL/HIER_DIRECT",
        time="2026-11-25T12:00:09.000Z",
        duration_ms=90_000,
    )
    world.write(line(**tunnel, squid="NONE_NONE/HIER_NONE"), ended)
    counts = world.counted(world.log_counter())
    assert dict(counts.requests) == {
        ("lab", "pinned", "allow", "passthrough", "2xx"): 1
    }
    assert dict(counts.tunnels) == {("lab", "pinned"): 1}
    assert counts.last_matched == {"pinned": "2026-11-25T12:00:09.000Z"}
    assert {how: cells[-1] for how, cells in counts.durations} == {
        ("allow", "connect"): 3,
        ("allow", "passthrough"): 90_000,
    }


def test_a_websocket_is_counted_apart(world: World) -> None:
    world.write(
        line(
            rule="live", status=101, squid="TCP_TUNNEL/HIER_DIRECT", duration_ms=90_000
        )
    )
    counts = world.counted(world.log_counter())
    assert dict(counts.requests) == {("lab", "live", "allow", "websocket", "1xx"): 1}
    assert {how for how, _ in counts.durations} == {("allow", "websocket")}


def test_lines_that_are_no_record_are_counted_and_passed_over(world: World) -> None:
    world.write(
        b"x\n",
        b"\n",
        b"\xff\xfe\n",
        line(v=2),
        line(time="yesterday"),
        line(time="2026-11-25T12:00:00"),
        line()[:50] + b"\n",
        line(),
    )
    counts = world.counted(world.log_counter())
    assert (counts.invalid_lines, requests(counts)) == (7, 1)


def test_drift_is_counted_by_the_rule_that_the_policy_names_and_the_newest_are_kept(
    world: World,
) -> None:
    world.write(*(line(url=f"http://closed.example/{number}") for number in range(30)))
    counter = world.log_counter()
    assert dict(world.counted(counter).drift) == {("lab", "closed"): 30}
    urls = [finding.url for finding in counter.save().drift]
    assert urls == [f"http://closed.example/{number}" for number in range(29, 9, -1)]


def test_drift_that_another_release_has_found_is_left_out(world: World) -> None:
    """It does not know the policy and the log of this one: as after a downgrade."""
    world.write(*(line(url=f"http://closed.example/{number}") for number in range(3)))
    kept = world.log_counter()
    assert dict(world.counted(kept).drift) == {("lab", "closed"): 3}
    world.die()
    again = world.log_counter()
    assert dict(world.counted(again).drift) == {("lab", "closed"): 3}
    world.store.write(replace(again.save(), release="0.0.9"))
    world.die()
    upgraded = world.log_counter()
    counts = world.counted(upgraded)
    assert (counts.drift, upgraded.save().drift, requests(counts)) == ([], (), 3)


def test_denials_are_kept_for_the_status_page(world: World) -> None:
    world.write(
        line(),
        line(verdict="deny", rule="closed", status=403),
        line(verdict="deny", rule="closed"),
    )
    world.counted(world.log_counter())
    world.die()
    (denial,) = world.log_counter().denials.newest()
    assert (denial.rule, denial.times) == ("closed", 2)


def test_answers_are_those_of_requests_that_were_let_through(world: World) -> None:
    world.write(
        line(),
        line(status=503, verdict="-", rule="-"),
        line(status=0),
        line(status=403, verdict="deny"),
    )
    world.write(
        line(method="CONNECT", url="a.example:443"),
        line(method="CONNECT", url="a.example:443", status=502),
    )
    counter = world.log_counter()
    world.counted(counter)
    assert [answer.failed for answer in counter.answers] == [False, True, True]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example([{"method": "CONNECT"}])
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                field: st.integers() | st.sampled_from([0, 200, 403])
                if isinstance(value, int)
                else st.text()
                | st.sampled_from(
                    [
                        "-",
                        "%",
                        "%ff",
                        "CONNECT",
                        "deny",
                        "allow",
                        "a.example:443",
                        "http://[",
                    ]
                )
                for field, value in {**USUAL, **LAB}.items()
                if field not in ("v", "time")
            },
        ),
        max_size=4,
    )
)
def test_whatever_a_line_holds_it_is_a_request_a_tunnel_or_invalid(
    world: World, rows: list[dict[str, object]]
) -> None:
    counter = world.log_counters[0] if world.log_counters else world.log_counter()
    before = counter._checkpoint().counts
    for row in rows:
        counter._count(line(**row)[:-1])
    after = counter._checkpoint().counts
    assert seen(after) - seen(before) == len(rows)


# ── Its bounds ────────────────────────────────────────────────────────────────────────


def test_nothing_that_is_made_up_makes_series_without_end() -> None:
    counter = RequestCounter(RequestCounts())
    for number in range(3 * SERIES_LIMIT):
        counter.count(
            record(rule=f"r{number}", method=f"M{number}", status=number % 999),
            f"c{number % 50}",
        )
        counter.count_drift(f"c{number}", f"r{number}")
    counts = counter.counts()
    assert SERIES_LIMIT <= len(counts.requests) < SERIES_LIMIT + 100
    assert SERIES_LIMIT <= len(counts.response_bytes) < SERIES_LIMIT + 100
    assert len(counts.drift) <= SERIES_LIMIT + 1
    assert len(counts.last_matched) <= RULES_LIMIT + 1
    assert (
        requests(counts)
        == sum(number for _, number in counts.drift)
        == 3 * SERIES_LIMIT
    )
    assert sum(number for _, number in counts.response_bytes) == 300 * SERIES_LIMIT
    assert {labels[1] for labels, _ in counts.requests[-1:]} == {OTHER}


@pytest.mark.system
def test_what_has_a_series_keeps_it_when_there_is_room_for_no_other() -> None:
    counter = RequestCounter(RequestCounts())
    for number in range(SERIES_LIMIT + 10):
        counter.count(record(rule=f"r{number}"), "lab")
    again = RequestCounter(counter.counts())
    again.count(record(rule="r0"), "lab")
    assert dict(again.counts().requests)["lab", "r0", "allow", "read", "2xx"] == 2


# ── What is kept ──────────────────────────────────────────────────────────────────────


def test_a_restart_goes_on_where_the_last_one_kept(world: World) -> None:
    world.write(line(), line(url="http://closed.example/"), b"x\n")
    first = world.counted(world.log_counter())
    world.die()
    world.write(line())
    counts = world.counted(world.log_counter())
    assert requests(first) == 2
    assert (requests(counts), counts.invalid_lines, dict(counts.drift)) == (
        3,
        1,
        {("lab", "closed"): 1},
    )


def test_a_kill_at_any_moment_neither_loses_nor_counts_twice(world: World) -> None:
    for number in range(40):
        world.write(
            *(
                line(url=f"http://a.example/{number}/{page}")
                for page in range(number % 7)
            )
        )
        counter = world.log_counter()
        counter._count_batch()
        if number % 3 == 0:
            counter.save()
        world.write(line()[:99])  # the log ends in the middle of a line
        counter._count_batch()
        if number % 3 == 1:
            counter.save()
        world.die()
        world.write(line()[99:])
    assert requests(world.counted(world.log_counter())) == sum(
        number % 7 + 1 for number in range(40)
    )


def test_what_was_served_is_still_counted_when_the_log_is_gone(world: World) -> None:
    world.write(*[line()] * 10)
    served = world.counted(world.log_counter())
    world.die()
    world.log.write_bytes(line(url="http://a.example/of-another-log"))
    counts = world.counted(world.log_counter())
    assert requests(served) == 10
    assert (requests(counts), counts.lost) == (11, 1)
    world.die()
    assert world.counted(world.log_counter()).lost == 1


def test_a_log_that_was_rotated_while_nobody_looked_is_counted_to_its_end(
    world: World,
) -> None:
    world.write(line())
    world.counted(world.log_counter())
    world.die()
    world.write(line(), line())
    world.log.rename(world.log.with_name("access.log.1"))
    world.write(line(connection="2"))
    counts = world.counted(world.log_counter())
    assert (requests(counts), counts.lost) == (4, 0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"\xff", b'{"since": "x", "version": 99}', b"[]"]
)
def test_what_cannot_be_read_is_counted_anew(world: World, content: bytes) -> None:
    world.state.mkdir()
    (world.state / "counts.json").write_bytes(content)
    world.write(line())
    assert requests(world.counted(world.log_counter())) == 1
    assert world.store.writable


def test_the_checkpoint_is_replaced_whole_where_something_is_new(world: World) -> None:
    world.write(line())
    counter = world.log_counter()
    world.counted(counter)
    file = world.state / "counts.json"
    with file.open("rb") as before:
        counter.save()
        assert file.stat().st_ino == os.fstat(before.fileno()).st_ino
        world.write(line())
        world.counted(counter)
        # a reader of the old file has all of it
        assert json.loads(before.read())["counts"]["requests"][0][1] == 1
    assert json.loads(file.read_bytes())["counts"]["requests"][0][1] == 2
    assert [path.name for path in world.state.iterdir()] == ["counts.json"]
    assert file.stat().st_mode & 0o7 == 0  # it holds what the record holds


# ── When the disk takes nothing ───────────────────────────────────────────────────────


def test_a_full_disk_is_said_also_before_there_is_anything_to_count_and_counting_goes_on(
    world: World,
) -> None:
    world.state.mkdir()
    counter = world.log_counter()
    for number in range(2):
        (world.state / "counts.json.new").symlink_to("/dev/full")
        assert requests(world.counted(counter)) == number
        assert not world.store.writable
        world.write(line())
    counter.save()
    assert world.store.writable
    world.die()
    assert requests(world.log_counter().save().counts) == 1


def test_without_a_folder_counting_goes_on_until_there_is_one(world: World) -> None:
    world.state.write_text("no folder")
    world.write(line())
    counter = world.log_counter()
    assert requests(world.counted(counter)) == 1
    assert not world.store.writable
    world.state.unlink()
    counter.save()
    assert world.store.writable
    with pytest.raises(StateInUse):
        CheckpointStore(world.state).open()


def test_a_second_exporter_is_refused_and_never_overwrites(world: World) -> None:
    world.write(line())
    world.counted(world.log_counter())
    with pytest.raises(StateInUse, match="another exporter uses this folder"):
        CheckpointStore(world.state).open()
    other = CheckpointStore(world.state)
    other.write(Checkpoint(since="x"))
    assert not other.writable
    assert requests(world.store.read().counts) == 1  # type: ignore[union-attr] # it is there


# ── The thread ────────────────────────────────────────────────────────────────────────


def test_what_is_there_is_counted_before_the_start_is_over(world: World) -> None:
    world.write(*[line()] * 2000)
    counter = world.log_counter()
    counter.start(seconds=60)
    try:
        assert requests(world.store.read().counts) == 2000  # type: ignore[union-attr] # it is there
        assert counter.readable
        assert counter.backlog_bytes == 0
    finally:
        counter.stop()
    assert not counter.readable


def test_a_start_does_not_wait_for_a_log_without_end(world: World) -> None:
    world.write(*[line()] * 5000)
    counter = world.log_counter()
    counter.start(seconds=0)
    counter.stop()
    assert 0 < requests(counter.save().counts) < 5000


@pytest.mark.system
def test_a_log_that_cannot_be_read_for_a_moment_is_said_once_and_read_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def fail(*_: object) -> list[bytes]:
        looks.append(1)
        raise OSError(errno.EIO, "Input/output error", str(world.log))

    world.write(line())
    counter = world.log_counter()
    counter.start(seconds=60)
    try:
        with monkeypatch.context() as broken:
            broken.setattr(Follower, "read", fail)
            wait_for(lambda: len(looks) > 1)
            assert not counter.readable
        world.write(line())
        wait_for(lambda: counter.readable and requests(counter.save().counts) == 2)
    finally:
        counter.stop()
    assert caplog.messages == [
        f"the access log cannot be read, trying again: [Errno 5] Input/output error: '{world.log}'"
    ]


@pytest.mark.system
def test_a_fault_of_ours_ends_the_process_that_would_be_blind(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(RequestCounter, "count", lambda *_: [].pop())
    counter = world.log_counter()
    counter.start(seconds=60)
    world.write(line())
    wait_for(lambda: ended == [1])
    assert caplog.messages[-1].startswith(
        "the access log cannot be counted, the exporter exits: IndexError in <lambda>"
    )


@pytest.mark.parametrize(
    ("error", "counts"), [("ERR_ICAP_FAILURE", False), ("ERR_ACCESS_DENIED", True)]
)
def test_a_body_that_nothing_inspected_is_no_sign_of_helpers_without_a_policy(
    error: str, counts: bool
) -> None:
    counter = RequestCounter(RequestCounts())
    denied = record(rule="policy-unavailable", verdict="deny", error=error)
    counter.count(denied, "none")
    last = counter.counts().last_matched["policy-unavailable"]
    assert last == (denied.time if counts else "")
